// The keyboard: what each key does, and the list of keys that the page shows.

import { $ } from "./panel.mjs";
import { openSave } from "./save.mjs";

const VIEWING = [
  ["← →", "previous, next image"],
  ["E", "correct boxes"],
  ["Enter", "boxes are right, next image"],
  ["S", "save"],
];
const CORRECTING = [
  ["N P", "next, previous box"],
  ["← → ↑ ↓", "move the box (with Shift: 10 pixels)"],
  ["Alt ← → ↑ ↓", "resize it"],
  ["A", "add a box"],
  ["Delete", "delete it"],
  ["1 … 9", "its class"],
  ["Ctrl Z", "undo (with Shift: redo)"],
  ["Enter", "done"],
  ["Esc", "no box selected; leave"],
];
const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Fills the list of keys. */
export function listKeys() {
  const rows = [...VIEWING, ["", "While correcting:"], ...CORRECTING];
  $("keys-list").replaceChildren(
    ...rows.flatMap(([keys, does]) => [
      Object.assign(document.createElement("dt"), { textContent: keys }),
      Object.assign(document.createElement("dd"), { textContent: does }),
    ]),
  );
}

/** Does what a key stands for; returns whether it stands for anything. */
export function press(app, event) {
  if (event.target.matches("input, select, textarea") || document.querySelector("dialog[open]")) return false;
  if ((event.key === "Enter" || event.key === " ") && event.target.matches("button, label")) return false;
  if (event.key === "?") return run(() => $("keys-dialog").showModal());
  if (event.ctrlKey || event.metaKey) {
    if (event.key.toLowerCase() !== "z") return false;
    return run(() => (event.shiftKey ? app.corrections.redo() : app.corrections.undo()));
  }
  return app.corrections.on ? correcting(app, event) : viewing(app, event);
}

const run = (act) => (act(), true);

function viewing(app, { key }) {
  if (key === "ArrowLeft" || key === "ArrowRight") return run(() => app.go(STEPS[key][0]));
  if (key === "e") return run(() => app.corrections.turn(true));
  if (key === "Enter") return run(() => app.corrections.confirm());
  if (key === "s") return run(() => openSave(app));
  return false;
}

function correcting(app, { key, shiftKey, altKey }) {
  const { corrections } = app;
  const { editor } = corrections;
  const step = STEPS[key]?.map((value) => value * (shiftKey ? 10 : 1));
  if (step && editor.selected >= 0) return run(() => corrections.nudge(...step, altKey));
  if (step?.[0]) return run(() => app.go(Math.sign(step[0])));
  if (key === "n" || key === "p") return run(() => corrections.selectNext(key === "n" ? 1 : -1));
  if (key === "a") return run(() => corrections.addBox());
  if (key === "Delete" || key === "Backspace") return run(() => corrections.deleteBox());
  if (/^[1-9]$/.test(key)) return run(() => corrections.chooseClass(app.images.classes[key - 1]));
  if (key === "Enter") return run(() => corrections.done());
  if (key === "Escape") return run(() => (editor.selected >= 0 ? editor.select(-1) : corrections.turn(false)));
  return false;
}
