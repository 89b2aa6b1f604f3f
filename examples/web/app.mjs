// The page: images from files, a drop, ?image=PATH, the camera or a video; their boxes, which a person can correct.

import { listen } from "./controls.mjs";
import { finalBoxes, request } from "./detector.mjs";
import { drawBoxes, drawHandles, percent } from "./draw.mjs";
import { Editor, moved, resized } from "./edit.mjs";
import { Images, decode, pixels } from "./images.mjs";
import { listKeys } from "./keys.mjs";
import { Live, cameraProblem } from "./live.mjs";
import { Model } from "./model.mjs";
import * as panel from "./panel.mjs";
import { download, labelZip, picture, table } from "./save.mjs";
import { Session } from "./session.mjs";
import { View } from "./view.mjs";

const { $ } = panel;
const ANNOUNCE_MS = 2000; // between announcements of detections in moving images
const LOUPE = { radius: 62, times: 2.5 }; // beside a finger that hides what it drags
const SIDES = { left: false, top: false, right: true, bottom: true }; // that the keyboard moves to resize a box

function setStatus(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

class App {
  constructor(model, session) {
    Object.assign(this, { model, current: null, source: null, frame: null, marked: -1, chosen: -1, opening: 0, announced: 0 });
    this.palette = model.meta.palette;
    this.images = new Images(model, session, (image) => this.changed(image));
    this.view = new View();
    this.live = new Live($("video"), (frame) => this.showFrame(frame));
    this.className = model.names[0];
    this.editor = new Editor($("picture"), this.view, {
      boxes: () => this.boxes(),
      create: (box) => ({ ...box, name: this.className, label: this.images.classes.indexOf(this.className), score: null }),
      commit: (boxes) => this.commit(boxes),
      redraw: () => this.redraw(),
    });
  }

  get correcting() {
    return this.editor.active;
  }

  get thresholds() {
    return [this.confidence, this.overlap];
  }

  /** The boxes of an image as they are shown: with the number of their class, for its color. */
  boxesOf(image) {
    const { classes } = this.images;
    return this.images.boxes(image, ...this.thresholds).map((box) => ({ ...box, label: classes.indexOf(box.name) }));
  }

  /** The boxes on display. */
  boxes() {
    if (this.live.on) return this.frame ? finalBoxes(this.frame, ...this.thresholds, this.model.names) : [];
    return this.current ? this.boxesOf(this.current) : [];
  }

  // Images

  async add(files) {
    const videos = files.filter((file) => file.type.startsWith("video/"));
    const { added, refused } = await this.images.add(files.filter((file) => !videos.includes(file)));
    if (refused.length) {
      setStatus(`${panel.someOf(refused)}: not an image or video that this browser can read`, true);
      this.problem = true; // stays until something else happens
    }
    if (added.length) await this.open(added[0]);
    if (videos.length) await this.play(() => this.live.file(videos[0]), videos[0].name);
    else await this.images.detectAll();
  }

  /** Shows an image, and runs the network on it first if that was not done. */
  async open(image) {
    this.stopLive();
    const own = ++this.opening;
    const bitmap = await decode(image.file);
    if (own !== this.opening) return bitmap.close(); // another one was opened meanwhile
    this.source?.close?.();
    Object.assign(this, { current: image, source: bitmap, marked: -1, chosen: -1 });
    this.editor.selected = -1;
    document.body.classList.remove("empty");
    this.fit();
    this.show();
    if (!image.result) await this.images.detect(image, bitmap);
  }

  /** The image `step` places further on is shown, if there is one. */
  go(step) {
    const next = this.images.list[this.images.list.indexOf(this.current) + step];
    if (next && !this.live.on) this.open(next);
  }

  /** What is shown follows a change of an image. */
  changed(image) {
    this.problem = false;
    if (image === this.current && !this.live.on) this.show();
    else this.fillStrip();
  }

  // Moving images

  async play(start, name) {
    this.correct(false);
    document.body.classList.remove("empty");
    this.liveName = name;
    this.frame = null;
    setStatus("Starting …");
    try {
      const playing = start();
      this.buttons();
      await playing;
    } catch (error) {
      this.stopLive();
      this.showAgain();
      setStatus(error.message, true);
    }
  }

  async showFrame(frame) {
    const result = await this.model.run(pixels(frame));
    if (!this.live.on) return;
    const first = !this.frame || this.view.width !== frame.width || this.view.height !== frame.height;
    if (this.source !== frame) this.source?.close?.();
    Object.assign(this, { frame: result, source: frame });
    if (first) this.fit();
    const { duration, currentTime } = $("video");
    if (duration < Infinity) {
      if (document.activeElement !== $("seek")) $("seek").value = (1000 * currentTime) / duration;
      $("time").textContent = `${currentTime.toFixed(1)} s`;
    }
    this.show();
  }

  stopLive() {
    if (!this.live.on) return;
    this.live.stop();
    this.frame = null;
    this.buttons();
  }

  /** After a moving image: the image before it, or the empty page. */
  showAgain() {
    const image = this.current ?? this.images.list.at(-1);
    if (image) this.open(image);
    else this.empty();
  }

  empty() {
    this.source?.close?.();
    Object.assign(this, { current: null, source: null });
    this.correct(false);
    document.body.classList.add("empty");
    this.fillStrip();
    this.buttons();
    setStatus(this.ready);
  }

  async keepFrame() {
    const { video, frame } = this.live;
    const blob = await new Promise((resolve) => frame.toBlob(resolve, "image/jpeg", 0.95));
    const time = new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
    const name = this.live.url ? `${this.liveName.replace(/\.[^.]*$/, "")}-${video.currentTime.toFixed(2)}s` : `camera-${time}`;
    await this.images.add([new File([blob], `${name}.jpg`, { type: "image/jpeg" })]);
    setStatus(`Kept as ${this.images.list.at(-1).name}`);
    this.announced = performance.now();
    await this.images.detectAll();
  }

  // Drawing

  /** Makes the whole image visible. */
  fit() {
    const { width, height } = this.source;
    $("stage").style.setProperty("--ratio", `${width} / ${height}`);
    const { clientWidth, clientHeight } = $("stage");
    this.view.fit(width, height, { width: clientWidth, height: clientHeight });
  }

  /** Draws soon, once for all changes until then. */
  redraw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      this.draw();
    });
    const index = this.correcting ? this.editor.selected : this.marked >= 0 ? this.marked : this.chosen;
    panel.markRow(index);
    $("delete").disabled = !(index >= 0);
    const name = this.correcting && this.editor.boxes[index]?.name;
    if (name) this.className = $("class").value = name;
  }

  draw() {
    if (!this.source) return;
    const canvas = $("picture");
    const { area, scale, left, top, width, height } = this.view;
    const unit = window.devicePixelRatio;
    Object.assign(canvas, { width: Math.round(area.width * unit), height: Math.round(area.height * unit) });
    const context = canvas.getContext("2d");
    context.scale(unit, unit);
    context.imageSmoothingQuality = "high";
    context.drawImage(this.source, left, top, width * scale, height * scale);
    const boxes = this.editor.boxes.map((box) => this.view.toPage(box));
    const marked = this.correcting ? this.editor.selected : this.marked >= 0 ? this.marked : this.chosen;
    drawBoxes(context, boxes, { palette: this.palette, area, marked });
    if (this.correcting && boxes[marked]) drawHandles(context, boxes[marked]);
    if (this.editor.point) this.drawLoupe(context, boxes[marked]);
  }

  /** What is under the finger, enlarged, in the corner of the stage that is farther away from it. */
  drawLoupe(context, box) {
    const { area, scale, left, top, width, height } = this.view;
    const { x, y } = this.editor.point;
    const { radius, times } = LOUPE;
    const middle = { x: x < area.width / 2 ? area.width - radius - 8 : radius + 8, y: radius + 8 };
    context.save();
    context.beginPath();
    context.arc(middle.x, middle.y, radius, 0, 2 * Math.PI);
    context.fillStyle = "#000";
    context.fill();
    context.lineWidth = 6;
    context.strokeStyle = "#fff";
    context.stroke();
    context.clip();
    context.translate(middle.x - x * times, middle.y - y * times);
    context.scale(times, times);
    context.drawImage(this.source, left, top, width * scale, height * scale);
    if (box) {
      context.lineWidth = 2 / times;
      context.strokeStyle = this.palette[box.label % this.palette.length];
      context.strokeRect(box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1);
    }
    context.restore();
  }

  /** Image, boxes, list, strip and status as they are now. */
  show() {
    const boxes = this.boxes();
    panel.fillList(boxes, this.palette, {
      mark: (index) => {
        this.marked = index;
        this.redraw();
      },
      choose: (index) => {
        if (this.correcting) return this.editor.select(index);
        this.chosen = this.chosen === index ? -1 : index;
        this.redraw();
      },
    });
    this.fillStrip();
    this.buttons();
    this.redraw();
    this.announce(boxes);
  }

  announce(boxes) {
    const image = this.live.on ? null : this.current;
    const name = image?.name ?? this.liveName;
    const result = image ? image.result : this.frame;
    const found = panel.counted(boxes);
    if (result || image?.labels) $("picture").setAttribute("aria-label", `${name}: ${found}`);
    if (this.problem || (!image && performance.now() - this.announced < ANNOUNCE_MS)) return;
    this.announced = performance.now();
    if (image?.error && !image.labels) return setStatus(`${name}: ${image.error}`, true);
    if (!result && !image?.labels) return setStatus(`${name} · detecting …`);
    const times = result?.times && !image?.labels ? ` · ${result.times.network.toFixed(0)} ms network, ${result.times.rest.toFixed(0)} ms before and after` : "";
    const kept = this.images.unkept ? ` · not kept for the next visit: ${this.images.unkept}` : "";
    setStatus(`${found}${image ? ` · ${name}` : ""}${image?.labels ? " · checked" : ""}${times}${kept}`);
  }

  fillStrip() {
    const count = (image) => this.images.boxes(image, ...this.thresholds).length;
    panel.fillStrip(this.images.list, this.live.on ? null : this.current, count, (image) => this.open(image));
  }

  /** Which buttons can be used now. */
  buttons() {
    const live = this.live.on;
    const image = !live && this.current;
    const ready = Boolean(image && (image.result || image.labels));
    $("player").hidden = !(live && this.live.url);
    $("keep").hidden = !live;
    $("camera").setAttribute("aria-pressed", String(live));
    $("camera").textContent = live ? "Stop" : "Camera";
    $("camera").disabled = !live && Boolean($("camera-note").textContent);
    $("edit").disabled = $("confirm").disabled = !ready;
    $("edit").hidden = $("confirm").hidden = live;
    $("save").disabled = !ready && !(live && this.frame);
    $("undo").disabled = !(image && image.undo.length);
    $("checked-note").hidden = !(image && image.labels);
    $("remove").disabled = $("clear").disabled = live;
    for (const id of ["confidence", "overlap"]) $(id).disabled = Boolean(image && image.labels);
  }

  // Correcting

  correct(on) {
    if (on && (!this.current || this.live.on || !(this.current.result || this.current.labels))) return;
    this.editor.active = on;
    this.editor.selected = -1;
    document.body.classList.toggle("correcting", on);
    $("viewing").hidden = on;
    $("editing").hidden = !on;
    panel.fillClasses(this.images.classes, this.className);
    if (this.current && this.source) {
      this.fit();
      this.show();
    }
    if (on) $("picture").focus({ preventScroll: true });
  }

  /** Keeps boxes as those that a person checked. */
  commit(boxes) {
    navigator.storage?.persist?.(); // asks the browser not to clear them when disk space is short
    return this.images.label(this.current, boxes.map(({ x1, y1, x2, y2, name, score }) => ({ x1, y1, x2, y2, name, score })));
  }

  /** Keeps a changed copy of the boxes; `change` gets them and the number of the selected one. */
  alter(change) {
    const boxes = this.boxes();
    this.commit(change(boxes, this.editor.selected) ?? boxes);
  }

  nudge(right, down, resize) {
    this.alter((boxes, at) => {
      const box = resize ? resized(boxes[at], SIDES, right, down, this.view) : moved(boxes[at], right, down, this.view);
      boxes[at] = { ...box, score: null };
    });
  }

  selectNext(step) {
    const count = this.boxes().length;
    if (count) this.editor.select((Math.max(this.editor.selected, step > 0 ? -1 : 0) + step + count) % count);
  }

  addBox() {
    const { left, top, scale, area, width, height } = this.view; // in the middle of what is visible
    const [x, y] = [(area.width / 2 - left) / scale, (area.height / 2 - top) / scale];
    const [w, h] = [Math.min(width, area.width / scale) / 8, Math.min(height, area.height / scale) / 8];
    const box = { x1: x - w, y1: y - h, x2: x + w, y2: y + h, name: this.className, score: null };
    this.editor.selected = this.boxes().length;
    this.alter((boxes) => [...boxes, box]);
  }

  deleteBox() {
    if (this.editor.selected < 0) return;
    const at = this.editor.selected;
    this.editor.selected = -1;
    this.alter((boxes) => boxes.filter((_, i) => i !== at));
  }

  chooseClass(name) {
    if (!name) return;
    this.className = name;
    if (this.editor.selected >= 0) this.alter((boxes, at) => void (boxes[at] = { ...boxes[at], name, score: null }));
    panel.fillClasses([...new Set([...this.images.classes, name])], name);
  }

  undo() {
    this.editor.selected = -1;
    if (this.current) this.images.undo(this.current);
  }

  redo() {
    this.editor.selected = -1;
    if (this.current) this.images.redo(this.current);
  }

  /** Marks the image as checked, with the boxes that are shown. */
  check() {
    if (this.current && !this.current.labels) this.commit(this.boxes());
  }

  done() {
    this.check();
    this.correct(false);
  }

  /** Marks the image as checked and shows the next one that is not. */
  confirm() {
    if ($("confirm").disabled) return;
    this.check();
    const { list } = this.images;
    const at = list.indexOf(this.current);
    const next = [...list.slice(at + 1), ...list.slice(0, at)].find((image) => !image.labels);
    if (next) this.open(next);
  }

  // Saving

  openKeys() {
    $("keys-dialog").showModal();
  }

  openSave() {
    if ($("save").disabled) return;
    const { list } = this.images;
    const checked = list.filter((image) => image.labels).length;
    $("save-image-note").textContent = this.live.on ? "this frame" : this.current.name;
    $("save-labels-note").textContent = `Zip with YOLO labels of ${panel.plural(list.length, "image")}, ${checked} checked`;
    $("save-csv").disabled = $("save-labels").disabled = !list.length;
    $("only-checked").checked = checked > 0;
    $("only-checked").disabled = !checked;
    $("save-dialog").showModal();
  }

  async save(make) {
    $("save-dialog").close();
    try {
      await make();
    } catch (error) {
      setStatus(`Not saved: ${error.message}`, true);
    }
  }

  async savePicture() {
    const name = this.live.on ? "frame.jpg" : this.current.name;
    const png = name.toLowerCase().endsWith(".png");
    download(await picture(this.source, this.boxes(), this.palette, png), `${name.replace(/\.[^.]*$/, "")}-boxes.${png ? "png" : "jpg"}`);
  }

  async saveCsv() {
    await this.images.detectAll();
    download(table(this.images.list, (image) => this.boxesOf(image), this.images.classes), "boxes.csv");
  }

  async saveLabels() {
    const only = $("only-checked").checked;
    if (!only) await this.images.detectAll();
    const chosen = this.images.list.filter((image) => image.labels || !only);
    download(await labelZip(chosen, (image) => this.boxesOf(image), this.images.classes), "labels.zip");
  }

  async remove() {
    const { list } = this.images;
    const at = list.indexOf(this.current);
    await this.images.remove(this.current);
    this.current = null;
    if (list.length) await this.open(list[Math.min(at, list.length - 1)]);
    else this.empty();
  }
}

