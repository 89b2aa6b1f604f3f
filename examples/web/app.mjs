// The page: detects objects in images from a file, a drop, ?image=URL or the camera, and draws their boxes.

import * as ort from "./ort/ort.wasm.min.mjs";
import { Detector } from "./detector.mjs";

const $ = (id) => document.getElementById(id);
const canvas = $("picture");
const context = canvas.getContext("2d", { willReadFrequently: true });
const video = $("video");
const ANNOUNCE_MS = 2000; // between announcements of detections in the camera's image

let detector;
let last = null; // {source, result} on display, to draw it again when a slider moves
let stream = null;
let request = 0; // number of the newest request: results of older ones are not shown

function setStatus(text, wrong = false) {
  $("status").textContent = text;
  $("status").classList.toggle("wrong", wrong);
}

const hue = (label) => (label * 137.5) % 360;
const color = (label) => `hsl(${hue(label)} 85% 45%)`;
const textColor = (label) => (hue(label) > 35 && hue(label) < 200 ? "black" : "white"); // yellow to cyan are bright

/** Runs the network on a video or bitmap and shows the boxes, unless there was a newer request meanwhile. */
async function detect(source, width, height) {
  const own = ++request;
  canvas.width = width;
  canvas.height = height;
  context.drawImage(source, 0, 0, width, height);
  const result = await detector.run(context.getImageData(0, 0, width, height));
  if (own !== request) return;
  last = { source, result };
  show();
}

/** Draws image and boxes for the sliders' values, and fills the list. */
function show() {
  const { source, result } = last;
  const start = performance.now();
  const boxes = detector.boxes(result, Number($("confidence").value), Number($("overlap").value));
  const spent = performance.now() - start;
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  [...boxes].reverse().forEach(draw); // the best on top
  $("stage").classList.add("filled");
  fillList(boxes);
  const { letterbox, network } = result.times;
  canvas.setAttribute("aria-label", boxes.length ? `Image with ${summary(boxes)}` : "Image without detections");
  const times = `${network.toFixed(0)} ms network, ${(letterbox + spent).toFixed(0)} ms before and after`;
  announce(`${summary(boxes) || "no detections"} · ${times}`);
}

let announced = 0;
function announce(text) {
  if (stream && performance.now() - announced < ANNOUNCE_MS) return;
  announced = performance.now();
  setStatus(text);
}

function summary(boxes) {
  const counts = new Map();
  for (const { name } of boxes) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
}

function draw({ x1, y1, x2, y2, score, label, name }) {
  const unit = canvas.width / (canvas.clientWidth || canvas.width); // one pixel of the page, in pixels of the image
  context.lineWidth = 2.5 * unit;
  context.strokeStyle = color(label);
  context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  const text = `${name} ${score.toFixed(2)}`;
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  const width = context.measureText(text).width + 8 * unit;
  const top = Math.max(y1 - 18 * unit, 0);
  const left = Math.max(Math.min(x1 - 1.25 * unit, canvas.width - width), 0);
  context.fillStyle = color(label);
  context.fillRect(left, top, width, 18 * unit);
  context.fillStyle = textColor(label);
  context.fillText(text, left + 4 * unit, top + 13.5 * unit);
}

function fillList(boxes) {
  $("found").replaceChildren(
    ...boxes.map((box) => {
      const item = document.createElement("li");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = color(box.label);
      const name = document.createElement("span");
      name.textContent = box.name;
      const score = document.createElement("span");
      score.textContent = `${Math.round(box.score * 100)} %`;
      item.append(swatch, name, score);
      item.dataset.box = [box.x1, box.y1, box.x2, box.y2, box.score, box.label].map((v) => v.toFixed(4)).join(" ");
      return item;
    }),
  );
}

async function openImage(blob, name) {
  stopCamera();
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none" }); // the pixels that training saw
  } catch {
    setStatus(`${name} is not an image that this browser can read`, true);
    return;
  }
  setStatus("Detecting …");
  try {
    await detect(bitmap, bitmap.width, bitmap.height);
  } catch (error) {
    setStatus(`${name} failed: ${error.message}`, true);
  }
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  video.srcObject = null;
  request++;
  $("camera").setAttribute("aria-pressed", "false");
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    setStatus("The camera needs https or localhost", true);
    return;
  }
  $("camera").disabled = true; // until the browser has asked for permission
  try {
    const opened = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    video.srcObject = stream = opened;
    $("camera").disabled = false;
    $("camera").setAttribute("aria-pressed", "true");
    await video.play();
    while (stream === opened) {
      await detect(video, video.videoWidth, video.videoHeight);
      await new Promise(requestAnimationFrame);
    }
  } catch (error) {
    if (stream || $("camera").disabled) setStatus(`No camera: ${error.message}`, true); // else the user stopped it meanwhile
    stopCamera();
  } finally {
    $("camera").disabled = false;
  }
}

function listen() {
  $("file").addEventListener("change", ({ target }) => {
    if (target.files[0]) openImage(target.files[0], target.files[0].name);
    target.value = "";
  });
  $("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
  for (const id of ["confidence", "overlap"]) {
    $(id).addEventListener("input", () => {
      $(`${id}-value`).textContent = Number($(id).value).toFixed(2);
      if (last && !stream) show();
    });
  }
  window.addEventListener("resize", () => {
    if (last && !stream) show();
  });
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
    const [file] = event.dataTransfer.files;
    if (file) openImage(file, file.name);
  });
}

async function start() {
  try {
    detector = await Detector.load(ort, new URL(".", location.href));
  } catch (error) {
    setStatus(`The model could not be loaded: ${error.message}`, true);
    return;
  }
  listen();
  $("camera").disabled = false;
  const names = Object.values(detector.meta.names);
  setStatus(`Ready. ${names.length} ${names.length === 1 ? "class" : "classes"}: ${names.slice(0, 6).join(", ")}${names.length > 6 ? " …" : ""}`);
  const url = new URLSearchParams(location.search).get("image");
  if (url) {
    const response = await fetch(url);
    if (response.ok) await openImage(await response.blob(), url);
    else setStatus(`${url}: ${response.status} ${response.statusText}`, true);
  }
  document.body.dataset.ready = "true";
}

start();
