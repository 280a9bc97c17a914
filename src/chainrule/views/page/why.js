// Why this number: pointing at an element highlights the elements that it is computed from, and shows the sum.

import { h } from "./dom.js";
import { lineOf, mark } from "./values.js";
import { number } from "./numbers.js";
import { key, rows, sumOf } from "./store.js";

/** @import { Entry, Row, Source, Sum, Summand } from "./types.d.ts" */

const TERMS = 16;

/** @type {HTMLElement} */
let panel;
/** @type {string | null} */
let pinned = null;
/** @type {(anchor: string, row: Row) => void} */
let walkOn = () => {};

/**
 * @param {HTMLElement} place
 * @param {(anchor: string, row: Row) => void} walk
 */
export function startWhy(place, walk) {
  panel = place;
  walkOn = walk;
  document.addEventListener("pointerover", (event) => point(sourceAt(event.target)));
  document.addEventListener("focusin", (event) => point(sourceAt(event.target)));
  document.addEventListener("click", (event) => {
    const source = sourceAt(event.target);
    if (source) pinNumber(source);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") unpin();
    else if (sourceAt(event.target)) inGrid(event);
  });
}

/** @param {EventTarget | null} target */
function sourceAt(target) {
  const holder = target instanceof Element ? target.closest("[data-source]") : null;
  return holder?.getAttribute("data-source") ?? null;
}

/** @param {string | null} source */
function point(source) {
  if (source) show(source);
  else if (pinned) show(pinned);
}

/**
 * Show the sum behind a number until another one is asked for.
 * @param {string} source
 */
export function pinNumber(source) {
  pinned = source;
  show(source);
}

function unpin() {
  pinned = null;
  light(null, []);
  panel.replaceChildren();
  panel.hidden = true;
}

/** @param {string} source */
function show(source) {
  if (panel.dataset.of === source && !panel.hidden) return;
  panel.dataset.of = source;
  const sum = sumOf(source);
  light(source, sum ? sum.summands.flatMap((summand) => summand.sources.map(key)) : []);
  panel.replaceChildren(head(source), ...(sum ? [terms(sum), h("p", { class: "facts sum-text" }, sum.text)] : []));
  panel.hidden = false;
}

/**
 * Highlight an element, and those that it is computed from, wherever they are shown.
 * @param {string | null} asked
 * @param {string[]} factors
 */
function light(asked, factors) {
  const made = new Set(factors);
  for (const cell of document.querySelectorAll(".asked, .lit")) cell.classList.remove("asked", "lit");
  if (!asked) return;
  for (const cell of document.querySelectorAll("[data-source]")) {
    const source = cell.getAttribute("data-source") ?? "";
    if (source === asked) cell.classList.add("asked");
    else if (made.has(source)) cell.classList.add("lit");
  }
}

/**
 * @param {string} source
 */
function head(source) {
  const [row, role, index] = source.split(" ");
  const { name } = rows[Number(row)];
  const element = `${role === "gradient" ? `dJ/d${name}` : name}${index ? `[${index}]` : ""}`;
  const value = valueOf({ row: Number(row), role: /** @type {Source["role"]} */ (role), index: index ? index.split(",").map(Number) : [] });
  const close = h("button", { type: "button", class: "close", "aria-label": "close", onclick: unpin }, "×");
  return h("p", { class: `whose ${role}` }, h("code", null, element), value === undefined ? "" : ` = ${exact(value)}`, close);
}

/**
 * @param {Source} source
 * @returns {Entry | undefined}
 */
function valueOf({ row, role, index }) {
  const block = role === "gradient" ? rows[row].gradient : rows[row].value;
  const place = index.reduce((before, each, axis) => before * (block?.shape[axis] ?? 1) + each, 0);
  return block?.entries?.[place];
}

/** @param {Entry} value */
function exact(value) {
  return typeof value === "number" ? String(value) : number(value);
}

/** @param {Sum} sum */
function terms(sum) {
  const shown = sum.summands.slice(0, TERMS);
  const rest = sum.summands.length - shown.length;
  return h("ol", { class: "terms" }, shown.map((summand, place) => h("li", null, place ? "+ " : "= ", term(summand))), rest > 0 && h("li", null, `+ ${rest} more`));
}

/** @param {Summand} summand */
function term(summand) {
  const paired = summand.factors.length === summand.sources.length;
  const factors = summand.factors.flatMap(([text, value], place) => {
    const source = paired ? summand.sources[place] : undefined;
    const words = summand.factors.length > 1 ? `${text} (${number(value)})` : text;
    const made = source ? h("button", { type: "button", class: `factor ${source.role}`, onclick: () => follow(source) }, words) : h("span", null, words);
    return place ? [" · ", made] : [made];
  });
  const others = paired ? [] : summand.sources.map((source) => h("button", { type: "button", class: `factor ${source.role}`, onclick: () => follow(source) }, `go to ${rows[source.row].name}[${source.index}]`));
  const value = (factors.length ? " = " : "") + number(summand.value);
  return h("span", null, factors, value, others, summand.reason ? h("span", { class: "facts" }, ` ${summand.reason}`) : null);
}

/**
 * Go to a factor: to the step that computes it, and to its element.
 * @param {Source} source
 */
function follow(source) {
  const row = rows[source.row];
  const anchor = source.role === "gradient" ? row.backward?.[0] : row.forward;
  if (anchor) walkOn(anchor, row);
  mark({ row: source.row, role: source.role }, true);
  pinNumber(key(source));
  const cell = lineOf(source.row)?.querySelector(`[data-source="${key(source)}"]`);
  if (cell instanceof HTMLElement) cell.focus({ preventScroll: true });
}

/**
 * Arrow keys move between elements; Enter pins the sum.
 * @param {KeyboardEvent} event
 */
function inGrid(event) {
  const cell = /** @type {HTMLElement} */ (event.target).closest("td");
  if (event.key === "Enter" || event.key === " ") pinNumber(/** @type {string} */ (sourceAt(event.target)));
  if (!cell) return;
  const column = [.../** @type {HTMLElement} */ (cell.parentElement).querySelectorAll("td")].indexOf(cell);
  const line = /** @type {HTMLElement} */ (cell.parentElement);
  /** @type {Record<string, Element | null | undefined>} */
  const next = {
    ArrowLeft: cell.previousElementSibling,
    ArrowRight: cell.nextElementSibling,
    ArrowUp: line.previousElementSibling?.querySelectorAll("td")[column],
    ArrowDown: line.nextElementSibling?.querySelectorAll("td")[column],
  };
  if (!(event.key in next)) return;
  event.preventDefault();
  event.stopPropagation();
  const target = next[event.key];
  if (target instanceof HTMLElement && target.dataset.source) target.focus();
}
