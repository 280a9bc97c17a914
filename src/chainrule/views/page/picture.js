// The picture of the graph: it fits, zooms and is dragged; a vertex leads to its step, and the current one is marked.

import { addressOf } from "./lines.js";
import { byId, h } from "./dom.js";
import { rows } from "./store.js";

/** @typedef {{ x: number, y: number, width: number, height: number }} Box */

const CLOSEST = 0.05; // of the whole, that can be seen at once

/** @type {SVGSVGElement | null} */
let graph = null;
/** @type {Box} */
let whole = { x: 0, y: 0, width: 1, height: 1 };
/** @type {Box} */
let seen = whole;
/** @type {{ row: number, role: string } | null} */
let followed = null;

/** Draw the picture, once. */
export function startPicture() {
  const template = /** @type {HTMLTemplateElement} */ (byId("picture-source"));
  graph = /** @type {SVGSVGElement} */ (template.content.querySelector("svg")?.cloneNode(true));
  const box = graph.viewBox.baseVal;
  whole = { x: box.x, y: box.y, width: box.width, height: box.height };
  graph.removeAttribute("width");
  graph.removeAttribute("height");
  graph.setAttribute("role", "group");
  for (const vertex of graph.querySelectorAll("[data-row]")) link(vertex);
  const buttons = [["+", "zoom in", () => zoom(0.6)], ["−", "zoom out", () => zoom(1 / 0.6)], ["fit", "show all of it", () => look(whole)]];
  const tools = h("div", { class: "zoom" }, buttons.map(([text, label, act]) => h("button", { type: "button", "aria-label": label, onclick: act }, String(text))));
  byId("picture").append(tools, graph);
  graph.addEventListener("wheel", onWheel, { passive: false });
  graph.addEventListener("pointerdown", drag);
  byId("picture").addEventListener("keydown", onPictureKey);
  look(whole);
  followInPicture(followed);
}

/** @param {Element} vertex */
function link(vertex) {
  const row = rows[Number(vertex.getAttribute("data-row"))];
  const anchor = row.forward ?? row.backward?.[0] ?? row.updates?.[0];
  if (!anchor) return;
  const lead = document.createElementNS("http://www.w3.org/2000/svg", "a");
  lead.setAttribute("href", addressOf(anchor, row));
  lead.setAttribute("aria-label", row.name);
  vertex.replaceWith(lead);
  lead.append(vertex);
}

/**
 * Mark the vertex of the current step, and bring it into sight.
 * @param {{ row: number, role: string } | null} at
 */
export function followInPicture(at) {
  followed = at;
  if (!graph) return;
  for (const old of graph.querySelectorAll(".current")) old.classList.remove("current");
  const vertex = at && graph.querySelector(`[data-row="${at.row}"]`);
  if (!(vertex instanceof SVGGElement)) return;
  vertex.classList.add("current");
  const { x, y, width, height } = vertex.getBBox();
  const inside = x >= seen.x && y >= seen.y && x + width <= seen.x + seen.width && y + height <= seen.y + seen.height;
  if (!inside && width) look({ ...seen, x: x + width / 2 - seen.width / 2, y: y + height / 2 - seen.height / 2 });
}

/** @param {Box} box */
function look(box) {
  seen = box;
  graph?.setAttribute("viewBox", `${box.x} ${box.y} ${box.width} ${box.height}`);
}

/**
 * @param {number} factor
 * @param {{ x: number, y: number }} [around] a place in the picture that stays where it is
 */
function zoom(factor, around = { x: seen.x + seen.width / 2, y: seen.y + seen.height / 2 }) {
  const by = Math.min(whole.width / seen.width, Math.max((CLOSEST * whole.width) / seen.width, factor));
  if (by * seen.width >= whole.width) return look(whole);
  look({ x: around.x - (around.x - seen.x) * by, y: around.y - (around.y - seen.y) * by, width: seen.width * by, height: seen.height * by });
}

/** @param {WheelEvent} event */
function onWheel(event) {
  event.preventDefault();
  const place = /** @type {SVGSVGElement} */ (graph).getScreenCTM()?.inverse();
  zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, place && new DOMPoint(event.clientX, event.clientY).matrixTransform(place));
}

/** @param {PointerEvent} start */
function drag(start) {
  const from = seen;
  const scale = /** @type {SVGSVGElement} */ (graph).getScreenCTM()?.a ?? 1;
  const move = (/** @type {PointerEvent} */ event) => look({ ...from, x: from.x - (event.clientX - start.clientX) / scale, y: from.y - (event.clientY - start.clientY) / scale });
  const end = () => window.removeEventListener("pointermove", move);
  window.addEventListener("pointermove", move);
  window.addEventListener("pointerup", end, { once: true });
  window.addEventListener("pointercancel", end, { once: true });
}

/** @param {KeyboardEvent} event */
function onPictureKey(event) {
  const step = 0.15;
  /** @type {Record<string, () => void>} */
  const acts = {
    "+": () => zoom(0.6),
    "-": () => zoom(1 / 0.6),
    0: () => look(whole),
    ArrowUp: () => look({ ...seen, y: seen.y - step * seen.height }),
    ArrowDown: () => look({ ...seen, y: seen.y + step * seen.height }),
  };
  if (!(event.key in acts) || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  acts[event.key]();
}
