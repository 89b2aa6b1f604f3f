// The page: images from files, a drop, ?image=PATH, the camera or a video; their boxes, which a person can correct.

import { listen } from "./controls.mjs";
import { Corrections } from "./correct.mjs";
import { finalBoxes, request } from "./detector.mjs";
import { percent } from "./draw.mjs";
import { Images, decode, pixels } from "./images.mjs";
import { listKeys } from "./keys.mjs";
import { Live, cameraProblem } from "./live.mjs";
import { Model } from "./model.mjs";
import * as panel from "./panel.mjs";
import { Session } from "./session.mjs";
import { Stage } from "./stage.mjs";

const { $ } = panel;
const ANNOUNCE_MS = 2000; // between announcements of detections in moving images

export class App {
  constructor(model, session) {
    this.model = model;
    this.stage = new Stage(model.meta.palette);
    this.images = new Images(model, session, (image) => this.changed(image));
    this.live = new Live($("video"), (frame) => this.showFrame(frame));
    this.corrections = new Corrections(this);
    this.stage.editor = this.corrections.editor;
    this.current = null; // the image on display, or that was before the moving image
    this.frame = null; // result of the network for the newest frame of a moving image
    this.opening = 0; // number of the newest request to show an image: older ones are dropped
    this.announced = 0; // time of the last announcement
    this.confidence = this.overlap = 0; // the sliders set these
  }

  setStatus(text, wrong = false) {
    this.problem = wrong; // stays until an image is opened or changed
    $("status").textContent = text;
    $("status").classList.toggle("wrong", wrong);
  }

  /** The boxes of an image as they are shown: with the number of their class, for its color. */
  boxesOf(image) {
    const { classes } = this.images;
    const boxes = this.images.boxes(image, this.confidence, this.overlap);
    return boxes.map((box) => ({ ...box, label: classes.indexOf(box.name) }));
  }

  /** The boxes on display. */
  boxes() {
    if (this.live.on) return this.frame ? finalBoxes(this.frame, this.confidence, this.overlap, this.model.names) : [];
    return this.current ? this.boxesOf(this.current) : [];
  }

  /** Whether there are boxes on display that a person can correct. */
  get corrigible() {
    return Boolean(!this.live.on && this.current && (this.current.result || this.current.labels));
  }

  async add(files) {
    const videos = files.filter((file) => file.type.startsWith("video/"));
    const images = files.filter((file) => !videos.includes(file));
    const refused = await this.images.add(images, (image) => this.open(image));
    if (refused.length) this.setStatus(`${panel.someOf(refused)}: no image or video that this browser can read`, true);
    if (videos.length) await this.play(() => this.live.file(videos[0]), videos[0].name);
    else await this.images.detectAll();
  }

  /** Shows an image, and runs the network on it first if that was not done. */
  async open(image) {
    this.stopLive();
    const own = ++this.opening;
    const bitmap = await decode(image.file);
    if (own !== this.opening) return bitmap.close(); // another one was opened meanwhile
    this.current = image;
    this.problem = false;
    this.stage.unmark();
    document.body.classList.remove("empty");
    this.stage.put(bitmap);
    this.stage.fit();
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
    if (image !== this.current || this.live.on) return this.fillStrip();
    this.problem = false;
    this.show();
  }

  async remove() {
    const { list } = this.images;
    const at = list.indexOf(this.current);
    await this.images.remove(this.current);
    this.current = null;
    this.showAgain(list[Math.min(at, list.length - 1)]);
  }

  // Moving images

  /** Shows a moving image until it is stopped. `start` opens it; `name` is for the status. */
  async play(start, name) {
    this.corrections.turn(false);
    this.opening++;
    document.body.classList.remove("empty");
    this.liveName = name;
    this.frame = null;
    this.setStatus("Starting …");
    try {
      const playing = start();
      this.buttons();
      await playing;
    } catch (error) {
      this.frame = null;
      await this.showAgain();
      this.setStatus(error.message, true);
    }
  }

  async showFrame(frame) {
    const result = await this.model.run(pixels(frame));
    if (!this.live.on) return;
    this.frame = result;
    this.stage.put(frame);
    const { duration, currentTime } = $("video");
    if (duration < Infinity) {
      if (document.activeElement !== $("seek")) $("seek").value = (1000 * currentTime) / duration;
      $("time").textContent = `${currentTime.toFixed(1)} s`;
    }
    this.show();
  }

  stopLive() {
    this.live.stop();
    this.frame = null;
  }

  /** After a moving image or a removed one: another image, or the empty page. */
  async showAgain(image = this.current ?? this.images.list.at(-1)) {
    this.stopLive();
    if (image) return this.open(image);
    this.current = null;
    this.corrections.turn(false);
    this.stage.put(null);
    document.body.classList.add("empty");
    this.fillStrip();
    this.buttons();
    this.setStatus(this.ready);
  }

