// The images of the session: added, detected one after another, corrected, kept in the browser.

import { finalBoxes } from "./detector.mjs";
import { imageName } from "./formats.mjs";

const THUMBNAIL = 144; // pixels of the longer side

/** The image in a file, as it was when the network was trained: turned as its EXIF says, colors not converted. */
export const decode = (file) => createImageBitmap(file, { colorSpaceConversion: "none" });

/** RGBA pixels of an image or canvas. Raises an Error if it is too large for a canvas of this browser. */
export function pixels(source) {
  const { width, height } = source;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

async function thumbnailOf(bitmap) {
  const scale = Math.min(THUMBNAIL / Math.max(bitmap.width, bitmap.height), 1);
  const canvas = new OffscreenCanvas(Math.max(bitmap.width * scale, 1), Math.max(bitmap.height * scale, 1));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.8 });
}

/**
 * `list` holds an object per image: name, file, width, height, thumbnail, url (of the thumbnail); result (see Detector.run,
 * null before it ran) of the model `model`; labels: boxes as a person left them, null before somebody checked them.
 */
export class Images {
  /** @param {Session | null} session null: nothing is kept. @param {(image) => void} changed is called after a change. */
  constructor(model, session, changed) {
    Object.assign(this, { model, session, changed, list: [], unkept: session ? "" : "this browser keeps nothing" });
    this.writing = Promise.resolve();
  }

  /** Loads what the browser kept of an earlier visit. */
  async restore() {
    for (const kept of this.session ? await this.session.all() : []) {
      if (kept.model !== this.model.meta.fingerprint) kept.result = null; // another model of the same folder
      this.list.push({ ...kept, url: URL.createObjectURL(kept.thumbnail), undo: [], redo: [] });
    }
  }

  /** Adds files; calls `first` with the first image at once. Returns the names of files that are no images. */
  async add(files, first) {
    let added = 0;
    const refused = [];
    for (const file of files) {
      const bitmap = await decode(file).catch(() => null);
      if (!bitmap) {
        refused.push(file.name);
        continue;
      }
      const { width, height } = bitmap;
      const thumbnail = await thumbnailOf(bitmap);
      bitmap.close();
      const name = imageName(file.name, this.list.map((image) => image.name));
      const image = { name, file, width, height, thumbnail, model: "", result: null, labels: null };
      Object.assign(image, { url: URL.createObjectURL(thumbnail), undo: [], redo: [] });
      this.list.push(image);
      await this.keep(image);
      this.changed(image);
      if (added++ === 0) first(image);
    }
    return refused;
  }

  /** Runs the network on an image unless that was done. `bitmap`: the decoded image, if there is one. */
  detect(image, bitmap) {
    image.running ??= this.run(image, bitmap).finally(() => (image.running = null));
    return image.running;
  }

  async run(image, bitmap) {
    if (image.result) return;
    try {
      const source = bitmap ?? (await decode(image.file));
      const data = pixels(source);
      if (!bitmap) source.close();
      image.result = await this.model.run(data);
      image.model = this.model.meta.fingerprint;
      await this.keep(image);
    } catch (error) {
      image.error = error.message;
    }
    this.changed(image);
  }

  /** Runs the network on all images that wait, one after another. */
  async detectAll() {
    this.all ??= (async () => {
      for (;;) {
        const next = this.list.find((image) => !image.result && !image.error); // the list may change meanwhile
        if (!next) break;
        await this.detect(next);
      }
    })().finally(() => (this.all = null));
    return this.all;
  }

  /** The boxes of an image: those that a person left, else the model's. */
  boxes(image, confidence, overlap) {
    if (image.labels) return image.labels;
    if (!image.result) return [];
    const key = `${confidence} ${overlap}`;
    if (image.final?.key !== key || image.final.result !== image.result) {
      image.final = { key, result: image.result, boxes: finalBoxes(image.result, confidence, overlap, this.model.names) };
    }
    return image.final.boxes;
  }

  /** Sets an image's checked boxes, null for the model's own again; `undo` and `redo` go back and forth. */
  label(image, labels) {
    image.undo.push(image.labels);
    image.redo = [];
    return this.set(image, labels);
  }

  undo(image) {
    return this.step(image, image.undo, image.redo);
  }

  redo(image) {
    return this.step(image, image.redo, image.undo);
  }

  step(image, from, to) {
    if (!from.length) return null;
    to.push(image.labels);
    return this.set(image, from.pop());
  }

  async set(image, labels) {
    image.labels = labels;
    this.changed(image);
    await this.keep(image);
  }

  /** Writes an image into the browser's storage, after what was written before; `unkept` says why that failed. */
  keep(image) {
    return this.write(async () => {
      if (!this.list.includes(image)) return; // removed meanwhile
      const { id, name, file, thumbnail, width, height, model, result, labels } = image;
      const record = { name, file, thumbnail, width, height, model, result, labels };
      image.id = await this.session.put(id === undefined ? record : { id, ...record });
    });
  }

  remove(image) {
    this.list.splice(this.list.indexOf(image), 1);
    URL.revokeObjectURL(image.url);
    return this.write(() => image.id !== undefined && this.session.remove(image.id));
  }

  clear() {
    for (const { url } of this.list.splice(0)) URL.revokeObjectURL(url);
    return this.write(() => this.session.clear());
  }

  write(act) {
    if (!this.session) return Promise.resolve();
    this.writing = this.writing.then(act).then(
      () => (this.unkept = ""),
      (error) => (this.unkept = error.name === "QuotaExceededError" ? "the browser's storage is full" : error.message),
    );
    return this.writing;
  }

  /** Class names in the order of their numbers: the model's, then those that only a person's boxes have. */
  get classes() {
    const own = this.list.flatMap((image) => (image.labels ?? []).map(({ name }) => name));
    return [...new Set([...this.model.names, ...own])];
  }
}
