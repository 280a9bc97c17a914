// How one element of the step's result came about: the numbers that it was computed from, lit in their tensors. A product
// of matrices is laid out so that the row and the column meet at the element; a winner of several has an arrow.

import { h, math, svg } from "./dom.js";
import { number, real } from "./numbers.js";
import { copiedFrom, copyOf, lineOfStep } from "./lines.js";
import { key, rowOf, rows, sumsOf, unravel } from "./store.js";
import { cell, side } from "./tensors.js";

/** @import { Entry, Row, Section, Source, Sum, Tensor } from "./types.d.ts" */

/** @typedef {{ row: Row, role: Source["role"], sources: Source[], values: (Entry | undefined)[] }} Part */
/** @typedef {{ part: Part, transposed: boolean }} Placed */

const PATCHED = 144; // numbers of a large tensor that are shown
const WIDE = 5; // columns from which numbers are shortened, so that an image fits beside its kernel

/** @type {{ holder: HTMLElement, row: number, role: Source["role"] } | null} */
let shownNow = null;

export function startCloseUp() {
  const follow = (/** @type {Event} */ event) => {
    const source = event.target instanceof Element ? event.target.closest("[data-source]")?.getAttribute("data-source") : null;
    if (source) findTerms(source);
  };
  document.addEventListener("pointerover", follow);
  document.addEventListener("focusin", follow);
  window.addEventListener("resize", () => shownNow && drawArrows(shownNow.holder));
}

/**
 * The picture of a step, if the sums of its result are known.
 * @param {Section} section
 * @param {Row | null} instead the row to show, where the section is shown for several
 * @returns {HTMLElement | null}
 */
export function closeUp(section, instead) {
  const at = rowOf(section);
  shownNow = null;
  if (!at || (instead && instead !== at.row)) return null;
  const sums = sumsOf(at.row.index, at.role);
  const most = Math.max(0, ...sums.map(elementsIn));
  const first = sums.find((sum) => most && elementsIn(sum) === most);
  if (!first) return null;
  const holder = h("figure", { class: "closeup", "aria-label": "how one number is computed" });
  shownNow = { holder, row: at.row.index, role: at.role };
  drawPicture(first);
  requestAnimationFrame(() => drawArrows(holder));
  return holder;
}

/** @param {Sum} sum */
function totalOf(sum) {
  return sum.summands.reduce((all, summand) => all + real(summand.value), 0);
}

/**
 * How many elements a number is computed from. In the middle of an image they are more than at its edge.
 * @param {Sum} sum
 */
function elementsIn(sum) {
  return sum.summands.reduce((count, summand) => count + summand.sources.length, 0);
}

/**
 * Show another element of the result, if that is what a number on the page is.
 * @param {string} source
 */
function findTerms(source) {
  if (!shownNow) return;
  const sum = sumsOf(shownNow.row, shownNow.role).find((each) => [each.of, turned(each.of)].some((of) => key(of) === source));
  if (!sum || shownNow.holder.dataset.of === key(sum.of)) return;
  const focused = shownNow.holder.contains(document.activeElement) ? document.activeElement?.getAttribute("data-source") : null;
  drawPicture(sum);
  drawArrows(shownNow.holder);
  const again = focused ? shownNow.holder.querySelector(`[data-source="${focused}"]`) : null;
  if (again instanceof HTMLElement) again.focus({ preventScroll: true });
}

/**
 * An element of a result under the name that it has in the user's line: layout steps around it are left out.
 * @param {Source} of
 */
function turned(of) {
  return of.role === "value" ? copyOf(of) : copiedFrom(of, lineOfStep(of.row, of.role), true);
}

/**
 * A source of a sum under the name that it has in the user's line.
 * @param {Source} source
 * @param {Source} of
 */
function ownName(source, of) {
  return source.role === "value" ? copiedFrom(source, lineOfStep(of.row, of.role), false) : copyOf(source);
}

