// Connects the controls of the page to what they do.

import { lowest } from "./detector.mjs";
import { percent } from "./draw.mjs";
import { press } from "./keys.mjs";
import * as panel from "./panel.mjs";
import { readSetting, writeSetting } from "./session.mjs";

const { $ } = panel;
const CONFIDENCE = 0.25; // where the model has no threshold of its own
const OVERLAP = 0.45;

/** Connects the controls to what they do. */
export function listen(app) {
  const click = (id, act) => $(id).addEventListener("click", act);
  $("file").addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = "";
    app.add(files);
  });
  click("camera", () => {
    if (!app.live.on) return app.play(() => app.live.camera(), "Camera");
    app.stopLive();
    app.showAgain();
  });
  click("keep", () => app.keepFrame());
  click("edit", () => app.correct(true));
  click("confirm", () => app.confirm());
  click("done", () => app.done());
  click("add", () => app.addBox());
  click("delete", () => app.deleteBox());
  click("undo", () => app.undo());
  click("reset", () => app.images.label(app.current, null));
  click("remove", () => app.remove());
  click("clear", async () => {
    if (!window.confirm(`Remove ${panel.plural(app.images.list.length, "image")} and their boxes from this browser?`)) return;
    await app.images.clear();
    app.empty();
  });
  $("class").addEventListener("change", async ({ target }) => {
    app.chooseClass(target.value === panel.NEW_CLASS ? (await panel.askClass()) || app.className : target.value);
  });
  click("save", () => app.openSave());
  click("save-image", () => app.save(() => app.savePicture()));
  click("save-csv", () => app.save(() => app.saveCsv()));
  click("save-labels", () => app.save(() => app.saveLabels()));
  click("save-close", () => $("save-dialog").close());
  click("keys", () => app.openKeys());
  click("keys-close", () => $("keys-dialog").close());
  document.addEventListener("keydown", (event) => press(app, event) && event.preventDefault());
  listenToPlayer(app);
  listenToSliders(app);
  listenToDrops(app);
  new ResizeObserver(() => {
    if (!app.source) return;
    app.fit();
    app.redraw();
  }).observe($("stage"));
}

function listenToPlayer(app) {
  const video = $("video");
  $("play").addEventListener("click", () => (video.paused ? video.play() : video.pause()));
  for (const kind of ["play", "pause"]) video.addEventListener(kind, () => ($("play").textContent = video.paused ? "Play" : "Pause"));
  $("seek").addEventListener("input", ({ target }) => (video.currentTime = (target.value / 1000) * video.duration));
}

/** The sliders start at the model's own confidence threshold if it has one; what a person sets is kept for the model. */
function listenToSliders(app) {
  const { fingerprint, conf_threshold: own } = app.model.meta;
  const kept = readSetting("thresholds");
  const start = kept?.fingerprint === fingerprint ? kept : { confidence: own ?? CONFIDENCE, overlap: OVERLAP };
  $("confidence").min = lowest(app.model.meta);
  const set = (id, value) => {
    app[id] = value;
    $(`${id}-value`).textContent = percent(value);
    $("confidence-note").textContent = app.confidence === own ? "the model's own threshold, chosen in validation" : "";
  };
  for (const id of ["confidence", "overlap"]) {
    $(id).value = start[id];
    set(id, start[id]);
    $(id).addEventListener("input", () => {
      set(id, Number($(id).value));
      writeSetting("thresholds", { fingerprint, confidence: app.confidence, overlap: app.overlap });
      app.chosen = -1;
      if (app.source) app.show();
    });
  }
}

function listenToDrops(app) {
  const stage = $("stage");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      stage.classList.add("drop");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) stage.classList.remove("drop");
  });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    stage.classList.remove("drop");
    app.add([...event.dataTransfer.files]);
  });
}
