// The user's lines. A line is what one expression runs, with the layout steps of the expressions in it: `q @ k.T` is one
// line, though PyTorch runs eight operations. Its layout steps only lay numbers out anew, so they are folded.

import { flat, fragment, fragmentFor, rowOf, rows, stops, stopOf, unravel, uses } from "./store.js";

/** @import { Row, Source } from "./types.d.ts" */

/** @type {number[]} The first row of each row's line. */
export let lineOfRow = [];
/** @type {Map<number, Row[]>} The rows of each line that do more than lay numbers out anew, if there are any. */
const computing = new Map();
/** @type {Map<number, Row>} The result of the layout step that a stop of the walk is about, in lines that compute. */
const layoutOfStop = new Map();

/** Find the lines, once the data is read. */
export function startLines() {
  lineOfRow = linesOfCode();
  for (const row of rows) {
    const line = lineOfRow[row.index];
    if (isComputed(row) && !row.layout) computing.set(line, [...(computing.get(line) ?? []), row]);
  }
  const stepOfAnchor = new Map(rows.flatMap((row) => (row.step ? [[row.step, row]] : [])));
  stops.forEach(({ section, above }, place) => {
    const at = rowOf(section);
    const result = at?.role === "value" ? at.row : stepOfAnchor.get(above.at(-1)?.anchor ?? "");
    if (at && result && isFolded(result)) layoutOfStop.set(place, result);
  });
}

/** @param {Row} row */
function isComputed(row) {
  return row.kind === "operation" || row.kind === "loss";
}

/** For each row the first row of its line. */
function linesOfCode() {
  /** @type {number[]} */
  const found = [];
  /** @type {Row | null} */
  let last = null;
  let computes = false;
  for (const row of rows) {
    const same = last && isComputed(row) && last.place === row.place && last.module === row.module && row.place !== "" && row.expression !== "";
    /** @type {boolean} */
    const goesOn = Boolean(same && last && (last.expression === row.expression || (!computes && row.expression.includes(last.expression))));
    found.push(goesOn && last ? found[last.index] : row.index);
    if (!isComputed(row)) continue;
    computes = (goesOn && computes) || !row.layout;
    last = row;
  }
  return found;
}

/**
 * Whether a row is a layout step within a line that computes something else.
 * @param {Row} row
 */
export function isFolded(row) {
  return Boolean(row.layout) && computing.has(lineOfRow[row.index]);
}

/**
 * Whether a line computes one thing, so that its result stands for it.
 * @param {number} line
 */
export function computesOne(line) {
  return computing.get(line)?.length === 1;
}

/**
 * The line that computes a value, or passes its gradient on; -1 if several do.
 * @param {number} row
 * @param {string} role
 */
export function lineOfStep(row, role) {
  if (role === "value") return lineOfRow[row];
  return uses[row].length === 1 ? lineOfRow[uses[row][0]] : -1;
}

/**
 * The number that an element is a copy of, through the layout steps of a line.
 * @param {Source} source
 * @param {number} line
 * @param {boolean} alone for a gradient: only where the number goes nowhere else
 * @returns {Source}
 */
export function copiedFrom(source, line, alone) {
  const row = rows[source.row];
  const taken = row.taken?.[flat(source.index, row.value.shape)];
  if (taken === undefined || lineOfRow[row.index] !== line || !(alone ? computesOne(line) : computing.has(line))) return source;
  const [input] = row.inputs;
  if (alone && (uses[input].length > 1 || row.taken?.filter((each) => each === taken).length !== 1)) return source;
  return copiedFrom({ row: input, role: source.role, index: unravel(taken, rows[input].value.shape) }, line, alone);
}

/**
 * The element that is a copy of a number, through the layout steps of its line.
 * @param {Source} source
 * @returns {Source}
 */
export function copyOf(source) {
  const [next, ...more] = uses[source.row];
  if (next === undefined || more.length || !rows[next].layout || !computesOne(lineOfRow[next]) || lineOfRow[next] !== lineOfRow[source.row]) return source;
  const { taken } = rows[next];
  const place = flat(source.index, rows[source.row].value.shape);
  const at = taken?.indexOf(place) ?? -1;
  if (at < 0 || taken?.lastIndexOf(place) !== at) return source;
  return copyOf({ row: next, role: source.role, index: unravel(at, rows[next].value.shape) });
}

/**
 * Whether a stop of the walk is a layout step within a line that computes something else.
 * @param {number} stop
 */
export function isPassed(stop) {
  return layoutOfStop.has(stop);
}

/**
 * The layout steps beside a stop, in its line and its direction.
 * @param {number} stop
 * @returns {{ stop: number, result: Row }[]}
 */
export function layoutBeside(stop) {
  const at = rowOf(stops[stop].section);
  if (!at || isPassed(stop)) return [];
  const line = lineOfStep(at.row.index, at.role);
  return [...layoutOfStop].filter(([place, result]) => stops[place].phase === stops[stop].phase && lineOfRow[result.index] === line).map(([place, result]) => ({ stop: place, result }));
}

/**
 * The anchor of the step that computes what a layout step copies.
 * @param {string} anchor
 * @returns {string}
 */
function computedAt(anchor) {
  const result = layoutOfStop.get(stopOf(anchor) ?? -1);
  if (!result) return anchor;
  if (anchor !== result.forward) return result.backward?.length === 1 ? computedAt(result.backward[0]) : anchor;
  const line = computing.get(lineOfRow[result.index]) ?? [];
  return (line.findLast((row) => row.index < result.index) ?? line[0]).forward ?? anchor;
}

/**
 * The address of the step that computes a side of a row.
 * @param {string} anchor
 * @param {Row} row
 */
export function addressOf(anchor, row) {
  const found = computedAt(anchor);
  return found === anchor ? fragmentFor(anchor, row) : fragment(found);
}

/**
 * The row under whose name a line shows what a step computes.
 * @param {Row} row
 * @param {string} role
 * @returns {Row}
 */
export function rowShown(row, role) {
  if (role === "value") {
    const [next, ...more] = uses[row.index];
    const goesOn = next !== undefined && !more.length && rows[next].layout && computesOne(lineOfRow[next]) && lineOfRow[next] === lineOfRow[row.index];
    return goesOn ? rowShown(rows[next], role) : row;
  }
  const line = lineOfStep(row.index, role);
  let found = row;
  while (found.layout && computesOne(line) && lineOfRow[found.index] === line && uses[found.inputs[0]].length === 1) found = rows[found.inputs[0]];
  return found;
}
