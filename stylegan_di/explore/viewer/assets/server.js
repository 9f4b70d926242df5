// Draws by asking the server that this page came from.

async function ask(path, look) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(path, { method: "POST", headers, body: JSON.stringify(look) }).catch(() => {
    throw new Error("The server does not answer. Is stylegan-di view still running?");
  });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.blob();
}

const engine = {
  ready: async () => {},
  picture: async (look) => createImageBitmap(await ask("/picture", look), { colorSpaceConversion: "none" }),
  latent: (look) => ask("/latent", look),
};

