// Curves over time: the loss, with its minimum and maximum in each column, and the learning rates.

import { h, svg } from "../../views/page/dom.js";
import { number } from "../../views/page/numbers.js";
import { listen, size } from "./scene.js";

/** @import { Cell, Drawn } from "./types.d.ts" */
/** @import { Scene } from "./scene.js" */

const TALL = 100; // height in units of the drawing

/**
 * @typedef {object} Curves
 * @property {string} title
 * @property {string} hue
 * @property {Cell[][]} lines
 * @property {[Cell[], Cell[]]} [band] the minimum and the maximum
 */

/**
 * A chart of curves with one scale, linear or logarithmic.
 * @param {Scene} scene
 * @param {Curves} curves
 * @returns {HTMLElement}
 */
export function chart(scene, curves) {
  const drawing = svg("svg", { viewBox: `0 0 1000 ${TALL}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  const plot = h("div", { class: "plot", tabindex: "0", role: "img" }, drawing);
  const scale = h("div", { class: "scale-y" });
  const box = /** @type {HTMLInputElement} */ (h("input", { type: "checkbox", onchange: () => drawn.draw() }));
  const mark = listen(scene, plot);

  /** @type {Drawn} */
  const drawn = {
    mark,
    draw() {
      const parts = [...curves.lines, ...(curves.band ?? [])];
      const numbers = parts.flatMap((line) => line.slice(scene.from, scene.to).map(size));
      const [low, high] = range(numbers, box.checked);
      const y = height(low, high, box.checked);
      drawing.replaceChildren(
        ...(curves.band ? [svg("path", { class: "band", d: band(scene, curves.band, y) })] : []),
        ...curves.lines.map((line, place) => svg("path", { class: `curve curve-${place % 4}`, d: path(scene, line, y) })),
      );
      scale.replaceChildren(...[high, low].map((end) => h("span", null, Number.isFinite(end) ? number(end) : "")));
      plot.setAttribute("aria-label", `${curves.title} over time, from ${number(low)} to ${number(high)}`);
    },
  };
  scene.add(drawn);
  return h(
    "figure",
    { class: `chart ${curves.hue}` },
    h("figcaption", null, h("h2", null, curves.title), h("label", null, box, " logarithmic"), scale),
    plot,
  );
}

/**
 * @param {number[]} numbers
 * @param {boolean} logarithmic
 * @returns {[number, number]}
 */
function range(numbers, logarithmic) {
  const usable = numbers.filter((each) => Number.isFinite(each) && (!logarithmic || each > 0));
  if (!usable.length) return [NaN, NaN];
  const low = usable.reduce((least, each) => Math.min(least, each));
  const high = usable.reduce((most, each) => Math.max(most, each));
  return [low, high > low ? high : low + (Math.abs(low) || 1)];
}

/**
 * @param {number} low
 * @param {number} high
 * @param {boolean} logarithmic
 * @returns {(value: number) => number}
 */
function height(low, high, logarithmic) {
  const form = logarithmic ? Math.log : (/** @type {number} */ x) => x;
  const [bottom, top] = [form(low), form(high)];
  return (value) => TALL - 3 - ((TALL - 6) * (form(value) - bottom)) / (top - bottom);
}

/**
 * A path through the columns that have a number, with gaps at the others.
 * @param {Scene} scene
 * @param {Cell[]} line
 * @param {(value: number) => number} y
 */
function path(scene, line, y) {
  let text = "";
  let pen = "M";
  for (let column = scene.from; column < scene.to; column++) {
    const at = y(size(line[column]));
    if (Number.isFinite(at)) text += `${pen}${10 * scene.percent(column + 0.5)} ${at.toFixed(2)}`;
    pen = Number.isFinite(at) ? "L" : "M";
  }
  return text;
}

/**
 * @param {Scene} scene
 * @param {[Cell[], Cell[]]} ends
 * @param {(value: number) => number} y
 */
function band(scene, [low, high], y) {
  let text = "";
  for (let column = scene.from; column < scene.to; column++) {
    const [bottom, top] = [y(size(low[column])), y(size(high[column]))];
    if (!Number.isFinite(top)) continue;
    const [left, right] = [10 * scene.percent(column), 10 * scene.percent(column + 1)];
    const floor = Number.isFinite(bottom) ? bottom : TALL;
    text += `M${left} ${top.toFixed(2)}H${right}V${(floor + 0.3).toFixed(2)}H${left}Z`;
  }
  return text;
}