/** @param {Sum} sum */
function drawPicture(sum) {
  const { holder } = /** @type {NonNullable<typeof shownNow>} */ (shownNow);
  const result = turned(sum.of);
  /** @type {Map<string, Part>} */
  const parts = new Map();
  for (const summand of sum.summands) {
    summand.sources.forEach((source, place) => {
      const { row, role, index } = ownName(source, sum.of);
      const name = `${row} ${role}`;
      const part = parts.get(name) ?? { row: rows[row], role, sources: [], values: [] };
      parts.set(name, part);
      part.sources.push({ row, role, index });
      part.values.push(summand.sources.length === summand.factors.length ? summand.factors[place][1] : summand.numbers?.[place]);
    });
  }
  const all = [...parts.values()].filter((part) => block(part)?.dtype);
  const chosen = new Set((sum.chosen ?? []).map((each) => key(ownName(each, sum.of))));
  const own = { row: rows[result.row], role: result.role, sources: [result], values: [totalOf(sum)] };
  const crossed = crossing(all, own, sum);
  holder.dataset.of = key(sum.of);
  holder.style.setProperty("--cell", `${crossed ? widest([crossed[1].part, own]) : 0}ch`);
  holder.classList.toggle("crossed", Boolean(crossed));
  holder.replaceChildren(
    h("div", { class: "stage" }, crossed ? cross(crossed, own, all) : sideBySide(all, own, chosen)),
    h("figcaption", null, inWords(sum, result, chosen)),
  );
}

/** @param {Part} part */
function block(part) {
  return part.role === "gradient" ? part.row.gradient : part.row.value;
}

// -- a product of matrices --------------------------------------------------------------------------------------------

/**
 * The two matrices of a product, the one on the left and the one above, if a row and a column of them make the element.
 * @param {Part[]} parts
 * @param {Part} own
 * @param {Sum} sum
 * @returns {[Placed, Placed] | null}
 */
function crossing(parts, own, sum) {
  const shape = block(own)?.shape ?? [];
  const products = sum.summands.filter((summand) => summand.sources.length === 2);
  const two = parts.filter((part) => part.sources.length === products.length && isFlat(part));
  if (two.length !== 2 || shape.length < 2 || !products.length || !isFlat(own)) return null;
  const [i, j] = own.sources[0].index.slice(-2);
  const [m, n] = shape.slice(-2);
  for (const [left, above] of [two, [two[1], two[0]]]) {
    const one = strip(left, i, m);
    const other = strip(above, j, n);
    if (one !== null && other !== null) return [{ part: left, transposed: one === 1 }, { part: above, transposed: other === 0 }];
  }
  return null;
}

/**
 * How many characters the longest number of some parts has: their columns stand above each other.
 * @param {Part[]} parts
 */
function widest(parts) {
  const lengths = parts.flatMap((part) => (block(part)?.entries ?? []).map((entry) => number(entry).length));
  return Math.min(9, Math.max(1, ...lengths));
}

/**
 * Whether all elements of a part that are used lie in one matrix.
 * @param {Part} part
 */
function isFlat(part) {
  const lead = part.sources.map((source) => source.index.slice(0, -2).join());
  return Boolean(block(part)?.entries) && new Set(lead).size === 1;
}

/**
 * The axis, 0 or 1, along which the used elements of a matrix have one index, if they are its whole row or column there.
 * @param {Part} part
 * @param {number} index
 * @param {number} size of that axis
 */
function strip(part, index, size) {
  const shape = block(part)?.shape.slice(-2) ?? [];
  if (shape.length !== 2) return null;
  for (const axis of [0, 1]) {
    const others = new Set(part.sources.map((source) => source.index.slice(-2)[1 - axis]));
    const fixed = part.sources.every((source) => source.index.slice(-2)[axis] === index);
    if (fixed && shape[axis] === size && others.size === shape[1 - axis] && others.size === part.sources.length) return axis;
  }
  return null;
}

/**
 * @param {[Placed, Placed]} placed
 * @param {Part} own
 * @param {Part[]} all
 */
function cross([left, above], own, all) {
  const rest = all.filter((part) => part !== left.part && part !== above.part);
  return [
    h("div", { class: "above" }, matrix(above.part, above.transposed)),
    h("div", { class: "left" }, matrix(left.part, left.transposed)),
    h("div", { class: "own" }, matrix(own, false, "here")),
    rest.length ? h("div", { class: "rest" }, rest.flatMap((part) => [h("span", { class: "sign" }, "+"), matrix(part, false)])) : null,
  ];
}

// -- any other step ---------------------------------------------------------------------------------------------------

