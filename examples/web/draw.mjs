// Boxes and their labels on a canvas: all boxes first and the labels after, none of which covers another.

const REACH = { across: 2, up: 6 }; // how far from its box a label is looked for a place, in its own widths and heights

/** Black or white, whichever has the higher contrast on a color "#rrggbb", by its luminance as WCAG 2 defines it. */
export function textColor(color) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16) / 255);
  const [x, y, z] = [r, g, b].map((value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4));
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.179 ? "#000000" : "#ffffff";
}

/** A share 0..1 as the page writes it everywhere. */
export const percent = (share) => `${Math.round(share * 100)}%`;

/** The text of a box: its class, and the score if it is the model's. */
export const caption = ({ name, score }) => (score === null ? name : `${name} ${percent(score)}`);

/**
 * Where the labels of boxes lie: above their box if there is room, else at another side of it, else nearby.
 *
 * @param {{x1, y1, x2, y2}[]} boxes the first choose first. @param {number[]} widths of the labels.
 * @param {number} height of every label. @param {{width, height}} area that holds all labels.
 * @returns {({x, y} | null)[]} upper left corners; null where no place is free.
 */
export function placeLabels(boxes, widths, height, area) {
  const taken = [];
  return boxes.map((box, i) => {
    const width = widths[i];
    if (height > area.height) return null;
    const free = spots(box, width, height)
      .map(([x, y]) => ({
        x: Math.max(Math.min(x, area.width - width), 0),
        y: Math.max(Math.min(y, area.height - height), 0),
      }))
      .find((spot) => taken.every((other) => !meet({ ...spot, width, height }, other)));
    if (!free) return null;
    taken.push({ ...free, width, height });
    return free;
  });
}

const meet = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

/** The places of a label, the best first: at the sides of its box, then farther and farther away. */
function spots({ x1, y1, x2, y2 }, width, height) {
  const right = x2 - width;
  const near = [[x1, y1 - height], [right, y1 - height], [x1, y2], [right, y2], [x1, y1], [right, y1], [x1, y2 - height]];
  const far = [];
  for (let up = -REACH.up; up <= REACH.up; up++) {
    for (let across = -REACH.across; across <= REACH.across; across += 0.5) {
      far.push([x1 + across * width, y1 - height + up * height, Math.abs(up) + 2 * Math.abs(across)]);
    }
  }
  return [...near, ...far.sort((a, b) => a[2] - b[2])];
}

/**
 * Draws boxes and labels.
 *
 * @param {CanvasRenderingContext2D} context in units of which `area` has width x height.
 * @param {object[]} boxes in these units, with label, name and score, the best first.
 * @param {{palette: string[], area: object, unit?: number, marked?: number}} options unit: size of one pixel of the
 *   page; marked: number of a box that stands out.
 */
export function drawBoxes(context, boxes, { palette, area, unit = 1, marked = -1 }) {
  const color = ({ label }) => palette[label % palette.length];
  const order = boxes.map((_, i) => i).sort((a, b) => (a === marked) - (b === marked) || b - a); // the best on top
  for (const i of order) drawBox(context, boxes[i], color(boxes[i]), unit, i === marked);

  const texts = boxes.map(caption);
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  const widths = texts.map((text) => Math.min(context.measureText(text).width + 8 * unit, area.width));
  const first = marked in boxes ? [marked, ...boxes.keys()].filter((i, at) => at === 0 || i !== marked) : [...boxes.keys()];
  const pick = (list) => first.map((i) => list[i]);
  const height = 18 * unit;
  const places = placeLabels(pick(boxes), pick(widths), height + unit, area);
  const shown = [...first.keys()].filter((at) => places[at]);
  const rect = (at) => ({ ...places[at], width: widths[first[at]], height });
  for (const at of shown) drawLeader(context, boxes[first[at]], rect(at), color(boxes[first[at]]), unit);
  for (const at of shown) drawLabel(context, texts[first[at]], rect(at), color(boxes[first[at]]), unit);
}

function drawBox(context, { x1, y1, x2, y2 }, color, unit, marked) {
  if (marked) {
    context.globalAlpha = 0.25;
    context.fillStyle = color;
    context.fillRect(x1, y1, x2 - x1, y2 - y1);
    context.globalAlpha = 1;
  }
  context.lineJoin = "round";
  for (const [style, width] of [["#0008", 4.5], [color, marked ? 4 : 2.5]]) { // a dark edge holds on bright ground
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** A line from a label to its box, unless they touch. */
function drawLeader(context, box, { x, y, width, height }, color, unit) {
  const clip = (value, low, high) => Math.min(Math.max(value, low), high);
  const end = { x: clip(x + width / 2, box.x1, box.x2), y: clip(y + height / 2, box.y1, box.y2) };
  const start = { x: clip(end.x, x, x + width), y: clip(end.y, y, y + height) };
  if (Math.hypot(end.x - start.x, end.y - start.y) <= 2 * unit) return;
  context.strokeStyle = color;
  context.lineWidth = 1.5 * unit;
  context.beginPath();
  context.moveTo(start.x, start.y);
  context.lineTo(end.x, end.y);
  context.stroke();
}

function drawLabel(context, text, { x, y, width, height }, color, unit) {
  context.fillStyle = color;
  context.fillRect(x, y, width, height);
  context.strokeStyle = "#0008";
  context.lineWidth = unit;
  context.strokeRect(x + unit / 2, y + unit / 2, width - unit, height - unit);
  context.fillStyle = textColor(color);
  context.textBaseline = "middle";
  context.fillText(text, x + 4 * unit, y + height / 2 + unit / 2, width - 8 * unit);
}

/** Draws the eight handles of a box that is being corrected. */
export function drawHandles(context, { x1, y1, x2, y2 }, unit = 1) {
  const middle = [(x1 + x2) / 2, (y1 + y2) / 2];
  const corners = [[x1, y1], [x2, y1], [x1, y2], [x2, y2]];
  const sides = [[middle[0], y1], [middle[0], y2], [x1, middle[1]], [x2, middle[1]]];
  context.lineWidth = 2 * unit;
  for (const [points, radius] of [[sides, 4], [corners, 7]]) {
    for (const [x, y] of points) {
      context.beginPath();
      context.arc(x, y, radius * unit, 0, 2 * Math.PI);
      context.fillStyle = "#ffffff";
      context.strokeStyle = "#000000";
      context.fill();
      context.stroke();
    }
  }
}
