// Correcting boxes with a thumb, a pen or a mouse. Boxes are in pixels of the image; {left, top, right, bottom} name
// the sides of a box that a pointer holds.

const REACH = { touch: 26, pen: 14, mouse: 9 }; // pixels of the page around a handle in which a pointer gets hold of it
const LEAST = 6; // pixels of the page: sides of a new box
const STILL = 6; // pixels of the page that a pointer may move and still be a tap

/**
 * The sides of a box at a point, or null if there are none. Inside of the box the reach is at most a quarter of it,
 * so that the middle of a small box stays free to move it.
 */
export function sidesAt(box, { x, y }, reach) {
  const near = (value, low, high) => {
    const inside = Math.min(reach, (high - low) / 4);
    const at = (edge, out) => (out > 0 ? out <= reach : -out <= inside) && Math.abs(value - edge) <= reach;
    return [at(low, low - value), at(high, value - high)];
  };
  const [left, right] = near(x, box.x1, box.x2);
  const [top, bottom] = near(y, box.y1, box.y2);
  const across = x >= box.x1 - reach && x <= box.x2 + reach;
  const along = y >= box.y1 - reach && y <= box.y2 + reach;
  return (left || right || top || bottom) && across && along ? { left, top, right, bottom } : null;
}

export const inside = ({ x1, y1, x2, y2 }, { x, y }) => x >= x1 && x <= x2 && y >= y1 && y <= y2;

/** The numbers of the boxes at a point, the smallest first. */
export function boxesAt(boxes, point) {
  const area = ({ x1, y1, x2, y2 }) => (x2 - x1) * (y2 - y1);
  const at = [...boxes.keys()].filter((i) => inside(boxes[i], point));
  return at.sort((a, b) => area(boxes[a]) - area(boxes[b]));
}

/** The box moved within an image of width x height. */
export function moved(box, right, down, { width, height }) {
  const x = Math.min(Math.max(right, -box.x1), width - box.x2);
  const y = Math.min(Math.max(down, -box.y1), height - box.y2);
  return { ...box, x1: box.x1 + x, y1: box.y1 + y, x2: box.x2 + x, y2: box.y2 + y };
}

/** The box with some of its sides moved, within the image and at least a pixel large; a side may pass the opposite one. */
export function resized(box, sides, right, down, { width, height }) {
  const clip = (value, most) => Math.min(Math.max(value, 0), most);
  const pair = (low, high, most) => {
    const [a, b] = [Math.min(low, high), Math.max(low, high)].map((value) => clip(value, most));
    return b - a >= 1 ? [a, b] : [Math.min(a, most - 1), Math.min(a, most - 1) + 1];
  };
  const [x1, x2] = pair(box.x1 + sides.left * right, box.x2 + sides.right * right, width);
  const [y1, y2] = pair(box.y1 + sides.top * down, box.y2 + sides.bottom * down, height);
  return { ...box, x1, y1, x2, y2 };
}

/**
 * Turns pointers on the canvas into changes of boxes. A tap selects the box there, the next one beneath it if that is
 * selected. Dragging the selected box moves it, dragging its sides and corners resizes it, dragging elsewhere draws a
 * new box. Two fingers, or the wheel, zoom and move the image.
 */
export class Editor {
  /**
   * `point` is where a finger drags, null for a mouse, which hides nothing.
   *
   * @param {{boxes: () => object[], create: (box) => object, commit: (boxes) => void, redraw: () => void}} page
   *   boxes: the boxes now; create: a box with a class; commit: keeps changed boxes.
   */
  constructor(canvas, view, page) {
    Object.assign(this, { canvas, view, page, active: false, selected: -1, drag: null, draft: null, point: null });
    this.pointers = new Map();
    const on = (kind, act) => canvas.addEventListener(kind, (event) => this.active && act(event), { passive: false });
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.follow(event));
    on("pointerup", (event) => this.up(event));
    on("pointercancel", () => this.stop());
    on("wheel", (event) => {
      event.preventDefault();
      view.zoom(1.002 ** -event.deltaY, event.offsetX, event.offsetY);
      page.redraw();
    });
  }

  /** The boxes to draw: while one is dragged, with the change. */
  get boxes() {
    return this.draft ?? this.page.boxes();
  }

  select(index) {
    this.selected = index;
    this.page.redraw();
  }

  down(event) {
    event.preventDefault();
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (this.pointers.size > 1) { // two fingers: not a change
      this.drag = this.draft = this.point = null;
      this.page.redraw();
      return;
    }
    const start = { x: event.offsetX, y: event.offsetY };
    const at = this.view.toImage(start.x, start.y);
    const box = this.page.boxes()[this.selected];
    const sides = box && sidesAt(box, at, REACH[event.pointerType] / this.view.scale);
    const kind = sides ? "resize" : box && inside(box, at) ? "move" : "draw";
    this.drag = { kind, start, at, sides, box, started: false };
  }

  follow(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const now = { x: event.offsetX, y: event.offsetY };
    if (this.pointers.size === 2) this.pinch(event.pointerId, before, now);
    this.pointers.set(event.pointerId, now);
    const { drag } = this;
    if (!drag) return;
    drag.started ||= Math.hypot(now.x - drag.start.x, now.y - drag.start.y) > STILL;
    if (!drag.started) return;
    const [right, down] = [(now.x - drag.start.x) / this.view.scale, (now.y - drag.start.y) / this.view.scale];
    if (event.pointerType !== "mouse") this.point = now;
    this.draft = [...this.page.boxes()];
    if (drag.kind === "draw") {
      const start = { x1: drag.at.x, y1: drag.at.y, x2: drag.at.x, y2: drag.at.y };
      const sides = { left: false, top: false, right: true, bottom: true };
      this.draft.push(this.page.create(resized(start, sides, right, down, this.view)));
      this.selected = this.draft.length - 1;
    } else {
      const change = drag.kind === "move" ? moved(drag.box, right, down, this.view) : resized(drag.box, drag.sides, right, down, this.view);
      this.draft[this.selected] = { ...change, score: null };
    }
    this.page.redraw();
  }

  /** Zooms by the distance of two fingers and moves by their middle. */
  pinch(id, before, now) {
    const [[, other]] = [...this.pointers].filter(([key]) => key !== id);
    const distance = (point) => Math.max(Math.hypot(point.x - other.x, point.y - other.y), 1);
    this.view.move((now.x - before.x) / 2, (now.y - before.y) / 2);
    this.view.zoom(distance(now) / distance(before), (now.x + other.x) / 2, (now.y + other.y) / 2);
    this.page.redraw();
  }

  up(event) {
    const { drag, draft } = this;
    this.stop(event.pointerId);
    if (!drag) return;
    const box = draft?.[this.selected];
    const least = (LEAST / this.view.scale) * (drag.kind === "draw");
    if (box && box.x2 - box.x1 >= least && box.y2 - box.y1 >= least) this.page.commit(draft);
    else if (draft) this.select(-1); // too small to be meant
    else this.tap(drag.at);
  }

  tap(at) {
    const found = boxesAt(this.page.boxes(), at);
    this.select(found.length ? found[(found.indexOf(this.selected) + 1) % found.length] : -1);
  }

  stop(id) {
    if (id === undefined) this.pointers.clear();
    else this.pointers.delete(id);
    const drawn = this.draft && this.selected >= this.page.boxes().length;
    this.drag = this.draft = this.point = null;
    if (id === undefined && drawn) this.selected = -1;
    this.page.redraw();
  }
}