/**
 * @param {Part[]} all
 * @param {Part} own
 * @param {Set<string>} chosen
 */
function sideBySide(all, own, chosen) {
  return h("div", { class: "line" }, all.map((part) => matrix(part, false, "used", chosen)), h("span", { class: "sign", "aria-hidden": "true" }, "→"), matrix(own, false, "here"));
}

/**
 * The slices of a tensor in which elements are lit, under its symbol.
 * @param {Part} part
 * @param {boolean} transposed
 * @param {string} mark
 * @param {Set<string>} [chosen]
 */
function matrix(part, transposed, mark = "used", chosen = new Set()) {
  const shown = /** @type {Tensor} */ (block(part));
  const lit = new Set(part.sources.map(key));
  const symbol = h("div", { class: "whose-grid" }, math(shown.symbol), transposed ? h("sup", null, "T") : null);
  const slices = shown.entries ? [...new Set(part.sources.map((source) => source.index.slice(0, -2).join()))] : [];
  const grids = slices.map((lead) => sliceOf(part, shown, lead, transposed, mark, lit, chosen));
  return h("div", { class: `tensor-part ${side(shown)}` }, symbol, shown.entries ? grids : patch(part, shown, mark, chosen));
}

/**
 * @param {Part} part
 * @param {Tensor} shown
 * @param {string} lead
 * @param {boolean} transposed
 * @param {string} mark
 * @param {Set<string>} lit
 * @param {Set<string>} chosen
 */
function sliceOf(part, shown, lead, transposed, mark, lit, chosen) {
  const entries = shown.entries ?? [];
  const most = Math.max(0, ...entries.map((entry) => Math.abs(real(entry))).filter(Number.isFinite)) || 1;
  const [height, width] = [shown.shape.at(-2) ?? 1, shown.shape.at(-1) ?? 1];
  const before = lead === "" ? [] : lead.split(",").map(Number);
  const start = before.reduce((place, each, axis) => place * shown.shape[axis] + each, 0) * height * width;
  const [lines, columns] = transposed ? [width, height] : [height, width];
  const at = (/** @type {number} */ across, /** @type {number} */ column) => {
    const place = start + across * width + column;
    const source = key({ row: part.row.index, role: part.role, index: unravel(place, shown.shape) });
    const made = cell(entries[place], most, /int|bool/.test(shown.dtype), source, across + column === 0);
    if (columns >= WIDE) shorten(made, entries[place]);
    if (lit.has(source)) made.classList.add(mark);
    if (chosen.has(source)) made.classList.add("chosen");
    return made;
  };
  const table = h(
    "table",
    { class: "grid", "aria-label": `${part.role === "gradient" ? "gradient of " : ""}${part.row.name}${lead && `[${lead}]`}` },
    h("tbody", null, Array.from({ length: lines }, (_, i) => h("tr", null, Array.from({ length: columns }, (__, j) => (transposed ? at(j, i) : at(i, j)))))),
  );
  return lead === "" ? table : h("div", { class: "slice" }, h("span", { class: "facts" }, `[${lead}]`), table);
}

/**
 * Two digits of a number; pointing at it tells all.
 * @param {HTMLElement} made
 * @param {Entry} entry
 */
function shorten(made, entry) {
  const text = made.textContent ?? "";
  if (typeof entry !== "number" || text.length < 6) return;
  const size = Math.abs(entry);
  made.title = text;
  made.textContent = size >= 0.01 && size < 1000 ? entry.toFixed(size < 10 ? 2 : 0) : entry.toExponential(0);
}

/**
 * Of a tensor whose numbers are not on the page: those that are used, in the rectangle that they fill.
 * @param {Part} part
 * @param {Tensor} shown
 * @param {string} mark
 * @param {Set<string>} chosen
 */
