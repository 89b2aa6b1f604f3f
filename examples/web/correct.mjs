// Correcting the boxes of the image on display: what the buttons and keys do, and when an image counts as checked.

import { Editor, moved, resized } from "./edit.mjs";
import * as panel from "./panel.mjs";

const { $ } = panel;
const SIDES = { left: false, top: false, right: true, bottom: true }; // that the keyboard moves to resize a box

export class Corrections {
  constructor(app) {
    this.app = app;
    this.className = app.model.names[0]; // of the next new box
    this.editor = new Editor($("picture"), app.stage.view, {
      boxes: () => app.boxes(),
      create: (box) => this.create(box),
      commit: (boxes) => this.commit(boxes),
      redraw: () => {
        app.stage.redraw();
        this.follow();
      },
    });
  }

  get on() {
    return this.editor.active;
  }

  get image() {
    return this.app.current;
  }

  /** Starts or ends correcting, if there is an image whose boxes are known. */
  turn(on) {
    if (on === this.on || (on && !this.app.corrigible)) return;
    this.editor.active = on;
    this.app.stage.unmark();
    document.body.classList.toggle("correcting", on);
    $("viewing").hidden = on;
    $("editing").hidden = !on;
    panel.fillClasses(this.app.images.classes, this.className);
    this.app.stage.fit();
    if (this.image) this.app.show();
    if (on) $("picture").focus({ preventScroll: true });
    else $("picture").blur();
  }

  /** Buttons and the choice of classes follow the selected box. */
  follow() {
    const box = this.on && this.editor.boxes[this.editor.selected];
    $("delete").disabled = !box;
    if (box) this.className = $("class").value = box.name;
  }

  create(box) {
    return { ...box, name: this.className, label: this.app.images.classes.indexOf(this.className), score: null };
  }

  /** Keeps boxes as those that a person checked. */
  commit(boxes) {
    navigator.storage?.persist?.(); // asks the browser not to clear them when disk space is short
    const labels = boxes.map(({ x1, y1, x2, y2, name, score }) => ({ x1, y1, x2, y2, name, score }));
    return this.app.images.label(this.image, labels);
  }

  /** Keeps a copy of the boxes in which the selected one is another. */
  replace(change) {
    const { selected } = this.editor;
    if (selected >= 0) this.commit(this.app.boxes().map((box, i) => (i === selected ? { ...change(box), score: null } : box)));
  }

  nudge(right, down, resize) {
    const { view } = this.app.stage;
    this.replace((box) => (resize ? resized(box, SIDES, right, down, view) : moved(box, right, down, view)));
  }

  selectNext(step) {
    const count = this.app.boxes().length;
    const from = this.editor.selected < 0 && step < 0 ? 0 : this.editor.selected;
    if (count) this.editor.select((from + step + count) % count);
  }

  /** A new box in the middle of what is visible. */
  addBox() {
    const { left, top, scale, area, width, height } = this.app.stage.view;
    const [x, y] = [(area.width / 2 - left) / scale, (area.height / 2 - top) / scale];
    const [w, h] = [Math.min(width, area.width / scale) / 8, Math.min(height, area.height / scale) / 8];
    const boxes = this.app.boxes();
    this.editor.selected = boxes.length;
    this.commit([...boxes, this.create({ x1: x - w, y1: y - h, x2: x + w, y2: y + h })]);
  }

  deleteBox() {
    const { selected } = this.editor;
    if (selected < 0) return;
    this.editor.selected = -1;
    this.commit(this.app.boxes().filter((_, i) => i !== selected));
  }

  /** The class of the selected box, and of the next new ones. */
  chooseClass(name) {
    if (!name) return;
    this.className = name;
    panel.fillClasses([...new Set([...this.app.images.classes, name])], name);
    this.replace((box) => ({ ...box, name }));
  }

  undo() {
    this.editor.selected = -1;
    if (this.image) this.app.images.undo(this.image);
  }

  redo() {
    this.editor.selected = -1;
    if (this.image) this.app.images.redo(this.image);
  }

  /** The image counts as checked, with the boxes that are shown. */
  check() {
    if (this.app.corrigible && !this.image.labels) this.commit(this.app.boxes());
  }

  done() {
    this.check();
    this.turn(false);
  }

  /** The image counts as checked, and the next one that does not is shown. */
  confirm() {
    if (!this.app.corrigible) return;
    this.check();
    const { list } = this.app.images;
    const at = list.indexOf(this.image);
    const next = [...list.slice(at + 1), ...list.slice(0, at)].find((image) => !image.labels);
    if (next) this.app.open(next);
  }
}
