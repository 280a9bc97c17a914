// The lab: every number that went into the step can be changed, and everything follows.

import { byId, h, math } from "./dom.js";
import { engineOfPage, indexAt, placeOf } from "./engine.js";
import { changeableField } from "./field.js";
import { curve, explained } from "./lab_words.js";
import { number } from "./numbers.js";
import { behind, rows } from "./store.js";

/** @import { Engine } from "./engine.js" */
/** @import { LabAnswer, Row } from "./types.d.ts" */

/** @typedef {{ base: number, changes: Map<string, [number, number, number]>, settings: number[], were: number[], losses: number[] }} State */
/** @typedef {{ shown: HTMLElement, old: HTMLElement, side: "values" | "gradients" | "after", row: number, place: number }} Cell */

const SHOWN_WHOLE = 64; // numbers up to which a row is shown whole, where the page has not its own program, which is small
const BEGUN = 8; // numbers that are shown of a larger one, and those that the reader asks for; both as in questions.py
const UNDONE = 200; // changes that can be undone
const REST = 120; // milliseconds after the last change until rows out of sight are written

/** @type {Engine} */
let engine;
/** @type {State} */
let state;
/** @type {State[]} */
const past = [];
/** @type {Cell[]} */
let cells = [];
/** @type {Map<string, HTMLInputElement>} by row and place */
let fields = new Map();
/** @type {Set<number>} the rows that are seen: these are written first, as a large table is slow to draw */
const inSight = new Set();
/** @type {IntersectionObserver | null} */
let sight = null;
/** @type {WeakMap<LabAnswer, Map<string, string[]>>} the numbers of an answer as they are written, by side and row */
const writings = new WeakMap();
/** @type {Map<number, HTMLInputElement>} by place among the settings */
const knobs = new Map();
/** @type {Map<number, number[]>} of large rows: the places that are shown */
const places = new Map();
/** @type {Set<number>} the rows of which the reader asked for elements */
const picked = new Set();
/** @type {{ answer: LabAnswer, key: string } | null} the base of the current state as it is without changes: in grey */
let before = null;
/** @type {LabAnswer} */
let now;
/** @type {[number, number] | null} row and place of the number that the reader is at */
let chosen = null;
/** @type {Promise<void>} */
let queue = Promise.resolve();
let asked = 0;

/**
 * Hold what computes the lab against what was recorded. Gives the reason where there is no lab.
 * @returns {string}
 */
export function startLab() {
  const found = engineOfPage();
  if (!found.engine) return found.reason;
  engine = found.engine;
  for (const row of behind ? rows : []) if (sizeOf(row) > SHOWN_WHOLE) places.set(row.index, Array.from({ length: BEGUN }, (_, place) => place));
  state = recordedState([]);
  drawLab();
  queued(() => followLab(false));
  return "";
}

/**
 * @param {number[]} losses
 * @returns {State}
 */
function recordedState(losses) {
  const settings = engine.facts.settings.map(([, value]) => value);
  return { base: 0, changes: new Map(), settings, were: settings, losses };
}

/** @param {Row} row */
function sizeOf(row) {
  return row.value.shape.reduce((product, size) => product * size, 1);
}

/**
 * The places of a row that are shown.
 * @param {Row} row
 */
function placesOf(row) {
  return places.get(row.index) ?? Array.from({ length: sizeOf(row) }, (_, place) => place);
}

// -- asking -----------------------------------------------------------------------------------------------------------

/**
 * Do one thing after the other: the engine answers one question at a time.
 * @param {() => Promise<void>} work
 */
function queued(work) {
  byId("lab").setAttribute("aria-busy", "true");
  const mine = ++asked;
  const rest = () => {
    if (mine !== asked) return;
    if (now) writeRows((row) => !inSight.has(row));
    byId("lab").setAttribute("aria-busy", "false");
  };
  queue = queue.then(work).catch(failed).then(() => void (mine === asked && setTimeout(rest, REST)));
}

/**
 * Say why there is no answer; no number is shown for one that was not computed.
 * @param {Error} error
 */