function patch(part, shown, mark, chosen) {
  const axes = shown.shape.map((_, axis) => part.sources.map((source) => source.index[axis]));
  const ends = axes.map((places) => [Math.min(...places), Math.max(...places)]);
  const said = ends.map(([low, high]) => (low === high ? String(low) : `${low}:${high + 1}`));
  const facts = h("div", { class: "facts" }, `[${said.join(", ")}] of ${shown.shape.join(" × ")}`);
  const [across, down] = [ends.at(-1) ?? [0, 0], ends.at(-2) ?? [0, 0]];
  const known = new Map(part.sources.map((source, place) => [source.index.slice(-2).join(), part.values[place]]));
  const flat = ends.slice(0, -2).every(([low, high]) => low === high);
  const whole = flat && known.size <= PATCHED && known.size === (across[1] - across[0] + 1) * (down[1] - down[0] + 1);
  if (!whole || [...known.values()].includes(undefined)) return facts;
  const most = Math.max(...[...known.values()].map((value) => Math.abs(real(value ?? 0)))) || 1;
  const winners = new Set(part.sources.filter((source) => chosen.has(key(source))).map((source) => source.index.slice(-2).join()));
  const one = (/** @type {string} */ at) => patched(known.get(at) ?? 0, most, across[1] - across[0] + 1, winners.has(at) ? [mark, "chosen"] : [mark]);
  const lines = range(down).map((i) => h("tr", null, range(across).map((j) => one(shown.shape.length > 1 ? `${i},${j}` : `${j}`))));
  return [facts, h("table", { class: "grid", "aria-label": `${part.row.name}[${said.join(", ")}]` }, h("tbody", null, lines))];
}

/**
 * @param {Entry} entry
 * @param {number} most
 * @param {number} columns
 * @param {string[]} marks
 */
function patched(entry, most, columns, marks) {
  const made = cell(entry, most, false, null, false);
  made.classList.add(...marks);
  if (columns >= WIDE) shorten(made, entry);
  return made;
}

/** @param {number[]} ends */
function range([low, high]) {
  return Array.from({ length: high - low + 1 }, (_, place) => low + place);
}

// -- in words ---------------------------------------------------------------------------------------------------------

/** @param {Source} source */
function elementName(source) {
  const { name } = rows[source.row];
  return `${source.role === "gradient" ? `dJ/d${name}` : name}${source.index.length ? `[${source.index.join(",")}]` : ""}`;
}

/**
 * The calculation, with the names that the numbers have in the user's line.
 * @param {Sum} sum
 * @param {Source} result
 * @param {Set<string>} chosen
 */
function inWords(sum, result, chosen) {
  const sources = sum.summands.flatMap((summand) => summand.sources);
  const names = new Map([[elementName(sum.of), elementName(result)], ...sources.map((source) => /** @type {const} */ ([elementName(source), elementName(ownName(source, sum.of))]))]);
  const parts = [...names.keys()].sort((one, other) => other.length - one.length).map((name) => name.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const said = sum.text.replace(new RegExp(parts.join("|"), "g"), (name) => names.get(name) ?? name);
  const tie = chosen.size > 1 ? ` A tie: ${chosen.size} elements have this number.` : "";
  return h("p", null, said, tie && h("strong", null, tie));
}

/** @param {HTMLElement} holder */
function drawArrows(holder) {
  holder.querySelector("svg.arrows")?.remove();
  const stage = holder.querySelector(".stage");
  const target = holder.querySelector("td.here")?.getBoundingClientRect();
  const winners = [...holder.querySelectorAll("td.chosen")].map((winner) => winner.getBoundingClientRect());
  const frame = stage?.getBoundingClientRect();
  if (!stage || !frame?.width || !target || !winners.length) return;
  const paths = winners.map((from) => {
    const [left, top] = [frame.left - stage.scrollLeft, frame.top];
    if (target.top > from.bottom && target.left < from.right) {
      const [x, tx] = [from.left + from.width / 2 - left, target.left + target.width / 2 - left];
      return svg("path", { d: `M ${x} ${from.bottom - top} L ${tx} ${target.top - top - 3} m -4 -6 l 4 6 l 4 -6` });
    }
    const [x, y] = [from.right - left, from.top + from.height / 2 - top];
    const [tx, ty] = [target.left - left, target.top + target.height / 2 - top];
    const bend = Math.max(20, Math.abs(tx - x) / 2);
    return svg("path", { d: `M ${x} ${y} C ${x + bend} ${y} ${tx - bend} ${ty} ${tx - 3} ${ty} m -6 -4 l 6 4 l -6 4` });
  });
  stage.append(svg("svg", { class: "arrows", width: stage.scrollWidth, height: frame.height, "aria-hidden": "true" }, paths));
}
