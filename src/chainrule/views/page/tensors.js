// Tensors: small ones as a grid of numbers, large ones as statistics and pictures.

import { heatMap, histogram } from "./charts.js";
import { h, math } from "./dom.js";
import { number, real } from "./numbers.js";
import { key, rowOfTensor, sumsOf, unravel } from "./store.js";

/** @import { Entry, Row, Tensor } from "./types.d.ts" */

const ROUNDINGS = 8; // as graph/comparison.py states it, of the size of a number and of a typical one
/** @type {Record<string, number>} */
const ROUNDING = { float64: 2 ** -52, complex128: 2 ** -52, float16: 2 ** -10, bfloat16: 2 ** -7 };
const SCROLLED = 4; // columns from which a grid may be wider than a phone
const LONG_LABELS = 24; // characters of the columns' labels above which it may be so as well
const USUAL = "float32";
const WHOLE = /^(u?int|bool)/;

/**
 * The hue of a tensor's numbers: that of gradients, or of values.
 * @param {Tensor} block
 */
export function side(block) {
  return block.role === "gradient" || block.role === "jacobian" ? block.role : "value";
}

/** @param {number[]} shape */
export function shapeText(shape) {
  return shape.length ? shape.join(" × ") : "a single number";
}

/**
 * A tensor with its symbol, shape and label.
 * @param {Tensor} block
 * @returns {HTMLElement}
 */
export function tensor(block) {
  const facts = [shapeText(block.shape), block.dtype === USUAL ? "" : block.dtype].filter(Boolean).join(", ");
  const caption = h(
    "figcaption",
    null,
    math(block.symbol),
    h("span", { class: "facts" }, block.dtype ? facts : ""),
    block.label && h("span", { class: "label" }, block.label),
  );
  return h("figure", { class: `tensor ${side(block)}` }, caption, body(block));
}

/**
 * The numbers alone.
 * @param {Tensor} block
 * @param {Row | null} [row] the row of this tensor, if the symbol does not determine it
 * @returns {HTMLElement}
 */
export function body(block, row) {
  const owner = row === undefined ? owned(block) : row;
  if (block.entries === null) return large(block, owner);
  if (block.entries.length === 0) return h("p", { class: "facts" }, "no elements");
  const [rowCount, columns] = extent(block);
  const size = rowCount * columns;
  const tables = [];
  for (let first = 0; first < block.entries.length; first += size) tables.push(grid(block, owner, first, rowCount, columns));
  const isWide = columns >= SCROLLED || (block.column_labels ?? []).join(" ").length > LONG_LABELS;
  const scrolls = isWide && !owner; // the cells of an owner can be reached with keys
  return h("div", { class: "grids", tabindex: scrolls ? "0" : null, role: scrolls ? "group" : null, "aria-label": scrolls ? plain(block, owner) : null }, tables);
}

/**
 * The row whose value or gradient a block shows: it has the same symbol and the same numbers (one contribution to a
 * gradient, or a parameter after its update, has the same symbol but other numbers).
 * @param {Tensor} block
 */
function owned(block) {
  if (block.role === "jacobian" || block.column_labels?.length) return null;
  const row = rowOfTensor(block.symbol, block.role);
  const theirs = row && tensorOf(row, block);
  return theirs && same(theirs, block) ? row : null;
}

/**
 * @param {Row} row
 * @param {Tensor} block
 */
function tensorOf(row, block) {
  return role(block) === "gradient" ? row.gradient : row.value;
}

/**
 * Whether two blocks show the same tensor; computed by our rules and by autograd, it may differ by rounding.
 * @param {Tensor} one
 * @param {Tensor} other
 */
function same(one, other) {
  const numbersOf = (/** @type {Tensor} */ block) => (block.entries ?? (block.statistics ?? []).map(([, figure]) => figure)).map(real);
  const [ours, theirs] = [numbersOf(one), numbersOf(other)];
  if (String(one.shape) !== String(other.shape) || ours.length !== theirs.length) return false;
  const eps = ROUNDING[one.dtype] ?? 2 ** -23;
  const size = one.entries ? Math.hypot(...ours.filter(Number.isFinite)) / Math.sqrt(ours.length || 1) : norm(one);
  const allowed = (/** @type {number} */ a, /** @type {number} */ b) => ROUNDINGS * eps * (Math.max(Math.abs(a), Math.abs(b)) + size);
  return ours.every((each, place) => Object.is(each, theirs[place]) || Math.abs(each - theirs[place]) <= allowed(each, theirs[place]));
}

/**
 * Rows and columns of one grid: the last two axes.
 * @param {Tensor} block
 * @returns {[number, number]}
 */
function extent(block) {
  const upright = block.shape.length === 1 && block.row_labels?.length && !block.column_labels?.length;
  if (upright) return [block.shape[0], 1];
  return [block.shape.at(-2) ?? 1, block.shape.at(-1) ?? 1];
}

/**
 * @param {Tensor} block
 * @param {Row | null} owner
 * @param {number} first
 * @param {number} rowCount
 * @param {number} columns
 */