function failed(error) {
  if (now) now = { ...now, holds: false, note: "" };
  if (now) showLab();
  say(error.message);
}

/**
 * @param {boolean} step
 * @param {State} of
 */
function ask(step, of = state) {
  return engine.ask({ base: of.base, changes: [...of.changes.values()], settings: of.settings, places: [...places].filter(([row]) => picked.has(row)), chosen: of === state ? chosen : null, step });
}

/**
 * Compute the current state, and what is in grey beside it.
 * @param {boolean} compared
 */
async function followLab(compared) {
  const bare = { ...state, changes: new Map(), settings: state.were };
  const kept = JSON.stringify([bare.base, bare.settings, [...places]]);
  if (before?.key !== kept) before = { answer: await ask(false, bare), key: kept };
  if (!state.losses.length) state.losses = [before.answer.loss];
  const isChanged = state.changes.size > 0; // when asked: a reader may change a number before the answer comes
  now = await ask(false);
  showLab();
  if (compared && isChanged) compare(now, before.answer.loss);
  else if (!compared) say("");
}

/** Change the state, so that "Back" leads to what it was. */
function remember() {
  past.push({ ...state, changes: new Map(state.changes), settings: [...state.settings] });
  if (past.length > UNDONE) past.shift();
}

/**
 * @param {number} row
 * @param {number} place
 * @param {number} x
 */
function change(row, place, x) {
  const type = rows[row].value.dtype;
  state.changes.set(`${row} ${place}`, [row, place, type.includes("float") || type.includes("complex") ? x : Math.round(x)]);
  changed();
}

/** Follow the last of several changes. */
function changed() {
  const mine = asked + 1;
  queued(async () => {
    if (mine === asked) await followLab(true);
  });
}

function takeStep() {
  queued(async () => {
    remember();
    const answer = await ask(true);
    const from = now.loss;
    state = { base: answer.base, changes: new Map(), settings: state.settings, were: state.settings, losses: [...state.losses, answer.loss] };
    await followLab(false);
    compare(answer, from);
  });
}

function undo() {
  queued(async () => {
    const back = past.pop();
    if (!back) return;
    state = back;
    await followLab(false);
  });
}

function reset() {
  queued(async () => {
    remember();
    state = recordedState(state.losses.slice(0, 1));
    await followLab(false);
  });
}

// -- what a change does to the loss -----------------------------------------------------------------------------------

/**
 * Say what the gradient predicted for the loss, and what came.
 * @param {LabAnswer} answer
 * @param {number} from
 */
function compare(answer, from) {
  if (answer.note) return say(answer.note);
  const real = number(answer.loss - from);
  if (answer.predicted !== null) return say(`The change of the loss, predicted by the gradient: ${number(answer.predicted)}, real: ${real}.`);
  return say(`The loss changed by ${real}. No gradient of ${rows[answer.unpredicted ?? 0].name} was recorded to predict it.`);
}

/** @param {string} text */
function say(text) {
  byId("lab-said").textContent = text;
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function drawLab() {
  const facts = engine.facts;
  const settings = facts.settings.map(([name, value], place) => h("label", null, `${name} `, knob(place, name, value)));
  const button = (/** @type {string} */ id, /** @type {string} */ text, /** @type {() => void} */ act) => h("button", { type: "button", id, onclick: act }, text);
  const heads = ["name", "value", "gradient", facts.updates.length ? "after the step" : null];
  byId("lab").replaceChildren(
    h(
      "div",
      { class: "lab-bar" },
      facts.updates.length ? button("lab-step", "Take the step", takeStep) : h("span", { class: "facts" }, `no update here: ${facts.without || "no optimizer stepped"}`),
      button("lab-back", "Back", undo),
      button("lab-reset", "Reset", reset),
      settings,
      h("output", { id: "lab-loss" }),
      h("div", { id: "lab-curve" }),
    ),
    h("p", { class: "facts" }, "Type, drag, or step a number by the arrow keys (with Shift ten times as far). In grey: as it was. The other tabs keep the step as it was recorded."),
    ...facts.said.map((text) => h("p", { class: "facts" }, text)),
    h("p", { id: "lab-said", role: "status" }),
    h("div", { id: "lab-chosen", tabindex: 0, role: "region", "aria-label": "the gradient of the chosen number" }),
    h("table", { class: "lab-rows" },
      h("thead", null, h("tr", null, heads.map((text) => text !== null && h("th", { scope: "col" }, text)))),
      h("tbody", { id: "lab-body" }),
    ),
  );
  drawRows();
}

function drawRows() {
  cells = [];
  fields = new Map();
  const lines = rows.map(line);
  byId("lab-body").replaceChildren(...lines);
  sight?.disconnect();
  inSight.clear();
  sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const row = lines.indexOf(/** @type {HTMLElement} */ (target));
      if (!isIntersecting) inSight.delete(row);
      else if (inSight.add(row) && now) writeRows((each) => each === row);
    }
  });
  for (const each of lines) sight.observe(each);
}

