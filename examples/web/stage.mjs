// The canvas: the image on display, its boxes, and what a finger or pointer drags.

import { drawBoxes, drawHandles } from "./draw.mjs";
import { $, markRow } from "./panel.mjs";
import { View } from "./view.mjs";

const LOUPE = { radius: 62, times: 2.5 }; // beside a finger that hides what it drags

export class Stage {
  /** @param {string[]} palette colors of the classes. */
  constructor(palette) {
    Object.assign(this, { palette, view: new View(), source: null, editor: null, hovered: -1, chosen: -1 });
  }

  /** Shows another image, a bitmap or a canvas, or nothing. Its size may differ from the one before. */
  put(source) {
    const { width, height } = this.view;
    if (this.source !== source) this.source?.close?.();
    this.source = source;
    if (source && (source.width !== width || source.height !== height)) this.fit();
  }

  /** Makes the whole image visible. */
  fit() {
    if (!this.source) return;
    const { width, height } = this.source;
    $("stage").style.setProperty("--ratio", `${width} / ${height}`);
    const { clientWidth, clientHeight } = $("stage");
    this.view.fit(width, height, { width: clientWidth, height: clientHeight });
  }

  /** The number of the box that stands out, -1 for none. */
  get marked() {
    if (this.editor.active) return this.editor.selected;
    return this.hovered >= 0 ? this.hovered : this.chosen;
  }

  unmark() {
    this.hovered = this.chosen = this.editor.selected = -1;
  }

  /** Draws soon, once for all changes until then. */
  redraw() {
    this.drawing ??= requestAnimationFrame(() => {
      this.drawing = null;
      this.draw();
    });
    markRow(this.marked);
  }

  draw() {
    if (!this.source) return;
    const canvas = $("picture");
    const { area } = this.view;
    const unit = window.devicePixelRatio;
    Object.assign(canvas, { width: Math.round(area.width * unit), height: Math.round(area.height * unit) });
    const context = canvas.getContext("2d");
    context.scale(unit, unit);
    context.imageSmoothingQuality = "high";
    this.drawImage(context);
    const boxes = this.editor.boxes.map((box) => this.view.toPage(box));
    drawBoxes(context, boxes, { palette: this.palette, area, marked: this.marked });
    const box = boxes[this.marked];
    if (this.editor.active && box) drawHandles(context, box);
    if (this.editor.point) this.drawLoupe(context, box);
  }

  drawImage(context) {
    const { left, top, scale, width, height } = this.view;
    context.drawImage(this.source, left, top, width * scale, height * scale);
  }

  /** What is under the finger, enlarged, in the upper corner that is farther away from it. */
  drawLoupe(context, box) {
    const { x, y } = this.editor.point;
    const { radius, times } = LOUPE;
    const { width } = this.view.area;
    const middle = { x: x < width / 2 ? width - radius - 8 : radius + 8, y: radius + 8 };
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
    this.drawImage(context);
    if (box) {
      context.lineWidth = 2 / times;
      context.strokeStyle = this.palette[box.label % this.palette.length];
      context.strokeRect(box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1);
    }
    context.restore();
  }
}
