// The document, and what is looked up in it again and again.

import { useFormulas } from "./dom.js";

/** @import { Document, Formula, Page, Row, Section, Source, Stop, Sum } from "./types.d.ts" */

/** @type {Document} */
export let told = { title: [], summary: [], sections: [] };
/** @type {Row[]} */
export let rows = [];
/** @type {Stop[]} */
export const stops = [];
/** @type {number[][]} Which rows use a row. */
export let uses = [];

/** @type {Map<string, number>} */
const stopOfAnchor = new Map();
/** @type {Map<string, Row>} */
const rowOfAnchor = new Map();
/** @type {Map<string, Row | null>} */
const rowOfSymbol = new Map();
/** @type {Map<string, Sum>} */
const sumOfSource = new Map();

/** Read the page's data, once. */
export function load() {
  const text = document.getElementById("data")?.textContent ?? "{}";
  /** @type {Page} */
  const page = JSON.parse(text);
  told = page.document;
  rows = told.rows ?? [];
  useFormulas(page.math);
  for (const section of told.sections) gather(section, []);
  uses = rows.map(() => []);
  for (const row of rows) {
    for (const input of row.inputs) uses[input].push(row.index);
    // Of blocks that are alike the first is told for all: the section is about its row.
    for (const anchor of [row.forward, ...(row.backward ?? [])]) if (anchor && !rowOfAnchor.has(anchor)) rowOfAnchor.set(anchor, row);
    for (const symbol of [`value ${row.symbol}`, `gradient ${row.gradient_symbol}`]) {
      rowOfSymbol.set(symbol, rowOfSymbol.has(symbol) ? null : row);
    }
  }
  for (const sum of told.sums ?? []) sumOfSource.set(key(sum.of), sum);
}

/**
 * The walk stops where something is worked out; what only sets the scene is one stop with all below it.
 * @param {Section} section
 * @param {Section[]} above
 */
function gather(section, above) {
  const whole = section.kind === "overview" || section.kind === "note";
  const inner = section.sections ?? [];
  if (whole || inner.length === 0) {
    for (const each of whole ? below(section) : [section]) stopOfAnchor.set(each.anchor.toWellFormed(), stops.length);
    stops.push({ section, above, whole, phase: (above[0] ?? section).anchor });
    return;
  }
  const first = stops.length;
  for (const each of inner) gather(each, [...above, section]);
  stopOfAnchor.set(section.anchor.toWellFormed(), first);
}

/**
 * @param {Section} section
 * @returns {Section[]}
 */
export function below(section) {
  return [section, ...(section.sections ?? []).flatMap(below)];
}

/**
 * @param {string} anchor
 * @returns {number | undefined}
 */
export function stopOf(anchor) {
  return stopOfAnchor.get(anchor.toWellFormed());
}

/**
 * The address of a section within the page. A name that holds half a character has no address, so it is mended first.
 * @param {string} anchor
 * @returns {string}
 */
export function fragment(anchor) {
  return `#${encodeURIComponent(anchor.toWellFormed())}`;
}

/**
 * The address of a section as one row sees it: a section that is told for many names the row that asks.
 * @param {string} anchor
 * @param {Row} row
 */
export function fragmentFor(anchor, row) {
  return fragment(anchor) + (rowOfAnchor.get(anchor) === row ? "" : `@${row.index}`);
}

/**
 * What an address names: a stop, and the row that asks where it is not the one that the section is about.
 * @param {string} address
 * @returns {{ stop: number, row: Row | null } | undefined}
 */
export function named(address) {
  const whole = stopOf(address);
  if (whole !== undefined) return { stop: whole, row: null };
  const [, anchor, index] = /^(.*)@(\d+)$/s.exec(address) ?? [];
  const stop = anchor === undefined ? undefined : stopOf(anchor);
  const row = rows[Number(index)];
  const asks = row && [row.forward, ...(row.backward ?? [])].includes(anchor);
  return stop === undefined ? undefined : { stop, row: asks ? row : null };
}

/**
 * The row that a section works out, and which side of it.
 * @param {Section} section
 * @returns {{ row: Row, role: "value" | "gradient" } | null}
 */
export function rowOf(section) {
  const row = rowOfAnchor.get(section.anchor);
  return row ? { row, role: row.forward === section.anchor ? "value" : "gradient" } : null;
}

/**
 * The row whose tensor a symbol stands for, where that is beyond doubt.
 * @param {Formula} symbol
 * @param {string} role
 * @returns {Row | null}
 */
export function rowOfTensor(symbol, role) {
  const side = role === "gradient" ? "gradient" : "value";
  return rowOfSymbol.get(`${side} ${symbol}`) ?? null;
}

/**
 * @param {Source} source
 * @returns {string}
 */
export function key(source) {
  return `${source.row} ${source.role} ${source.index.join(",")}`;
}

/**
 * @param {string} text
 * @returns {Sum | undefined}
 */
export function sumOf(text) {
  return sumOfSource.get(text);
}

/**
 * The sums that are kept for one side of a row.
 * @param {number} row
 * @param {string} role
 * @returns {Sum[]}
 */
export function sumsOf(row, role) {
  return (told.sums ?? []).filter((sum) => sum.of.row === row && sum.of.role === role);
}
