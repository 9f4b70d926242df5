// The page: keeps what is looked at (`state`), draws it with `engine`, and writes it to the address.
//
// engine.picture(look) gives a picture as an ImageBitmap, engine.latent(look) its w as a Blob, of an .npz file. A look has
// the fields of Look in looks.py.

const described = JSON.parse(document.getElementById("described").textContent);
const MAX_SEED = 4294967295;
const NEARBY = 12;
const SMOOTH = 128; // a side from which pixels need not be told apart
const $ = (id) => document.getElementById(id);

const state = {
  seed: 0, class: "", trunc: 1, noise: described.noise[0] ?? "", second: 1, amount: 0, mix: "all",
  styles: Array.from({ length: described.styles }, (_, style) => style),
};

const groups = {
  all: (style) => true,
  coarse: (style) => style < described.coarse,
  fine: (style) => style >= described.coarse,
};

function lookAt(network, changes = {}) {
  const shown = { ...state, ...changes };
  const look = { network, seed: shown.seed };
  if (described.classes) look.class_index = shown.class === "" ? null : Number(shown.class);
  if (described.trunc) look.trunc = shown.trunc;
  if (described.noise.length) look.noise_mode = shown.noise;
  if (described.styles) Object.assign(look, { second: shown.second, amount: shown.amount, styles: shown.styles });
  return look;
}

// Drawing: one picture at a time; what changes meanwhile is drawn afterwards, and small pictures wait for large ones.

const last = described.networks.length - 1;
let drawing = false;
let changed = false;

function paint(canvas, picture) {
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.classList.toggle("smooth", picture.width >= SMOOTH);
  canvas.getContext("2d").drawImage(picture, 0, 0);
}

async function draw() {
  const slow = setTimeout(say, 500, "Drawing…");
  const looks = described.networks.map((_, network) => lookAt(network)); // of one moment: the state goes on
  try {
    const pictures = [];
    for (const look of looks) pictures.push(await engine.picture(look));
    for (const [network, picture] of pictures.entries()) paint(large[network], picture);
    say("");
  } finally {
    clearTimeout(slow);
  }
  const small = nearby.filter(([, seed]) => seed <= MAX_SEED);
  if (described.styles) small.push([$("from"), state.seed], [$("to"), state.second]);
  for (const [canvas, seed] of small) {
    if (changed) return;
    paint(canvas, await engine.picture(lookAt(last, { seed, amount: 0 })));
  }
}

async function refresh() {
  show();
  changed = true;
  if (drawing) return;
  drawing = true;
  document.querySelector("main").setAttribute("aria-busy", "true");
  while (changed) {
    changed = false;
    await draw().catch((error) => say(error.message, true));
  }
  history.replaceState(null, "", `#${new URLSearchParams(written())}`); // not sooner: browsers limit how often
  drawing = false;
  document.querySelector("main").setAttribute("aria-busy", "false");
}

function say(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

// What the page shows of the state.

function show() {
  for (const name of ["seed", "class", "trunc", "noise", "second", "amount", "mix"]) {
    if (document.activeElement !== $(name) || $(name).value !== "") $(name).value = state[name];
  }
  for (const output of document.querySelectorAll("output")) output.value = Number(state[output.htmlFor]).toFixed(2);
  for (const box of document.querySelectorAll("#styles input")) box.checked = state.styles.includes(Number(box.value));
  const first = state.seed - (state.seed % NEARBY);
  for (const [index, button] of document.querySelectorAll("#nearby button").entries()) {
    const seed = first + index;
    nearby[index][1] = seed;
    button.lastChild.textContent = seed < 100000 ? seed : `…${String(seed).slice(-4)}`;
    button.setAttribute("aria-label", `Seed ${seed}`);
    button.setAttribute("aria-current", seed === state.seed);
    button.parentElement.hidden = seed > MAX_SEED;
  }
  const blended = described.styles && state.amount > 0 && state.styles.length;
  const words = blended ? `seed ${state.seed}, ${Math.round(100 * state.amount)} % towards seed ${state.second}` : `seed ${state.seed}`;
  for (const [network, canvas] of large.entries()) canvas.setAttribute("aria-label", `${labels[network]}: ${words}`);
  $("command").hidden = Boolean(blended);
  $("command").lastElementChild.textContent = command();
}

function command() {
  const parts = ["stylegan-di generate", `--network=${described.networks[last].given}`, `--seeds=${state.seed}`];
  if (state.class !== "") parts.push(`--class=${state.class}`);
  if (described.trunc && state.trunc !== 1) parts.push(`--trunc=${state.trunc}`);
  if (described.noise.length && state.noise !== "const") parts.push(`--noise-mode=${state.noise}`);
  return parts.join(" ");
}

// The address: #seed=5&class=8&trunc=0.7

function written() {
  const kept = { seed: state.seed };
  if (state.class !== "") kept.class = state.class;
  if (described.trunc) kept.trunc = state.trunc;
  if (described.noise.length) kept.noise = state.noise;
  if (described.styles) Object.assign(kept, { second: state.second, amount: state.amount, styles: state.styles.join(".") });
  return kept;
}

function read() {
  const given = new URLSearchParams(location.hash.slice(1));
  const within = (name, lowest, highest, whole) => {
    const value = Number(given.get(name) ?? NaN);
    if (value >= lowest && value <= highest && (!whole || Number.isInteger(value))) state[name] = value;
  };
  within("seed", 0, MAX_SEED, true);
  within("second", 0, MAX_SEED, true);
  within("trunc", 0, 1.5);
  within("amount", 0, 1);
  if ([...$("class").options].some((option) => option.value === given.get("class"))) state.class = given.get("class");
  if (described.noise.includes(given.get("noise"))) state.noise = given.get("noise");
  if (given.has("styles")) {
    const styles = given.get("styles").split(".").filter(Boolean).map(Number);
    if (styles.every((style) => Number.isInteger(style) && style >= 0 && style < described.styles)) state.styles = styles;
  }
  state.mix = mixOf(state.styles);
}

function mixOf(styles) {
  const same = (group) => groups[group] && every.filter(groups[group]).join() === styles.join();
  return ["all", "coarse", "fine"].find(same) ?? "own";
}

// Saving.

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function fileName(network) {
  const stem = described.networks[network].name.replace(/\.[^.]*$/, "");
  return `${labels.length > 1 ? `${labels[network].toLowerCase()}-` : ""}${stem}-seed${String(state.seed).padStart(4, "0")}`;
}

function saving(text, network, make) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = text;
  if (labels.length > 1) button.setAttribute("aria-label", `${text} ${labels[network].toLowerCase()}`);
  button.addEventListener("click", () => make().catch((error) => say(error.message, true)));
  return button;
}

