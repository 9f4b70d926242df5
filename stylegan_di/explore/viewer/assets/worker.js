// Runs the networks by ONNX Runtime, from the latents that numpy's RandomState(seed) gives StyleGAN's tools.

// MT19937 (Matsumoto & Nishimura 1998), and what numpy makes of its numbers in RandomState's randn and randint.
class RandomState {
  constructor(seed) {
    this.key = new Uint32Array(624);
    this.key[0] = seed;
    for (let i = 1; i < 624; i++) {
      const before = this.key[i - 1] ^ (this.key[i - 1] >>> 30);
      this.key[i] = Math.imul(1812433253, before) + i;
    }
    this.position = 624;
    this.kept = null;
  }

  word() {
    if (this.position === 624) {
      for (let i = 0; i < 624; i++) {
        const y = (this.key[i] & 0x80000000) | (this.key[(i + 1) % 624] & 0x7fffffff);
        this.key[i] = this.key[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      this.position = 0;
    }
    let y = this.key[this.position++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  }

  uniform() {
    const high = this.word() >>> 5;
    return (high * 67108864 + (this.word() >>> 6)) / 9007199254740992;
  }

  normal() { // Marsaglia's polar method, of which every second number is kept for the next call
    if (this.kept !== null) {
      const kept = this.kept;
      this.kept = null;
      return kept;
    }
    let x, y, square;
    do {
      x = 2 * this.uniform() - 1;
      y = 2 * this.uniform() - 1;
      square = x * x + y * y;
    } while (square >= 1 || square === 0);
    const factor = Math.sqrt((-2 * Math.log(square)) / square);
    this.kept = factor * x;
    return factor * y;
  }

  below(count) {
    if (count === 1) return 0;
    const mask = 2 ** (32 - Math.clz32(count - 1)) - 1;
    for (;;) {
      const drawn = (this.word() & mask) >>> 0;
      if (drawn < count) return drawn;
    }
  }
}

// `ends` are the sums of the first 1, 2, ... counts of the labels that occur; `drawn` is the index of one of them.
function latentOf(seed, size, ends) {
  const random = new RandomState(seed);
  const z = Float32Array.from({ length: size }, () => random.normal());
  if (!ends.length) return { z, drawn: null };
  const position = random.below(ends.at(-1));
  return { z, drawn: ends.findIndex((end) => position < end) };
}

let ort, described, sessions;

async function load(told) {
  ort = await import(URL.createObjectURL(new Blob([told.runtime], { type: "text/javascript" })));
  ort.env.wasm.numThreads = 1; // more need headers that a file or a plain web server does not send
  ort.env.wasm.wasmBinary = told.wasm;
  described = told.described;
  sessions = [];
  for (const graph of told.graphs) sessions.push(await ort.InferenceSession.create(new Uint8Array(graph)));
}

async function run(look) {
  const seeds = described.styles ? [look.seed, look.second] : [look.seed];
  const { ends, vectors } = described.networks[look.network];
  const latents = seeds.map((seed) => latentOf(seed, described.z, ends));
  const tensor = (values, ...dims) => new ort.Tensor("float32", values, dims);
  const feeds = { z: tensor(latents.flatMap(({ z }) => [...z]), seeds.length, described.z) };
  if (described.styles) {
    const amounts = new Float32Array(described.styles);
    for (const style of look.styles) amounts[style] = look.amount;
    feeds.amounts = tensor(amounts, described.styles);
    feeds.psi = tensor([look.trunc ?? 1]);
    feeds.noise = tensor([look.noise_mode === "none" ? 0 : 1]);
  }
  if (described.classes) {
    const labels = new Float32Array(seeds.length * described.classes);
    for (const [row, { drawn }] of latents.entries()) {
      const chosen = look.class_index ?? null;
      if (vectors && chosen === null) labels.set(vectors[drawn], row * described.classes);
      else labels[row * described.classes + (chosen ?? drawn)] = 1;
    }
    feeds.labels = tensor(labels, seeds.length, described.classes);
  }
  return sessions[look.network].run(feeds);
}

async function picture(look) {
  const { images } = await run(look);
  const [, channels, height, width] = images.dims;
  const size = width * height;
  const pixels = new Uint8ClampedArray(4 * size).fill(255);
  for (let at = 0; at < size; at++) {
    for (let colour = 0; colour < 3; colour++) {
      const x = images.data[(channels === 3 ? colour * size : 0) + at];
      pixels[4 * at + colour] = Math.floor(Math.min(255, Math.max(0, 127.5 * x + 128)));
    }
  }
  return { pixels, width, height };
}

// A zip of one file, 'w.npy', stored as it is: what numpy.savez writes and generate.py --projected-w reads.
async function latent(look) {
  const { ws } = await run(look);
  const ascii = (text) => Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  const header = `{'descr': '<f4', 'fortran_order': False, 'shape': (${ws.dims.join(", ")}), }`;
  const padded = header.padEnd(Math.ceil((header.length + 11) / 64) * 64 - 11) + "\n";
  const array = await new Blob([
    ascii("\x93NUMPY\x01\x00"), new Uint8Array(new Uint16Array([padded.length]).buffer), ascii(padded), ws.data,
  ]).arrayBuffer();
  const content = new Uint8Array(array);
  const name = ascii("w.npy");
  const little = (...pairs) => pairs.flatMap(([value, size]) => Array.from({ length: size }, (_, at) => (value / 256 ** at) & 255));
  const shared = [[20, 2], [0, 2], [0, 2], [0, 2], [33, 2], [crc32(content), 4], [content.length, 4], [content.length, 4], [name.length, 2], [0, 2]];
  const local = [...little([0x04034b50, 4], ...shared), ...name];
  const central = [...little([0x02014b50, 4], [20, 2], ...shared, [0, 2], [0, 2], [0, 2], [0, 4], [0, 4]), ...name];
  const end = little([0x06054b50, 4], [0, 4], [1, 2], [1, 2], [central.length, 4], [local.length + content.length, 4], [0, 2]);
  return new Blob([new Uint8Array(local), content, new Uint8Array([...central, ...end])]);
}

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  return ~crc >>> 0;
}

let previous = Promise.resolve(); // a session runs one picture at a time
onmessage = ({ data: { id, what, told } }) => {
  previous = previous.then(async () => {
    try {
      postMessage({ id, result: await { load, picture, latent }[what](told) });
    } catch (error) {
      postMessage({ id, error: String(error.message ?? error) });
    }
  });
};
