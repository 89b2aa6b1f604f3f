// What is downloaded, as text: YOLO labels, the YAML of the data set, a table. Boxes are in pixels of their image.

/** A label file: class, center x, center y, width, height in 0..1 per line. `classes`: names in their order. */
export function labelFile(boxes, width, height, classes) {
  const line = ({ x1, y1, x2, y2, name }) => {
    const numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height];
    return `${classes.indexOf(name)} ${numbers.map((value) => value.toFixed(8)).join(" ")}\n`;
  };
  return boxes.map(line).join("");
}

/** A data.yaml for the folders images/ and labels/ beside it; names in quotes, as JSON, which YAML contains. */
export function dataYaml(classes) {
  const names = classes.map((name, index) => `  ${index}: ${JSON.stringify(name)}\n`).join("");
  return `path: .\ntrain: images\nval: images # split it before you measure anything\nnames:\n${names}`;
}

/**
 * A table of boxes. Spreadsheets run cells that start with = + - @ as formulas: text gets an apostrophe before them.
 *
 * @param {(string | number)[][]} rows
 */
export function csv(rows) {
  const cell = (value) => {
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");
}

export const CSV_HEADER = ["image", "width", "height", "class", "name", "confidence", "x1", "y1", "x2", "y2", "checked"];

/** The rows of one image's boxes; the confidence of a box that a person drew or changed is empty. */
export function csvRows(image, boxes, classes) {
  const { name, width, height, checked } = image;
  return boxes.map((box) => [
    ...[name, width, height, classes.indexOf(box.name), box.name, box.score === null ? "" : Number(box.score.toFixed(4))],
    ...[box.x1, box.y1, box.x2, box.y2].map((value) => Number(value.toFixed(2))),
    checked ? "yes" : "no",
  ]);
}

/**
 * A file name for a new image, without folders and without characters that some disk refuses; its stem is not among
 * `others`, because a label file has the stem of its image.
 */
export function imageName(name, others) {
  const plain = name.split(/[/\\]/).pop().replace(/[\u0000-\u001f<>:"|?*]/g, "_").replace(/^\.+/, "") || "image";
  const [, stem, suffix] = plain.match(/^(.+?)(\.[^.]*)?$/);
  const taken = new Set(others.map((other) => other.replace(/\.[^.]*$/, "").toLowerCase()));
  let free = stem;
  for (let copy = 2; taken.has(free.toLowerCase()); copy++) free = `${stem}-${copy}`;
  return free + (suffix ?? "");
}
