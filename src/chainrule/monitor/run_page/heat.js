// A heat map: a row for each tensor, a column for some steps. Opacity shows the size, on a logarithmic scale. The ground
// of the plot is hatched, and shows where a number is exactly 0; where there is no number the paper is painted over it.

import { h } from "../../views/page/dom.js";
import { number } from "../../views/page/numbers.js";
import { listen, size } from "./scene.js";

/** @import { Drawn, HeatMap } from "./types.d.ts" */
/** @import { Scene } from "./scene.js" */

const HUES = { gradient: [217, 119, 6], value: [37, 99, 235] };
const BROKEN = [220, 38, 38, 255];
/** Why a cell is blank. */
export const BLANK = "blank: no number, as nothing arrived at it or it took no part in these steps";
const LEGIBLE = 12; // minimum distance of two labels in pixels

/**
 * @param {Scene} scene
 * @param {HeatMap} map
 * @returns {HTMLElement}
 */
export function heat(scene, map) {
  const tall = Math.max(5, Math.min(18, Math.round(640 / map.rows.length)));
  const canvas = /** @type {HTMLCanvasElement} */ (h("canvas", { "aria-hidden": "true" }));
  const plot = h("div", { class: "plot", tabindex: "0", role: "img" }, canvas, h("i", { class: "row-line" }));
  plot.style.height = `${tall * map.rows.length}px`;
  const names = h("div", { class: "names" }, labels(map, tall));
  names.style.height = plot.style.height;
  const scale = h("span", { class: `strength ${map.hue}` });
  const numbers = map.cells.flat();
  const zeros = numbers.some((cell) => cell === 0) ? h("span", { class: "key" }, h("i", { class: "hatched" }), "exactly 0") : null;
  const blanks = numbers.includes(null) ? h("span", { class: "key" }, h("i", { class: "blank" }), BLANK) : null;
  const rowAt = (/** @type {PointerEvent} */ event) => {
    const box = plot.getBoundingClientRect();
    return map.rows[Math.floor(((event.clientY - box.top) / box.height) * map.rows.length)]?.name ?? "";
  };
  const line = listen(scene, plot, rowAt);
  const rowLine = /** @type {HTMLElement} */ (plot.querySelector(".row-line"));
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    const row = map.rows.findIndex((each) => each.name === scene.row);
    scene.point(scene.at, map.rows[Math.min(map.rows.length - 1, Math.max(0, row + by))].name);
  });

  /** @type {Drawn} */
  const drawn = {
    mark() {
      line();
      const row = map.rows.findIndex((each) => each.name === scene.row);
      rowLine.hidden = row < 0;
      rowLine.style.top = `${(100 * row) / map.rows.length}%`;
      rowLine.style.height = `${100 / map.rows.length}%`;
    },
    draw() {
      const [low, high] = paint(canvas, scene, map);
      scale.replaceChildren(h("span", null, number(low)), h("i"), h("span", null, number(high)));
      plot.setAttribute(
        "aria-label",
        `${map.title}: heat map of ${map.rows.length} tensors over time, from ${number(low)} to ${number(high)}`,
      );
    },
  };
  scene.add(drawn);
  const keys = zeros || blanks ? h("p", { class: "facts keys" }, zeros ?? "", blanks ?? "") : null;
  const left = map.left_out ? h("p", { class: "facts" }, `${map.left_out} tensors between these are not shown.`) : null;
  return h(
    "figure",
    { class: `chart heat-over-time ${map.hue}` },
    h("figcaption", null, h("h2", null, map.title), h("span", { class: "facts" }, map.about), scale, names),
    h("div", null, plot, keys, left),
  );
}

/**
 * The names of the rows, as many as fit.
 * @param {HeatMap} map
 * @param {number} tall
 */
function labels(map, tall) {
  const every = Math.ceil(LEGIBLE / tall);
  return map.rows.map((row, place) => {
    if (place % every) return null;
    const label = h("span", { title: row.type ? `${row.name} (${row.type})` : row.name }, h("bdi", null, row.name));
    label.style.top = `${place * tall + tall / 2}px`;
    return label;
  });
}

/**
 * Fill the canvas, one pixel per cell; returns the ends of the scale.
 * @param {HTMLCanvasElement} canvas
 * @param {Scene} scene
 * @param {HeatMap} map
 * @returns {[number, number]}
 */
function paint(canvas, scene, map) {
  const width = scene.to - scene.from;
  const shown = map.cells.map((row) => row.slice(scene.from, scene.to).map(size));
  const [low, high] = ends(shown.flat());
  canvas.width = width;
  canvas.height = map.rows.length;
  const context = canvas.getContext("2d");
  if (!context) return [low, high];
  const image = context.createImageData(width, map.rows.length);
  const hue = HUES[map.hue];
  const paper = (getComputedStyle(document.documentElement).backgroundColor.match(/[\d.]+/g) ?? [255, 255, 255]).slice(0, 3).map(Number);
  shown.forEach((row, place) =>
    row.forEach((value, column) => {
      if (value === 0) return;
      const relative = Math.min(1, Math.max(0, Math.log(value / low) / Math.log(high / low || 1) || 0));
      const strength = Number.isNaN(value) ? 0 : 0.07 + 0.93 * relative;
      const mixed = paper.map((part, channel) => part + (hue[channel] - part) * strength);
      const broken = value === Infinity || value === -Infinity;
      image.data.set(broken ? BROKEN : [...mixed, 255], 4 * (place * width + column));
    }),
  );
  context.putImageData(image, 0, 0);
  return [low, high];
}

/**
 * The 1st and the 99th percentile of the sizes, as the ends of the scale.
 * @param {number[]} numbers
 * @returns {[number, number]}
 */
function ends(numbers) {
  const sizes = Float64Array.from(numbers.filter((each) => each > 0 && Number.isFinite(each))).sort();
  if (!sizes.length) return [0, 0];
  const at = (/** @type {number} */ part) => sizes[Math.round(part * (sizes.length - 1))];
  const [low, high] = [at(0.01), at(0.99)];
  return high > low ? [low, high] : [low / 2, low * 2];
}
