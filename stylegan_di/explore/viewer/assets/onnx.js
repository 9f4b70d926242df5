// Draws in the browser: a worker runs the networks, so that the page stays awake. The files it needs are in the page, or
// beside it.

async function bytesOf(name) {
  const inside = document.querySelector(`[data-file="${name}"]`);
  if (!inside) {
    const answer = await fetch(name).catch(() => {
      throw new Error("A page opened from disk cannot read the files beside it. In its folder: python -m http.server");
    });
    if (!answer.ok) throw new Error(`${name} is missing beside this page.`);
    return answer.arrayBuffer();
  }
  const letters = atob(inside.textContent);
  inside.remove();
  const packed = new Uint8Array(letters.length);
  for (let at = 0; at < packed.length; at++) packed[at] = letters.charCodeAt(at); // the fastest way for 100 MB
  return new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const code = document.getElementById("worker").textContent;
const worker = new Worker(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
const waiting = new Map();
let asked = 0;

worker.onmessage = ({ data: { id, result, error } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error === undefined) resolve(result);
  else reject(new Error(error));
};

function call(what, told, transfer = []) {
  return new Promise((resolve, reject) => {
    const id = asked++;
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, what, told }, transfer);
  });
}

const engine = {
  async ready() {
    const [runtime, wasm, ...graphs] = await Promise.all([...described.runtime, ...described.graphs].map(bytesOf));
    await call("load", { runtime, wasm, graphs, described }, [wasm, ...graphs]);
  },
  async picture(look) {
    const { pixels, width, height } = await call("picture", look);
    return createImageBitmap(new ImageData(pixels, width, height));
  },
  latent: (look) => call("latent", look),
};