/** @param {Row} row */
function line(row) {
  const { inputs, gradients, updates } = engine.facts;
  const changeable = inputs.includes(row.index);
  const name = (/** @type {number} */ place) => [row.name, indexAt(row.value.shape, place).join(",")];
  return h(
    "tr",
    { class: changeable ? "changeable" : null },
    h("th", { scope: "row" }, math(row.symbol), h("code", { class: "facts" }, row.name), places.has(row.index) ? picker(row) : null),
    h("td", { class: "lab-value" }, changeable ? laidOut(row, row.name, false, (place) => field(row.index, place, `${name(place)[0]}[${name(place)[1]}]`)) : readings(row, "values")),
    h("td", { class: "lab-gradient" }, gradients.includes(row.index) ? readings(row, "gradients") : null),
    updates.length ? h("td", null, updates.includes(row.index) ? readings(row, "after") : null) : null,
  );
}

/**
 * Of a large row an element is shown when its index is typed.
 * @param {Row} row
 */
function picker(row) {
  const shape = row.value.shape;
  const made = /** @type {HTMLInputElement} */ (h("input", { type: "text", "aria-label": `show an element of ${row.name}`, placeholder: shape.map((size) => size - 1).join(","), autocomplete: "off" }));
  made.addEventListener("change", () => {
    const index = made.value.split(/[\s,]+/).filter(Boolean).map(Number);
    const known = index.length === shape.length && index.every((each, axis) => Number.isInteger(each) && each >= 0 && each < shape[axis]);
    made.toggleAttribute("aria-invalid", !known);
    const shown = places.get(row.index) ?? [];
    if (!known || shown.includes(placeOf(shape, index))) return;
    places.set(row.index, [placeOf(shape, index), ...shown]);
    picked.add(row.index);
    drawRows();
    queued(() => followLab(true));
  });
  return h("label", { class: "facts" }, "element ", made);
}

/**
 * @param {Row} row
 * @param {Cell["side"]} side
 */
function readings(row, side) {
  return laidOut(row, `${row.name}: ${side}`, true, (place) => {
    const cell = { shown: h("span", { class: "now" }), old: h("span", { class: "was" }), side, row: row.index, place };
    cells.push(cell);
    return [cell.shown, cell.old];
  });
}

/**
 * @param {Row} row
 * @param {string} label
 * @param {boolean} fixed
 * @param {(place: number) => HTMLElement | HTMLElement[]} content
 */
function laidOut(row, label, fixed, content) {
  const large = places.has(row.index);
  const shown = placesOf(row);
  const columns = large ? 1 : (row.value.shape.at(-1) ?? 1);
  const lines = [];
  for (let first = 0; first < shown.length; first += columns) {
    const index = large ? h("td", { class: "facts" }, `[${indexAt(row.value.shape, shown[first]).join(",")}]`) : null;
    lines.push(h("tr", null, index, shown.slice(first, first + columns).map((place) => h("td", { class: "number" }, content(place)))));
  }
  const scrolls = fixed && (lines.length > 6 || columns > 5); // then it must be reached by keys, if nothing in it is
  return h("div", { class: "lab-grid", ...(scrolls && { tabindex: 0, role: "group", "aria-label": label }) }, h("table", { class: "grid", role: "presentation" }, h("tbody", null, lines)));
}

