// The detector, without the page: pixels of an image in, boxes in its pixels out. The steps are those of detect.py.

const PAD = 114 / 255;
const LOWEST = 0.05;
const MOST = 1000; // boxes of an image, as detect.py's --max-det
const MOST_THREADS = 4; // more do not pay off on phones, whose other cores are slow
const ONE = 2048; // interpolation weights are integers up to this, as in OpenCV, so that pixels are equal

/** The confidence below which boxes are not kept: the least value of the page's slider. */
export const lowest = (meta) => Math.min(LOWEST, meta.conf_threshold || LOWEST);

/**
 * The image scaled to fit height x width, on gray, as the input of the network; centered, or else at the top left.
 * Bilinear between pixel centers in OpenCV's arithmetic, not by the browser's own scaling.
 *
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA.
 * @returns {{tensor: Float32Array, place: {x: number, y: number, left: number, top: number}}}
 *   tensor (3, height, width) in 0..1; a point p of the image is at p * (x, y) + (left, top).
 */
export function letterbox(image, height, width, centered = true) {
  const ratio = Math.min(height / image.height, width / image.width);
  const h = Math.max(round(image.height * ratio), 1);
  const w = Math.max(round(image.width * ratio), 1);
  const place = { x: w / image.width, y: h / image.height, left: 0, top: 0 };
  if (centered) Object.assign(place, { left: (width - w) >> 1, top: (height - h) >> 1 });
  const rows = taps(image.height, h);
  const columns = taps(image.width, w);
  const plane = height * width;
  const tensor = new Float32Array(3 * plane).fill(PAD);
  const { data } = image;
  for (let y = 0; y < h; y++) {
    const above = rows.low[y] * image.width;
    const below = rows.high[y] * image.width;
    const v = rows.part[y];
    let target = (y + place.top) * width + place.left;
    for (let x = 0; x < w; x++, target++) {
      const left = columns.low[x];
      const right = columns.high[x];
      const u = columns.part[x];
      for (let c = 0; c < 3; c++) {
        const upper = data[4 * (above + left) + c] * (ONE - u) + data[4 * (above + right) + c] * u;
        const lower = data[4 * (below + left) + c] * (ONE - u) + data[4 * (below + right) + c] * u;
        const sum = (((ONE - v) * (upper >> 4)) >> 16) + ((v * (lower >> 4)) >> 16);
        tensor[c * plane + target] = ((sum + 2) >> 2) / 255;
      }
    }
  }
  return { tensor, place };
}

/** To the nearest integer, halves to the even one, as Python rounds. */
function round(value) {
  const near = Math.round(value);
  return near - value === 0.5 && near % 2 ? near - 1 : near;
}

/** For each of `to` pixels along an axis of `from`: its two neighbors and the weight of the second, 0..ONE. */
function taps(from, to) {
  const low = new Int32Array(to);
  const high = new Int32Array(to);
  const part = new Int32Array(to);
  for (let i = 0; i < to; i++) {
    const at = Math.min(Math.max(((i + 0.5) * from) / to - 0.5, 0), from - 1);
    low[i] = Math.floor(at);
    high[i] = Math.min(low[i] + 1, from - 1);
    part[i] = Math.round((at - low[i]) * ONE);
  }
  return { low, high, part };
}

/**
 * The boxes of one image whose score is above `least`, best first, with their best class, before suppression.
 *
 * @param {Float32Array} rows (N, 5+nc) cx, cy, w, h in canvas pixels, objectness, class probabilities.
 * @returns {Float32Array} (n, 6) x1, y1, x2, y2 in canvas pixels, score, class.
 */
export function candidates(rows, classes, least) {
  const width = 5 + classes;
  const found = [];
  for (let at = 0; at < rows.length; at += width) {
    const objectness = rows[at + 4];
    if (objectness <= least) continue;
    let label = 0;
    for (let c = 1; c < classes; c++) if (rows[at + 5 + c] > rows[at + 5 + label]) label = c;
    const score = objectness * rows[at + 5 + label];
    if (score <= least) continue;
    const [cx, cy, w, h] = rows.subarray(at, at + 4);
    found.push([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2, score, label]);
  }
  found.sort((a, b) => b[4] - a[4]);
  return Float32Array.from(found.flat());
}

/**
 * The final boxes of one image, best first, at most MOST; boxes of different classes do not suppress each other.
 *
 * @param {Float32Array} found (n, 6), see `candidates`.
 * @returns {{x1, y1, x2, y2, score, label}[]} in canvas pixels.
 */
