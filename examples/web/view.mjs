// The part of an image that the canvas shows: scaled up or down to fit, or zoomed in.

const MOST = 40; // pixels of the page per pixel of the image

export class View {
  constructor() {
    Object.assign(this, { width: 1, height: 1, area: { width: 1, height: 1 }, scale: 1, left: 0, top: 0 });
  }

  /** Shows a whole image of width x height, in the middle of an area of the page. */
  fit(width, height, area) {
    Object.assign(this, { width, height, area });
    this.least = Math.min(area.width / width, area.height / height);
    this.zoom(0, 0, 0);
  }

  /** Scales by `factor` around a point of the page, within the limits. */
  zoom(factor, x, y) {
    const scale = Math.min(Math.max(this.scale * factor, this.least), Math.max(MOST, this.least));
    const point = this.toImage(x, y);
    this.scale = scale;
    this.move(x - (point.x * scale + this.left), y - (point.y * scale + this.top));
  }

  /** Moves the image on the page; an image that fits stays in the middle. */
  move(right, down) {
    const keep = (at, size, room) => (size <= room ? (room - size) / 2 : Math.min(Math.max(at, room - size), 0));
    this.left = keep(this.left + right, this.width * this.scale, this.area.width);
    this.top = keep(this.top + down, this.height * this.scale, this.area.height);
  }

  /** A point of the page as a point of the image. */
  toImage(x, y) {
    return { x: (x - this.left) / this.scale, y: (y - this.top) / this.scale };
  }

  /** A box of the image as a box of the page, all else kept. */
  toPage(box) {
    const { scale, left, top } = this;
    const [x1, x2] = [box.x1, box.x2].map((x) => x * scale + left);
    const [y1, y2] = [box.y1, box.y2].map((y) => y * scale + top);
    return { ...box, x1, y1, x2, y2 };
  }
}
