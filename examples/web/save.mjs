// What a person takes away: the image with its boxes, a table, a zip of images and labels.

import { drawBoxes } from "./draw.mjs";
import { CSV_HEADER, csv, csvRows, dataYaml, labelFile } from "./formats.mjs";
import { $, plural } from "./panel.mjs";
import { zip } from "./zip.mjs";

const LEAST_SIDE = 960; // pixels of the longer side of a saved image, so that labels in small ones can be read
const JPEG = { type: "image/jpeg", quality: 0.92 };

/** Hands a file to the browser's downloads. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000); // the browser may still be reading it
}

/** The image of a bitmap or canvas with boxes on it, as a PNG or JPEG, enlarged if it is small. */
export function picture(source, boxes, palette, png) {
  const scale = Math.max(LEAST_SIDE / Math.max(source.width, source.height), 1);
  const area = { width: Math.round(source.width * scale), height: Math.round(source.height * scale) };
  const canvas = new OffscreenCanvas(area.width, area.height);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, area.width, area.height);
  const scaled = boxes.map((box) => ({ ...box, x1: box.x1 * scale, y1: box.y1 * scale, x2: box.x2 * scale, y2: box.y2 * scale }));
  drawBoxes(context, scaled, { palette, area, unit: Math.max(area.width, area.height) / LEAST_SIDE });
  return canvas.convertToBlob(png ? { type: "image/png" } : JPEG);
}

/** The table of the boxes of images. `boxesOf`: the boxes of one. */
export function table(images, boxesOf, classes) {
  const rows = images.flatMap((image) => csvRows({ ...image, checked: image.labels !== null }, boxesOf(image), classes));
  return new Blob(["\ufeff", csv([CSV_HEADER, ...rows])], { type: "text/csv" }); // the mark: spreadsheets read UTF-8
}

/** A zip of images, labels, data.yaml and classes.txt, which train.py reads after it is unpacked. */
export function labelZip(images, boxesOf, classes) {
  const files = images.flatMap((image) => [
    [`images/${image.name}`, image.file],
    [`labels/${image.name.replace(/\.[^.]*$/, "")}.txt`, labelFile(boxesOf(image), image.width, image.height, classes)],
  ]);
  const lists = [["classes.txt", classes.map((name) => `${name}\n`).join("")], ["data.yaml", dataYaml(classes)]];
  return zip([...lists, ...files]);
}

/** Asks what to save. */
export function openSave(app) {
  if ($("save").disabled) return;
  const { list } = app.images;
  const checked = list.filter((image) => image.labels).length;
  $("save-image-note").textContent = app.live.on ? "this frame" : app.current.name;
  $("save-labels-note").textContent = `Zip with YOLO labels of ${plural(list.length, "image")}, ${checked} checked`;
  $("save-csv").disabled = $("save-labels").disabled = !list.length;
  $("only-checked").checked = checked > 0;
  $("only-checked").disabled = !checked;
  $("save-dialog").showModal();
}

export async function savePicture(app) {
  const name = app.live.on ? "frame.jpg" : app.current.name;
  const png = name.toLowerCase().endsWith(".png");
  const blob = await picture(app.stage.source, app.boxes(), app.stage.palette, png);
  download(blob, `${name.replace(/\.[^.]*$/, "")}-boxes.${png ? "png" : "jpg"}`);
}

export async function saveCsv(app) {
  await app.images.detectAll();
  download(table(app.images.list, (image) => app.boxesOf(image), app.images.classes), "boxes.csv");
}

export async function saveLabels(app) {
  const only = $("only-checked").checked;
  if (!only) await app.images.detectAll();
  const chosen = app.images.list.filter((image) => image.labels || !only);
  download(await labelZip(chosen, (image) => app.boxesOf(image), app.images.classes), "labels.zip");
}
