// Pictures of many numbers. The hue says what the numbers are (values, gradients), grey marks negative ones, and the
// opacity says how large they are; so nothing depends on telling two hues apart.

import { h, svg } from "./dom.js";
import { number, real } from "./numbers.js";

/** @import { Entry, Histogram } from "./types.d.ts" */

/**
 * The distribution of a tensor's numbers.
 * @param {Histogram} bins
 * @param {string} side
 */
export function histogram(bins, side) {
  const { counts } = bins;
  const most = Math.max(...counts, 1);
  const low = real(bins.low);
  const high = real(bins.high);
  const width = 100 / counts.length;
  const bars = counts.map((count, place) =>
    svg("rect", { x: place * width, width: width * 0.92, y: 40 - (40 * count) / most, height: (40 * count) / most }),
  );
  const zero = low < 0 && high > 0 ? (-100 * low) / (high - low) : null;
  const total = counts.reduce((sum, count) => sum + count, 0);
  const sample = bins.sample ? h("span", { class: "sampled" }, `a sample of ${bins.sample.toLocaleString("en")}, at regular intervals`) : null;
  return h(
    "figure",
    { class: `histogram ${side}` },
    svg(
      "svg",
      { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `histogram of ${total} numbers` },
      bars,
      zero === null ? null : svg("line", { class: "zero", x1: zero, x2: zero, y1: 0, y2: 40 }),
    ),
    h("figcaption", null, h("span", null, number(low)), h("span", null, "count"), h("span", null, number(high)), sample),
  );
}

/**
 * A grid of numbers as a heat map, with a colour scale centred at zero.
 * @param {Entry[]} means
 * @param {number} gridRows
 * @param {number} columns
 * @param {string} side
 * @param {boolean} [small] a thumbnail: no scale, no zoom
 */
export function heatMap(means, gridRows, columns, side, small = false) {
  const numbers = means.map(real);
  const most = Math.max(...numbers.filter(Number.isFinite).map(Math.abs), 0) || 1;
  const canvas = /** @type {HTMLCanvasElement} */ (
    h("canvas", { width: columns, height: gridRows, role: "img", "aria-label": `heat map, ${gridRows} x ${columns}` })
  );
  paint(canvas, numbers, most, side);
  if (small) return h("span", { class: "thumbnail" }, canvas);
  const readout = h("output", null, "");
  const frame = h("div", { class: "heat", tabindex: "0", role: "group", "aria-label": "heat map; scroll with arrow keys" }, canvas);
  let zoom = 1;
  const resize = (/** @type {number} */ factor) => {
    zoom = Math.min(32, Math.max(1, zoom * factor));
    canvas.style.width = `${100 * zoom}%`;
  };
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const row = Math.floor(((event.clientY - box.top) / box.height) * gridRows);
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    const met = numbers[row * columns + column];
    readout.textContent = met === undefined ? "" : `cell ${row}, ${column}: ${number(met)}`;
  });
  const buttons = h(
    "span",
    { class: "zoom" },
    h("button", { type: "button", "aria-label": "zoom in", onclick: () => resize(2) }, "+"),
    h("button", { type: "button", "aria-label": "zoom out", onclick: () => resize(0.5) }, "−"),
  );
  const scale = h("span", { class: `scale ${side}` }, number(-most), h("i"), "0", h("i"), number(most));
  return h("figure", { class: "heatmap" }, frame, h("figcaption", null, scale, readout, buttons));
}

/**
 * @param {HTMLCanvasElement} canvas
 * @param {number[]} numbers
 * @param {number} most
 * @param {string} side
 */
function paint(canvas, numbers, most, side) {
  const context = canvas.getContext("2d");
  if (!context) return;
  const image = context.createImageData(canvas.width, canvas.height);
  const positive = side === "gradient" ? [217, 119, 6] : [37, 99, 235];
  const negative = [100, 107, 120];
  numbers.forEach((value, place) => {
    const [red, green, blue] = value < 0 ? negative : positive;
    const strength = Number.isFinite(value) ? Math.sqrt(Math.abs(value) / most) : 1;
    const colour = Number.isFinite(value) ? [red, green, blue, 255 * strength] : [220, 38, 38, 255];
    image.data.set(colour, 4 * place);
  });
  context.putImageData(image, 0, 0);
}

/**
 * A bar on a logarithmic scale between two powers of ten.
 * @param {number} value
 * @param {[number, number]} range
 * @param {string} side
 */
export function logBar(value, range, side) {
  const [low, high] = range;
  const finite = Number.isFinite(value);
  const part = value > 0 && finite ? (Math.log10(value) - low) / (high - low) : finite ? 0 : 1;
  const bar = h("span", { class: `bar ${side}${finite ? "" : " broken"}` });
  bar.style.width = `${Math.min(100, Math.max(value > 0 ? 1 : 0, 100 * part))}%`;
  return h("span", { class: "logbar" }, h("span", { class: "room" }, bar), h("span", { class: "figure" }, number(value)));
}

/**
 * The powers of ten around all of these.
 * @param {number[]} values
 * @returns {[number, number]}
 */
export function powers(values) {
  const sizes = values.filter((value) => value > 0 && Number.isFinite(value)).map(Math.log10);
  if (sizes.length === 0) return [-1, 0];
  const low = Math.floor(Math.min(...sizes) - 0.2);
  return [low, Math.max(low + 1, Math.ceil(Math.max(...sizes)))];
}