// Building the page.

const every = [...state.styles];
const labels = last ? ["Before", "After"] : [described.networks[0].name];

const large = described.networks.map(({ name }, network) => {
  const figure = document.createElement("figure");
  const canvas = document.createElement("canvas");
  canvas.setAttribute("role", "img");
  const caption = document.createElement("figcaption");
  if (last) {
    const strong = document.createElement("strong");
    strong.textContent = labels[network];
    const small = document.createElement("small");
    small.textContent = name;
    caption.append(strong, small);
  }
  const saves = document.createElement("div");
  saves.className = "saves";
  saves.append(saving("Save picture", network, async () => {
    save(await new Promise((done) => canvas.toBlob(done)), `${fileName(network)}.png`);
  }));
  if (described.styles) saves.append(saving("Save latent", network, async () => {
    save(await engine.latent(lookAt(network)), `${fileName(network)}.npz`);
  }));
  caption.append(saves);
  figure.append(canvas, caption);
  $("pictures").append(figure);
  return canvas;
});
document.body.classList.toggle("alone", !last);

const nearby = Array.from({ length: NEARBY }, () => {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  const canvas = document.createElement("canvas");
  button.append(canvas, document.createElement("span"));
  item.append(button);
  $("nearby").append(item);
  const entry = [canvas, 0];
  button.addEventListener("click", () => set({ seed: entry[1] }));
  return entry;
});

$("title").textContent = last ? "Before and after, at the same latent" : described.networks[0].name;
$("subtitle").textContent = `${described.networks[last].size.join(" × ")} pixels${described.class_names.length ? `, ${described.classes} classes` : ""}`;
document.title = `${described.networks.map(({ name }) => name).join(" → ")} · stylegan-di`;
$("origins").textContent = described.origins.join(" ");
$("origins").hidden = !described.origins.length;
for (const [index, name] of described.class_names.entries()) $("class").add(new Option(name, index));
const noises = { const: "fixed", random: "of the seed", none: "none" };
for (const mode of described.noise) $("noise").add(new Option(noises[mode], mode));
for (const style of every) {
  const label = document.createElement("label");
  const box = document.createElement("input");
  box.type = "checkbox";
  box.value = style;
  box.setAttribute("aria-label", `Style ${style}`);
  label.append(box, style);
  $("styles").append(label);
}
for (const part of document.querySelectorAll("[data-for]")) {
  const what = described[part.dataset.for];
  part.hidden = !(Array.isArray(what) ? what.length : what);
}

// What people do.

function set(changes) {
  Object.assign(state, changes);
  return refresh();
}

const step = (by) => set({ seed: Math.min(MAX_SEED, Math.max(0, state.seed + by)) });
for (const name of ["seed", "second"]) {
  $(name).addEventListener("input", () => {
    if ($(name).validity.valid) set({ [name]: $(name).valueAsNumber });
  });
  $(name).addEventListener("blur", show);
}
for (const name of ["trunc", "amount"]) $(name).addEventListener("input", () => set({ [name]: $(name).valueAsNumber }));
for (const name of ["class", "noise"]) $(name).addEventListener("input", () => set({ [name]: $(name).value }));
$("mix").addEventListener("input", () => {
  const mix = $("mix").value;
  set({ mix, styles: mix === "own" ? state.styles : every.filter(groups[mix]) });
});
$("styles").addEventListener("input", () => {
  const styles = every.filter((style) => $("styles").querySelectorAll("input")[style].checked);
  set({ styles, mix: mixOf(styles) });
});
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("random").addEventListener("click", () => set({ seed: Math.floor(Math.random() * 1e6) }));
$("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("input, select")) return;
  if (event.key === "ArrowRight") step(1);
  if (event.key === "ArrowLeft") step(-1);
});
addEventListener("hashchange", () => {
  read();
  refresh();
});

read();
engine.ready().then(refresh, (error) => {
  say(error.message, true);
  document.querySelector("main").setAttribute("aria-busy", "false");
});