function grid(block, owner, first, rowCount, columns) {
  const entries = /** @type {Entry[]} */ (block.entries).slice(first, first + rowCount * columns);
  const finite = entries.map((entry) => Math.abs(real(entry))).filter(Number.isFinite);
  const most = Math.max(...finite, 0) || 1;
  const whole = WHOLE.test(block.dtype);
  const lines = [];
  if (block.column_labels?.length) {
    const corner = block.row_labels?.length ? h("td", { class: "corner" }) : null;
    const heads = block.column_labels.map((label) => h("th", { scope: "col" }, label));
    lines.push(h("tr", null, corner, heads));
  }
  for (let line = 0; line < rowCount; line++) {
    const cells = [];
    for (let column = 0; column < columns; column++) {
      const place = line * columns + column;
      const source = owner && key({ row: owner.index, role: role(block), index: unravel(first + place, block.shape) });
      cells.push(cell(entries[place], most, whole, source, first + place === 0));
    }
    const label = block.row_labels?.length ? h("th", { scope: "row" }, block.row_labels[line]) : null;
    lines.push(h("tr", null, label, cells));
  }
  const slice = block.entries && block.entries.length > entries.length;
  const index = slice ? `[${unravel(first, block.shape).slice(0, -2).join(", ")}]` : "";
  const labelled = block.row_labels?.length || block.column_labels?.length;
  const table = h("table", { class: labelled ? "grid labelled" : "grid", "aria-label": `${plain(block, owner)}${index}` }, h("tbody", null, lines));
  return index ? h("div", { class: "slice" }, h("span", { class: "facts" }, index), table) : table;
}

/**
 * @param {Entry} entry
 * @param {number} most
 * @param {boolean} whole
 * @param {string | null} source
 * @param {boolean} first the first cell is in the tab order; arrow keys move between cells
 */
export function cell(entry, most, whole, source, first) {
  const value = real(entry);
  const size = Number.isFinite(value) ? Math.abs(value) / most : 1;
  const sign = value === 0 ? " zero" : value < 0 ? " negative" : "";
  const made = h(
    "td",
    { class: `number${sign}${Number.isFinite(value) ? "" : " broken"}`, "data-source": source, tabindex: source ? (first ? "0" : "-1") : null },
    number(entry, whole),
  );
  made.style.setProperty("--size", String(Math.round(100 * Math.sqrt(size)) / 100));
  return made;
}

/** @param {Tensor} block */
function role(block) {
  return block.role === "gradient" ? "gradient" : "value";
}

/**
 * @param {Tensor} block
 * @param {Row | null} owner
 */
function plain(block, owner) {
  if (!owner) return block.label || "numbers";
  return role(block) === "gradient" ? `gradient of ${owner.name}` : owner.name;
}

/**
 * @param {Tensor} block
 * @param {Row | null} owner
 */
function large(block, owner) {
  const shown = h("div", { class: "large" });
  const statistics = block.statistics ?? [];
  if (statistics.length) {
    const whole = new Set(["elements", "not finite"]);
    const said = statistics.filter(([name, figure]) => name !== "not finite" || figure !== 0);
    shown.append(
      h("dl", { class: "statistics" }, said.map(([name, figure]) => h("div", null, h("dt", null, name), h("dd", null, number(figure, whole.has(name)))))),
    );
  }
  const pictured = (owner && tensorOf(owner, block)) ?? block; // only rows have pictures, one for each tensor
  const sketch = block.sketch ?? pictured.sketch;
  const bins = block.histogram ?? pictured.histogram;
  if (sketch) shown.append(heatMap(sketch.means, sketch.rows, sketch.columns, side(block)));
  if (bins) shown.append(histogram(bins, side(block)));
  const sums = owner ? sumsOf(owner.index, role(block)) : [];
  if (sums.length) {
    const chips = sums.map((sum) => h("button", { type: "button", class: "chip", "data-source": key(sum.of) }, `[${sum.of.index.join(", ")}]`));
    shown.append(h("p", { class: "chips" }, "why this number: ", chips));
  }
  return shown;
}

/**
 * One tensor in a line of the value table: its numbers if they are few, else a thumbnail, shape and norm.
 * @param {Tensor} block
 * @param {Row} row
 */
export function brief(block, row) {
  if (!block.dtype) return h("span", { class: "facts" }, "not kept");
  if (block.entries && block.entries.length <= 24 && block.shape.length <= 2 && (block.shape.at(-1) ?? 1) <= 6) return body(block, row);
  const line = h("span", { class: "briefly" });
  if (block.sketch) line.append(heatMap(block.sketch.means, block.sketch.rows, block.sketch.columns, side(block), true));
  else if (block.entries && block.entries.length) {
    const columns = block.shape.at(-1) ?? 1;
    line.append(heatMap(block.entries, block.entries.length / columns, columns, side(block), true));
  }
  line.append(h("span", { class: "facts" }, h("span", null, shapeText(block.shape)), h("span", null, `norm ${number(norm(block))}`)));
  return line;
}

/**
 * @param {Tensor} block
 * @returns {number}
 */
export function norm(block) {
  const known = block.statistics?.find(([name]) => name === "norm");
  if (known) return real(known[1]);
  return Math.hypot(...(block.entries ?? []).map(real));
}

/**
 * The root mean square of the elements.
 * @param {Tensor} block
 * @returns {number}
 */
export function typical(block) {
  const count = block.shape.reduce((product, size) => product * size, 1);
  return count ? norm(block) / Math.sqrt(count) : NaN;
}
