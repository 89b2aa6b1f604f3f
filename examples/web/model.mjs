// The page's side of worker.mjs.

/** A loaded model. `meta` is model.json, `names` are its classes in the order of their numbers. */
export class Model {
  /** @param {(share: number) => void} progress is called with the part of the files that has arrived, 0..1. */
  static load(progress) {
    const worker = new Worker(new URL("worker.mjs", import.meta.url), { type: "module" });
    return new Promise((resolve, reject) => {
      worker.onerror = (event) => reject(new Error(event.message || "this browser does not run module workers"));
      worker.onmessage = ({ data }) => {
        if (data.meta) resolve(new Model(worker, data.meta));
        else if (data.failed) {
          worker.terminate(); // it may still be downloading
          reject(new Error(data.failed));
        } else progress(data.progress);
      };
    });
  }

  constructor(worker, meta) {
    this.worker = worker;
    this.meta = meta;
    this.names = Object.keys(meta.names).map((index) => meta.names[index]);
    this.waiting = new Map(); // number of a request -> [resolve, reject]
    this.requests = 0;
    worker.onmessage = ({ data: { id, result, error } }) => {
      const [resolve, reject] = this.waiting.get(id);
      this.waiting.delete(id);
      if (result) resolve(result);
      else reject(new Error(error));
    };
  }

  /** The result of the network for RGBA pixels, for `finalBoxes`. The pixels are handed over: `image` is empty after. */
  run({ data, width, height }) {
    const id = ++this.requests;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, [resolve, reject]);
      this.worker.postMessage({ id, image: { data, width, height } }, [data.buffer]);
    });
  }
}