/** The image of ?image=PATH, a file of this server. */
async function openLinked(app, path) {
  try {
    const url = new URL(path, location.href);
    if (url.origin !== location.origin) throw new Error(`${path}: another server, expected a path on this one`);
    const blob = await (await request(url)).blob();
    await app.add([new File([blob], url.pathname.split("/").pop(), { type: blob.type })]);
  } catch (error) {
    setStatus(error.message, true);
  }
}

async function start() {
  let model;
  try {
    const loading = Model.load((share) => setStatus(`Loading the model … ${percent(share)}`));
    const opening = Session.open().catch(() => null); // private windows keep nothing
    model = await loading;
    const app = new App(model, await opening);
    await app.images.restore();
    app.ready = `Ready · ${panel.introduce(model.meta, model.names, app.palette)}`;
    setStatus(app.ready);
    $("camera-note").textContent = await cameraProblem();
    listKeys();
    listen(app);
    app.buttons();
    if (app.images.list.length) await app.open(app.images.list[0]);
    app.images.detectAll();
    const linked = new URLSearchParams(location.search).get("image");
    if (linked) await openLinked(app, linked);
  } catch (error) {
    setStatus(`The model could not be loaded: ${error.message}`, true);
    return;
  }
  navigator.serviceWorker?.register("service-worker.js").catch(() => {}); // works without one, but not offline
  document.body.dataset.ready = "true";
}

start();