  /** Adds the frame on display to the images. */
  async keepFrame() {
    const { video, frame, url } = this.live;
    const blob = await new Promise((resolve) => frame.toBlob(resolve, "image/jpeg", 0.95));
    const time = new Date().toISOString().slice(0, 19).replace(/[-:]/g, "").replace("T", "-");
    const name = url ? `${this.liveName.replace(/\.[^.]*$/, "")}-${video.currentTime.toFixed(2)}s` : `camera-${time}`;
    const file = new File([blob], `${name}.jpg`, { type: "image/jpeg" });
    await this.images.add([file], (image) => this.setStatus(`Kept as ${image.name}`));
    this.announced = performance.now();
    await this.images.detectAll();
  }

  // What is shown

  /** Image, boxes, list, strip and status as they are now. */
  show() {
    const boxes = this.boxes();
    panel.fillList(boxes, this.stage.palette, {
      mark: (index) => {
        this.stage.hovered = index;
        this.stage.redraw();
      },
      choose: (index) => {
        if (this.corrections.on) return this.stage.editor.select(index);
        this.stage.chosen = this.stage.chosen === index ? -1 : index;
        this.stage.redraw();
      },
    });
    if (!this.live.on) this.fillStrip();
    this.buttons();
    this.corrections.follow();
    this.stage.redraw();
    this.announce(boxes);
  }

  announce(boxes) {
    const image = this.live.on ? null : this.current;
    const name = image?.name ?? this.liveName;
    const result = image ? image.result : this.frame;
    const found = panel.counted(boxes) || (image?.labels ? "no boxes" : "no detections");
    if (result || image?.labels) $("picture").setAttribute("aria-label", `${name}: ${found}`);
    if (this.problem || (!image && performance.now() - this.announced < ANNOUNCE_MS)) return;
    this.announced = performance.now();
    const kept = this.images.unkept ? ` · not kept for the next visit: ${this.images.unkept}` : "";
    if (image?.labels) return this.setStatus(`${found} · ${name} · checked${kept}`);
    if (image?.error) return this.setStatus(`${name}: ${image.error}`, true);
    if (!result) return this.setStatus(`${name} · detecting …`);
    const { network, rest } = result.times;
    const times = `${network.toFixed(0)} ms network, ${rest.toFixed(0)} ms before and after`;
    this.setStatus(`${found} · ${name} · ${times}${kept}`);
  }

  fillStrip() {
    const count = (image) => this.images.boxes(image, this.confidence, this.overlap).length;
    panel.fillStrip(this.images.list, this.live.on ? null : this.current, count, (image) => this.open(image));
  }

  /** Which buttons can be used now. */
  buttons() {
    const live = this.live.on;
    const image = live ? null : this.current;
    $("player").hidden = !(live && this.live.url);
    $("keep").hidden = !live;
    $("camera").setAttribute("aria-pressed", String(live));
    $("camera").textContent = live ? "Stop" : "Camera";
    $("camera").disabled = !live && Boolean($("camera-note").textContent);
    $("edit").disabled = $("confirm").disabled = !this.corrigible;
    $("edit").hidden = $("confirm").hidden = live;
    $("save").disabled = !this.corrigible && !this.frame;
    $("undo").disabled = !image?.undo.length;
    $("checked-note").hidden = !image?.labels;
    $("remove").disabled = $("clear").disabled = live;
    for (const id of ["confidence", "overlap"]) $(id).disabled = Boolean(image?.labels);
  }
}

/** Shows the image of ?image=PATH, a file of this server. */
async function openLinked(app, path) {
  try {
    const url = new URL(path, location.href);
    if (url.origin !== location.origin) throw new Error(`${path}: another server, expected a path on this one`);
    const blob = await (await request(url)).blob();
    await app.add([new File([blob], url.pathname.split("/").pop(), { type: blob.type })]);
  } catch (error) {
    app.setStatus(error.message, true);
  }
}

async function start() {
  let model;
  const opening = Session.open().catch(() => null); // private windows keep nothing
  try {
    model = await Model.load((share) => ($("status").textContent = `Loading the model … ${percent(share)}`));
  } catch (error) {
    $("status").textContent = `The model could not be loaded: ${error.message}`;
    $("status").classList.add("wrong");
    return;
  }
  const app = new App(model, await opening);
  app.ready = `Ready · ${panel.introduce(model.meta, model.names, app.stage.palette)}`;
  app.setStatus(app.ready);
  $("camera-note").textContent = await cameraProblem();
  listKeys();
  listen(app);
  app.buttons();
  await app.images.restore();
  if (app.images.list.length) await app.open(app.images.list[0]);
  app.images.detectAll();
  const linked = new URLSearchParams(location.search).get("image");
  if (linked) await openLinked(app, linked);
  navigator.serviceWorker?.register("service-worker.js").catch(() => {}); // the page works without one, but not offline
  document.body.dataset.ready = "true";
}

start();
