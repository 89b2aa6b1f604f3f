// Connects the controls of the page to what they do.

import { lowest } from "./detector.mjs";
import { percent } from "./draw.mjs";
import { press } from "./keys.mjs";
import * as panel from "./panel.mjs";
import * as saving from "./save.mjs";
import { readSetting, writeSetting } from "./session.mjs";

const { $ } = panel;
const CONFIDENCE = 0.25; // where the model has no threshold of its own
const OVERLAP = 0.45;

/** Connects the controls to what they do. */
export function listen(app) {
  const { corrections } = app;
  const click = (id, act) => $(id).addEventListener("click", act);
  $("file").addEventListener("change", ({ target }) => {
    const files = [...target.files];
    target.value = "";
    app.add(files);
  });
  click("camera", () => (app.live.on ? app.showAgain() : app.play(() => app.live.camera(), "Camera")));
  click("keep", () => app.keepFrame());
  click("edit", () => corrections.turn(true));
  click("confirm", () => corrections.confirm());
  click("done", () => corrections.done());
  click("add", () => corrections.addBox());
  click("delete", () => corrections.deleteBox());
  click("undo", () => corrections.undo());
  click("reset", () => app.images.label(app.current, null));
  click("remove", () => app.remove());
  click("clear", () => {
    if (!window.confirm(`Remove ${panel.plural(app.images.list.length, "image")} and their boxes from this browser?`)) return;
    app.images.clear();
    app.showAgain(null);
  });
  $("class").addEventListener("change", async ({ target }) => {
    corrections.chooseClass(target.value === panel.NEW_CLASS ? (await panel.askClass()) || corrections.className : target.value);
  });
  click("keys", () => $("keys-dialog").showModal());
  click("keys-close", () => $("keys-dialog").close());
  document.addEventListener("keydown", (event) => press(app, event) && event.preventDefault());
  listenToSaving(app);
  listenToPlayer(app);
  listenToSliders(app);
  listenToDrops(app);
  new ResizeObserver(() => {
    app.stage.fit();
    app.stage.redraw();
  }).observe($("stage"));
}

function listenToSaving(app) {
  $("save").addEventListener("click", () => saving.openSave(app));
  $("save-close").addEventListener("click", () => $("save-dialog").close());
  for (const [id, save] of [["save-image", saving.savePicture], ["save-csv", saving.saveCsv], ["save-labels", saving.saveLabels]]) {
    $(id).addEventListener("click", async () => {
      $("save-dialog").close();
      try {
        await save(app);
      } catch (error) {
        app.setStatus(`Not saved: ${error.message}`, true);
      }
    });
  }
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
  const start = kept?.fingerprint === fingerprint ? kept : { confidence: own || CONFIDENCE, overlap: OVERLAP };
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
      app.stage.unmark();
      if (app.stage.source) app.show();
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
