// What stands around the image: the title, the list of boxes, the thumbnails, the classes to choose from.

import { percent } from "./draw.mjs";

export const $ = (id) => document.getElementById(id);

/** An element with a class, a text or children. */
function element(tag, { className = "", text = "", children = [] } = {}) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...(text ? [text] : []), ...children);
  return made;
}

function swatch(color) {
  const made = element("span", { className: "swatch" });
  made.style.background = color;
  return made;
}

/** "cat", "cat and dog", "cat, dog, bird and 77 more". */
export function someOf(names, most = 3) {
  if (names.length > most) return `${names.slice(0, most).join(", ")} and ${names.length - most} more`;
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

/** "2 cat, 1 dog" for boxes. */
export function counted(boxes) {
  const counts = new Map();
  for (const { name } of boxes) counts.set(name, (counts.get(name) ?? 0) + 1);
  return [...counts].map(([name, count]) => `${count} ${name}`).join(", ");
}

export const plural = (count, word) => `${count} ${word}${count === 1 ? "" : /[sx]$/.test(word) ? "es" : "s"}`;

/** Writes the title of the page and the classes of its empty state; returns the size of the model in words. */
export function introduce({ title, imgsz }, names, palette) {
  document.title = `${title || "Detector"}: ${someOf(names)}`;
  $("title").textContent = title ? `${title} finds ${someOf(names)}` : `Finds ${someOf(names)}`;
  $("title").title = names.join(", ");
  document.querySelectorAll("#invite .boxes rect").forEach((box, i) => (box.style.stroke = palette[i % palette.length]));
  const chip = (name, i) => element("span", { className: "chip", children: [swatch(palette[i % palette.length]), name] });
  $("finds").replaceChildren(...names.slice(0, 8).map(chip));
  if (names.length > 8) $("finds").append(element("span", { className: "chip", text: `${names.length - 8} more` }));
  return `${plural(names.length, "class")}, ${imgsz[1]} × ${imgsz[0]} pixels`;
}

/**
 * Fills the list of boxes.
 *
 * @param {{mark: (index) => void, choose: (index) => void}} on mark: the pointer or the keyboard is on a row, -1 for
 *   none; choose: a row was clicked.
 */
export function fillList(boxes, palette, on) {
  $("found").replaceChildren(
    ...boxes.map((box, index) => {
      const score = box.score === null ? "yours" : percent(box.score);
      const parts = [swatch(palette[box.label % palette.length])];
      parts.push(element("span", { className: "name", text: box.name }), element("span", { className: "score", text: score }));
      const button = element("button", { children: parts });
      button.type = "button";
      button.addEventListener("click", () => on.choose(index));
      for (const kind of ["pointerenter", "focus"]) button.addEventListener(kind, () => on.mark(index));
      for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => on.mark(-1));
      const item = element("li", { children: [button] });
      item.dataset.box = [box.x1, box.y1, box.x2, box.y2, box.score ?? -1, box.label].map((v) => v.toFixed(4)).join(" ");
      return item;
    }),
  );
  $("found-title").textContent = boxes.length ? `Detections: ${boxes.length}` : "No detections";
}

/** Makes the row of one box stand out, of none for -1. */
export function markRow(index) {
  [...$("found").children].forEach((row, i) => row.classList.toggle("marked", i === index));
}

/** Fills the strip of images; with a count of boxes on each, green once a person checked them. */
export function fillStrip(images, current, count, choose) {
  const before = $("thumbnails").children;
  const items = images.map((image, i) => {
    const item = before[i]?.image === image ? before[i] : thumbnail(image, choose);
    const { firstChild: button } = item;
    const number = image.result || image.labels ? String(count(image)) : image.error ? "!" : "…";
    button.lastChild.textContent = image.labels ? `✓ ${number}` : number;
    button.classList.toggle("checked", Boolean(image.labels));
    button.setAttribute("aria-current", String(image === current));
    button.setAttribute("aria-label", `${image.name}, ${plural(Number(number) || 0, "box")}${image.labels ? ", checked" : ""}`);
    return item;
  });
  if (items.length !== before.length || items.some((item, i) => item !== before[i])) $("thumbnails").replaceChildren(...items);
  items[images.indexOf(current)]?.scrollIntoView({ block: "nearest", inline: "nearest" });
}

function thumbnail(image, choose) {
  const picture = element("img");
  picture.src = image.url;
  picture.alt = "";
  const button = element("button", { children: [picture, element("span")] });
  button.type = "button";
  button.title = image.name;
  button.addEventListener("click", () => choose(image));
  return Object.assign(element("li", { children: [button] }), { image });
}

export const NEW_CLASS = "\u0000new";

/** Fills the choice of classes, and chooses one. */
export function fillClasses(classes, chosen) {
  const options = [...classes, NEW_CLASS].map((name) => new Option(name === NEW_CLASS ? "New class …" : name, name, false, name === chosen));
  $("class").replaceChildren(...options);
}

/** Asks for the name of a new class; resolves to "" if there is none. */
export function askClass() {
  const dialog = $("class-dialog");
  $("class-name").value = dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? $("class-name").value.trim() : ""), { once: true }),
  );
}
