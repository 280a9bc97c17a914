// The document, with indexes for what is looked up often.

import { byId, useFormulas } from "./dom.js";

/** @import { Document, Formula, Page, Row, Section, Source, Stop, Sum } from "./types.d.ts" */

/** @type {Document} */
export let report = { title: [], summary: [], sections: [] };
/** @type {Page["lab"]} what computes for the lab, where it is not the page's own program */
export let behind;
/** @type {Row[]} */
export let rows = [];
/** @type {Stop[]} */
export const stops = [];
/** @type {number[][]} The rows that use a row. */
export let uses = [];

/** @type {Map<string, number>} */
const stopOfAnchor = new Map();
/** @type {Map<string, Row>} */
const rowOfAnchor = new Map();
/** @type {Map<string, Row | null>} */
const rowOfSymbol = new Map();
/** @type {Map<string, Sum>} */
const sumOfSource = new Map();
/** @type {Map<string, Sum[]>} */
const sumsOfSide = new Map();

/** Read the page's data, once: JSON, compressed, in base64. */
export async function load() {
  const packed = Uint8Array.from(atob(byId("data").textContent ?? ""), (letter) => letter.charCodeAt(0));
  const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  /** @type {Page} */
  const page = JSON.parse(await new Response(unpacked).text());
  report = page.document;
  behind = page.lab;
  rows = report.rows ?? [];
  useFormulas(page.math);
  for (const section of report.sections) gather(section, []);
  uses = rows.map(() => []);
  for (const row of rows) {
    for (const input of row.inputs) uses[input].push(row.index);
    // Of repeated blocks the first is shown for all: the section is about its row.
    for (const anchor of [row.forward, ...(row.backward ?? [])]) if (anchor && !rowOfAnchor.has(anchor)) rowOfAnchor.set(anchor, row);
    for (const symbol of [`value ${row.symbol}`, `gradient ${row.gradient_symbol}`]) {
      rowOfSymbol.set(symbol, rowOfSymbol.has(symbol) ? null : row);
    }
  }
  for (const sum of report.sums ?? []) {
    sumOfSource.set(key(sum.of), sum);
    const side = `${sum.of.row} ${sum.of.role}`;
    sumsOfSide.set(side, sumsOfSide.get(side) ?? []);
    sumsOfSide.get(side)?.push(sum);
  }
}

/**
 * @param {number[]} index
 * @param {number[]} shape
 */
export function flat(index, shape) {
  return index.reduce((before, each, axis) => before * shape[axis] + each, 0);
}

/**
 * The index of an element from its position in row-major order.
 * @param {number} place
 * @param {number[]} shape
 * @returns {number[]}
 */
export function unravel(place, shape) {
  const index = new Array(shape.length).fill(0);
  for (let axis = shape.length - 1; axis >= 0; axis--) {
    index[axis] = place % shape[axis];
    place = Math.floor(place / shape[axis]);
  }
  return index;
}

/**
 * A stop is a section that computes something. An overview or a note is one stop with all sections in it.
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
 * The address of a section within the page. Lone surrogates have no address, so they are replaced.
 * @param {string} anchor
 * @returns {string}
 */
export function fragment(anchor) {
  return `#${encodeURIComponent(anchor.toWellFormed())}`;
}

/**
 * The address of a section for one row: for a section that is shown for several rows it also names the row.
 * @param {string} anchor
 * @param {Row} row
 */
export function fragmentFor(anchor, row) {
  return fragment(anchor) + (rowOfAnchor.get(anchor) === row ? "" : `@${row.index}`);
}

/**
 * What an address names: a stop, and the row, if that is not the row that the section is about.
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
 * The row that a section computes, and which side of it.
 * @param {Section} section
 * @returns {{ row: Row, role: "value" | "gradient" } | null}
 */
export function rowOf(section) {
  const row = rowOfAnchor.get(section.anchor);
  return row ? { row, role: row.forward === section.anchor ? "value" : "gradient" } : null;
}

/**
 * The row whose tensor a symbol stands for, if that is unambiguous.
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
  return sumOfSource.get(text) ?? copied(text);
}

/**
 * The sum of an element that a layout step copied: that one number.
 * @param {string} text
 * @returns {Sum | undefined}
 */
function copied(text) {
  const [row, role, places] = text.split(" ");
  const { taken, inputs, name } = rows[Number(row)];
  const index = places ? places.split(",").map(Number) : [];
  const place = role === "value" ? taken?.[flat(index, rows[Number(row)].value.shape)] : undefined;
  if (place === undefined) return undefined;
  const input = rows[inputs[0]];
  const source = { row: input.index, role: /** @type {const} */ ("value"), index: unravel(place, input.value.shape) };
  const value = rows[Number(row)].value.entries?.[flat(index, rows[Number(row)].value.shape)] ?? "nan";
  const from = `${input.name}[${source.index.join(",")}]`;
  const of = { row: Number(row), role: /** @type {const} */ ("value"), index };
  return { of, text: `${name}[${index.join(",")}] = ${from}`, summands: [{ value, factors: [[from, value]], sources: [source] }] };
}

/**
 * The sums of one side of a row.
 * @param {number} row
 * @param {string} role
 * @returns {Sum[]}
 */
export function sumsOf(row, role) {
  const known = sumsOfSide.get(`${row} ${role}`) ?? [];
  if (known.length || role !== "value") return known;
  const { taken, value } = rows[row];
  return (taken ?? []).flatMap((_, place) => copied(key({ row, role, index: unravel(place, value.shape) })) ?? []);
}