export function suppress(found, confidence, overlap) {
  const kept = [];
  for (let at = 0; at < found.length && found[at + 4] > confidence && kept.length < MOST; at += 6) {
    const [x1, y1, x2, y2, score, label] = found.subarray(at, at + 6);
    const box = { x1, y1, x2, y2, score, label };
    if (kept.every((other) => other.label !== label || iou(other, box) <= overlap)) kept.push(box);
  }
  return kept;
}

/**
 * The boxes of a result of `Detector.run`, in pixels of the image and within it, best first.
 *
 * @param {string[]} names of the classes.
 */
export function finalBoxes(result, confidence, overlap, names) {
  const { found, place, width, height } = result;
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  return suppress(found, confidence, overlap)
    .map((box) => ({
      ...box,
      x1: clip((box.x1 - place.left) / place.x, width),
      y1: clip((box.y1 - place.top) / place.y, height),
      x2: clip((box.x2 - place.left) / place.x, width),
      y2: clip((box.y2 - place.top) / place.y, height),
      name: names[box.label],
    }))
    .filter((box) => box.x2 > box.x1 && box.y2 > box.y1);
}

function iou(a, b) {
  const w = Math.min(a.x2, b.x2) - Math.max(a.x1, b.x1);
  const h = Math.min(a.y2, b.y2) - Math.max(a.y1, b.y1);
  if (w <= 0 || h <= 0) return 0;
  const area = (box) => (box.x2 - box.x1) * (box.y2 - box.y1);
  return (w * h) / (area(a) + area(b) - w * h);
}

/** A loaded model. `meta` is model.json: names, imgsz [height, width], letterbox. */
export class Detector {
  /**
   * @param {object} ort the onnxruntime-web module. @param {URL} base the folder of model.onnx, model.json, ort/.
   * @param {(share: number) => void} progress is called with the part of the files that has arrived, 0..1.
   */
  static async load(ort, base, progress = () => {}) {
    const parts = [0, 0];
    const note = (i) => (share) => progress((parts[i] = share) && (parts[0] + parts[1]) / 2);
    const [meta, model, runtime] = await Promise.all([
      request(new URL("model.json", base)).then((response) => response.json()),
      download(new URL("model.onnx", base), note(0)),
      download(new URL("ort/ort-wasm-simd-threaded.wasm.gz", base), note(1)).then(unpacked),
    ]);
    ort.env.wasm.wasmPaths = new URL("ort/", base).href; // must be absolute
    ort.env.wasm.wasmBinary = runtime;
    ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, MOST_THREADS) : 1;
    return new Detector(ort, meta, await ort.InferenceSession.create(model));
  }

  constructor(ort, meta, session) {
    this.ort = ort;
    this.meta = meta;
    this.session = session;
    this.classes = Object.keys(meta.names).length;
    this.before = Promise.resolve(); // the previous run: a session runs one input at a time
  }

  /** Runs the network on RGBA pixels; `finalBoxes` then reads the result, for any threshold above `lowest`. */
  run(image) {
    const result = this.before.then(() => this.infer(image));
    this.before = result.catch(() => {});
    return result;
  }

  async infer(image) {
    const [height, width] = this.meta.imgsz;
    const start = performance.now();
    const centered = (this.meta.letterbox ?? "center") === "center";
    const { tensor, place } = letterbox(image, height, width, centered);
    const ready = performance.now();
    const input = new this.ort.Tensor("float32", tensor, [1, 3, height, width]);
    const { output } = await this.session.run({ images: input });
    const done = performance.now();
    const found = candidates(output.data, this.classes, lowest(this.meta));
    const times = { network: done - ready, rest: ready - start + performance.now() - done };
    return { found, place, width: image.width, height: image.height, times };
  }
}

/** The response of a file. Raises an Error that names the file and what the server said. */
export async function request(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.pathname}: ${response.status} ${response.statusText}`);
  return response;
}

/** The bytes of a file; `progress` is called with the share that has arrived, where the server sends the size. */
async function download(url, progress) {
  const response = await request(url);
  const size = Number(response.headers.get("Content-Length"));
  const chunks = [];
  let arrived = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    chunks.push(value);
    arrived += value.length;
    if (size) progress(Math.min(arrived / size, 1));
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

/** The content of a gzip file; other bytes as they are, for servers that unpack such files themselves. */
async function unpacked(bytes) {
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