/**
 * A number of the step.
 * @param {number} row
 * @param {number} place
 * @param {string} label
 */
function field(row, place, label) {
  const typed = rows[row].value.dtype;
  const made = changeableField(label, { current: () => valueAt(now, "values", row, place), begun: remember, put: (x) => change(row, place, x), left: showLab }, typed.includes("float"));
  fields.set(`${row} ${place}`, made);
  made.addEventListener("focus", () => {
    chosen = [row, place];
    changed();
  });
  return made;
}

/**
 * A hyperparameter of the optimizer.
 * @param {number} setting
 * @param {string} name
 * @param {number} value
 */
function knob(setting, name, value) {
  const put = (/** @type {number} */ x) => {
    state.settings = state.settings.map((each, place) => (place === setting ? x : each));
    changed();
  };
  const made = changeableField(name, { current: () => state.settings[setting], begun: remember, put, left: showLab }, true);
  made.value = number(value);
  knobs.set(setting, made);
  return made;
}

// -- showing ----------------------------------------------------------------------------------------------------------

/**
 * @param {LabAnswer} answer
 * @param {Cell["side"]} side
 * @param {number} row
 * @param {number} place
 */
function valueAt(answer, side, row, place) {
  const found = answer[side].find(([of]) => of === row)?.[1];
  return found?.[places.get(row)?.indexOf(place) ?? place] ?? NaN;
}

/** Write every number where it stands. */
function showLab() {
  if (!before) return;
  const was = before.answer;
  writeRows((row) => inSight.has(row));
  for (const [place, made] of knobs) {
    if (document.activeElement !== made) made.value = number(state.settings[place]);
    made.classList.toggle("changed", state.settings[place] !== state.were[place]);
  }
  const [from, x] = [number(was.loss), number(now.loss)];
  byId("lab-loss").replaceChildren("loss ", h("b", null, now.holds ? x : "?"), from === x ? "" : h("span", { class: "was" }, from));
  if (now.note) say(now.note);
  explained(now.holds ? now.chosen : undefined);
  curve(state.losses);
}

/**
 * Write the numbers of some rows.
 * @param {(row: number) => boolean} wanted
 */
function writeRows(wanted) {
  if (!before) return;
  const both = [now, before.answer];
  const texts = (/** @type {Cell["side"]} */ side, /** @type {number} */ row, /** @type {number} */ place) => both.map((answer) => textsOf(answer, side, row)[places.get(row)?.indexOf(place) ?? place] ?? "");
  for (const { shown, old, side, row, place } of cells) {
    if (!wanted(row)) continue;
    const [x, y] = texts(side, row, place);
    write(shown, now.holds ? x : "?");
    write(old, x === y ? "" : y);
  }
  for (const [at, made] of fields) {
    const [row, place] = at.split(" ").map(Number);
    if (!wanted(row)) continue;
    const [x, y] = texts("values", row, place);
    if (document.activeElement !== made && made.value !== x) made.value = x;
    made.classList.toggle("changed", state.changes.has(at));
    const title = x === y ? "" : `was ${y}`;
    if (made.title !== title) made.title = title;
  }
}

/**
 * Write a text where it is another: what stays need not be laid out again.
 * @param {HTMLElement} element
 * @param {string} text
 */
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * The numbers of one side of a row, as text.
 * @param {LabAnswer} answer
 * @param {Cell["side"]} side
 * @param {number} row
 * @returns {string[]}
 */
function textsOf(answer, side, row) {
  const known = writings.get(answer) ?? new Map();
  writings.set(answer, known);
  const key = `${side} ${row}`;
  if (!known.has(key)) known.set(key, (answer[side].find(([of]) => of === row)?.[1] ?? []).map((x) => number(x)));
  return known.get(key);
}
