// The lab: every number that went into the step can be changed, and everything follows.

import { byId, h, math, svg } from "./dom.js";
import { number } from "./numbers.js";
import { Machine, toNumber } from "./program.js";
import { report, rows } from "./store.js";

/** @import { Operand, Program, Row } from "./types.d.ts" */

/** @typedef {{ slots: Map<number, number[]>, steps: number, losses: number[] }} State */
/** @typedef {{ shown: HTMLElement, old: HTMLElement, first: Operand, later: Operand, place: number }} Cell */

const NUDGE = 0.01; // of an element's size (of 1, for one near 0), by which a measured difference moves it
const DRAGGED = 4; // pixels for one step

/** @type {Machine} */
let machine;
/** @type {Program} */
let program;
/** @type {State} */
let recorded;
/** @type {State} what the numbers in grey belong to: the step as recorded, or after the last update */
let base;
/** @type {State[]} */
const past = [];
/** @type {Cell[]} */
const cells = [];
/** @type {Map<string, HTMLInputElement>} by slot and place */
const fields = new Map();
/** @type {Map<Operand, number[]>} */
let before = new Map();
let chosen = { slot: -1, place: -1 };

/**
 * Load the program, and hold it against what was recorded. Gives the reason where there is no lab.
 * @returns {string}
 */
export function startLab() {
  if (!report.program) return report.without_program ?? "";
  program = report.program;
  machine = new Machine(program);
  for (const [row, slot] of program.inputs) {
    const known = program.values.find(([of]) => of === row);
    machine.slots[slot].set((known?.[2] ?? []).map(toNumber));
  }
  for (const [, slot, value] of program.settings ?? []) machine.slots[slot][0] = value;
  const [counter, first] = program.step ?? [-1, 1];
  if (counter >= 0) machine.slots[counter][0] = first;
  for (const { state } of program.updates ?? []) {
    for (const [, slot, numbers] of state ?? []) machine.slots[slot].set(numbers.map(toNumber));
  }
  const wrong = differs();
  if (wrong) return wrong;
  recorded = base = snapshot(0, [loss()]);
  drawLab();
  return "";
}

/** What the program computes otherwise than PyTorch did, if anything. */
function differs() {
  const expected = [...program.values, ...program.gradients];
  const { numbers, spreads } = machine.measured(expected.map(([, operand]) => operand));
  if (!machine.holds()) return "its program takes another way than the step did.";
  for (let k = 0; k < expected.length; k++) {
    const [row, operand, known] = expected[k];
    const type = program.types[slotOf(operand)];
    const off = known.findIndex((each, i) => !Machine.same(numbers[k][i], toNumber(each), spreads[k][i], type));
    if (off < 0 && known.length === numbers[k].length) continue;
    const side = k < program.values.length ? "" : "the gradient of ";
    return `its program gives ${number(numbers[k][off])} for ${side}${rows[row].name}, where ${number(toNumber(known[off]))} was recorded.`;
  }
  return "";
}

/** @param {Operand} operand */
function slotOf(operand) {
  return typeof operand === "number" ? operand : Number(operand[0]);
}

function loss() {
  const found = program.values.find(([row]) => row === program.loss);
  return found ? machine.read(found[1])[0] : NaN;
}

// -- states -----------------------------------------------------------------------------------------------------------

function variables() {
  const states = (program.updates ?? []).flatMap(({ state }) => (state ?? []).map(([, slot]) => slot));
  const counter = program.step && program.step[0] >= 0 ? [program.step[0]] : [];
  return [...program.inputs.map(([, slot]) => slot), ...(program.settings ?? []).map(([, slot]) => slot), ...states, ...counter];
}

/**
 * @param {number} steps
 * @param {number[]} losses
 * @returns {State}
 */
function snapshot(steps, losses) {
  return { slots: new Map(variables().map((slot) => [slot, Array.from(machine.slots[slot])])), steps, losses };
}

/** @param {State} state */
function restore(state) {
  for (const [slot, numbers] of state.slots) machine.slots[slot].set(numbers);
  machine.run();
}

/** The state before a change, to come back to. */
function remember() {
  past.push(snapshot(base.steps, base.losses));
  if (past.length > 200) past.shift();
}

function takeStep() {
  remember();
  const [from, gradients, numbers] = [loss(), gradientsNow(), inputsNow()];
  const first = base.steps === 0;
  /** @type {[number, number[]][]} */
  const moves = [];
  for (const update of program.updates ?? []) {
    const slot = program.inputs.find(([row]) => row === update.row)?.[1] ?? -1;
    moves.push([slot, machine.read(first ? update.first : update.later)]);
    for (const [, held, , made, later] of update.state ?? []) moves.push([held, machine.read(first ? made : later)]);
  }
  for (const [slot, made] of moves) machine.slots[slot].set(made);
  if (program.step && program.step[0] >= 0) machine.slots[program.step[0]][0] += 1;
  machine.run();
  base = snapshot(base.steps + 1, [...base.losses, loss()]);
  before = results();
  refresh();
  compare(from, numbers, gradients);
}

function undo() {
  const state = past.pop();
  if (!state) return;
  restore(state);
  if (state.steps !== base.steps) base = state.steps === 0 ? recorded : state;
  restore(base);
  before = results();
  restore(state);
  refresh();
  say("");
}

function reset() {
  remember();
  restore(recorded);
  base = recorded;
  before = results();
  refresh();
  say("");
}

/**
 * Where a cell's number is: the first step of an optimizer may be another than those after it.
 * @param {Cell} cell
 */
function operandOf(cell) {
  return base.steps === 0 ? cell.first : cell.later;
}

/** @returns {Map<Operand, number[]>} */
function results() {
  return new Map(cells.map((cell) => [operandOf(cell), machine.read(operandOf(cell))]));
}

// -- what a change does to the loss -----------------------------------------------------------------------------------

/** @returns {Map<number, number[]>} by row */
function gradientsNow() {
  return new Map(program.gradients.map(([row, operand]) => [row, machine.read(operand)]));
}

/** @returns {Map<number, number[]>} by row */
function inputsNow() {
  return new Map(program.inputs.map(([row, slot]) => [row, Array.from(machine.slots[slot])]));
}

/**
 * Say what the gradient predicted for the loss, and what came.
 * @param {number} from
 * @param {Map<number, number[]>} numbers
 * @param {Map<number, number[]>} gradients
 */
function compare(from, numbers, gradients) {
  let predicted = 0;
  for (const [row, slot] of program.inputs) {
    const moved = Array.from(machine.slots[slot], (x, i) => x - (numbers.get(row)?.[i] ?? x));
    if (moved.every((each) => each === 0)) continue;
    const gradient = gradients.get(row);
    if (!gradient) return say(`The loss changed by ${number(loss() - from)}. No gradient of ${rows[row].name} was recorded to predict it.`);
    predicted += moved.reduce((sum, each, i) => sum + each * gradient[i], 0);
  }
  say(`The change of the loss, predicted by the gradient: ${number(predicted)}, real: ${number(loss() - from)}.`);
}

/** @param {string} text */
function say(text) {
  byId("lab-said").textContent = text;
}

/** Measure the derivative of the loss by the chosen element, and say it beside the gradient. */
function measure() {
  const [row] = program.inputs.find(([, slot]) => slot === chosen.slot) ?? [-1];
  const gradient = program.gradients.find(([of]) => of === row);
  const place = byId("lab-chosen");
  if (!gradient || !program.types[chosen.slot].includes("float")) return place.replaceChildren();
  const data = machine.slots[chosen.slot];
  const kept = data[chosen.place];
  const step = NUDGE * Math.max(Math.abs(kept), 0.1);
  data[chosen.place] = kept + step;
  const above = data[chosen.place];
  machine.run();
  const high = loss();
  data[chosen.place] = kept - step;
  const below = data[chosen.place];
  machine.run();
  const low = loss();
  data[chosen.place] = kept;
  machine.run();
  const ours = machine.read(gradient[1])[chosen.place];
  place.replaceChildren(
    math(rows[row].gradient_symbol),
    `[${indexOf(rows[row], chosen.place)}] = ${number(ours)}; measured by moving it by ±${number(step)}: ${number((high - low) / (above - below))}`,
  );
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function drawLab() {
  const settings = (program.settings ?? []).map(([name, slot]) => h("label", null, `${name} `, field(slot, 0, name)));
  const updates = program.updates ?? [];
  const button = (/** @type {string} */ id, /** @type {string} */ text, /** @type {() => void} */ act) => h("button", { type: "button", id, onclick: act }, text);
  byId("lab").replaceChildren(
    h(
      "div",
      { class: "lab-bar" },
      updates.length ? button("lab-step", "Take the step", takeStep) : h("span", { class: "facts" }, `no update here: ${program.without || "no optimizer stepped"}`),
      button("lab-back", "Back", undo),
      button("lab-reset", "Reset", reset),
      settings,
      h("output", { id: "lab-loss" }),
      h("div", { id: "lab-curve" }),
    ),
    h("p", { class: "facts" }, "Type, drag, or step a number by the arrow keys (with Shift ten times as far). In grey: as it was. The other tabs keep the step as it was recorded."),
    h("p", { id: "lab-said", role: "status" }),
    h("p", { id: "lab-chosen" }),
    h("table", { class: "lab-rows" },
      h("thead", null, h("tr", null, ["name", "value", "gradient", updates.length ? "after the step" : null].map((text) => text !== null && h("th", { scope: "col" }, text)))),
      h("tbody", null, rows.map(line)),
    ),
  );
  before = results();
  refresh();
}

/** @param {Row} row */
function line(row) {
  const value = program.values.find(([of]) => of === row.index);
  const input = program.inputs.find(([of]) => of === row.index);
  const gradient = program.gradients.find(([of]) => of === row.index);
  const update = (program.updates ?? []).find((each) => each.row === row.index);
  if (!value) return null;
  return h(
    "tr",
    { class: input ? "changeable" : null },
    h("th", { scope: "row" }, math(row.symbol), h("code", { class: "facts" }, row.name)),
    h("td", { class: "lab-value" }, input ? laidOut(row, (place) => field(input[1], place, `${row.name}[${indexOf(row, place)}]`)) : readings(row, value[1])),
    h("td", { class: "lab-gradient" }, gradient ? readings(row, gradient[1]) : null),
    program.updates?.length ? h("td", null, update ? readings(row, update.first, update.later) : null) : null,
  );
}

/**
 * @param {Row} row
 * @param {Operand} first
 * @param {Operand} [later]
 */
function readings(row, first, later = first) {
  return laidOut(row, (place) => {
    const cell = { shown: h("span", { class: "now" }), old: h("span", { class: "was" }), first, later, place };
    cells.push(cell);
    return [cell.shown, cell.old];
  });
}

/**
 * @param {Row} row
 * @param {(place: number) => HTMLElement | HTMLElement[]} content
 */
function laidOut(row, content) {
  const shape = row.value.shape;
  const columns = shape.at(-1) ?? 1;
  const count = shape.reduce((product, size) => product * size, 1);
  const lines = [];
  for (let first = 0; first < count; first += columns) {
    lines.push(h("tr", null, Array.from({ length: columns }, (_, k) => h("td", { class: "number" }, content(first + k)))));
  }
  return h("div", { class: "lab-grid" }, h("table", { class: "grid", role: "presentation" }, h("tbody", null, lines)));
}

/**
 * @param {Row} row
 * @param {number} place
 */
function indexOf(row, place) {
  const index = [];
  for (const size of [...row.value.shape].reverse()) {
    index.unshift(place % size);
    place = Math.floor(place / size);
  }
  return index.join(",");
}

/**
 * A number that can be typed, stepped by the arrow keys, or dragged.
 * @param {number} slot
 * @param {number} place
 * @param {string} label
 */
function field(slot, place, label) {
  const made = /** @type {HTMLInputElement} */ (h("input", { type: "text", inputmode: "decimal", "aria-label": label, autocomplete: "off", spellcheck: "false" }));
  fields.set(`${slot} ${place}`, made);
  let remembered = false;
  const put = (/** @type {number} */ x) => {
    if (!remembered) remember();
    remembered = true;
    change(slot, place, x);
  };
  const step = () => (program.types[slot].includes("float") ? 10 ** Math.floor(Math.log10(Math.abs(machine.slots[slot][place]) || 1) - 1) : 1);
  made.addEventListener("focus", () => {
    remembered = false;
    chosen = { slot, place };
    measure();
  });
  made.addEventListener("input", () => {
    const x = Number(made.value.replace("−", "-"));
    made.toggleAttribute("aria-invalid", made.value.trim() === "" || !Number.isFinite(x));
    if (made.value.trim() !== "" && Number.isFinite(x)) put(x);
  });
  made.addEventListener("change", () => refresh());
  made.addEventListener("keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    put(machine.slots[slot][place] + way * step() * (event.shiftKey ? 10 : 1));
    made.value = number(machine.slots[slot][place]);
  });
  made.addEventListener("pointerdown", (event) => {
    if (document.activeElement === made) return;
    const [start, from, size] = [event.clientX, machine.slots[slot][place], step()];
    const move = (/** @type {PointerEvent} */ moved) => {
      const steps = Math.round((moved.clientX - start) / DRAGGED);
      if (!steps) return;
      put(from + steps * size);
      made.value = number(machine.slots[slot][place]);
    };
    window.addEventListener("pointermove", move);
    window.addEventListener("pointerup", () => window.removeEventListener("pointermove", move), { once: true });
  });
  return made;
}

/**
 * @param {number} slot
 * @param {number} place
 * @param {number} x
 */
function change(slot, place, x) {
  machine.slots[slot][place] = program.types[slot] === "integer" ? Math.round(x) : x;
  machine.run();
  const now = snapshot(base.steps, base.losses);
  restore(base);
  const [from, numbers, gradients] = [loss(), inputsNow(), gradientsNow()];
  restore(now);
  compare(from, numbers, gradients);
  refresh();
  measure();
}

/** Write every number where it stands. */
function refresh() {
  const holds = machine.holds();
  /** @type {Map<Operand, number[]>} */
  const now = new Map();
  for (const cell of cells) {
    const { shown, old, place } = cell;
    const operand = operandOf(cell);
    if (!now.has(operand)) now.set(operand, machine.read(operand));
    const x = now.get(operand)?.[place] ?? NaN;
    const was = before.get(operand)?.[place] ?? NaN;
    shown.textContent = holds ? number(x) : "?";
    old.textContent = number(x) === number(was) ? "" : number(was);
  }
  for (const [key, made] of fields) {
    const [slot, place] = key.split(" ").map(Number);
    const was = base.slots.get(slot)?.[place];
    if (document.activeElement !== made) made.value = number(machine.slots[slot][place]);
    made.classList.toggle("changed", was !== machine.slots[slot][place]);
    made.title = was === machine.slots[slot][place] || was === undefined ? "" : `was ${number(was)}`;
  }
  const [from, x] = [base.losses[base.losses.length - 1], loss()];
  byId("lab-loss").replaceChildren("loss ", h("b", null, holds ? number(x) : "?"), number(from) === number(x) ? "" : h("span", { class: "was" }, number(from)));
  if (!holds) say("With these numbers the step counts other elements than it did, and its program does not hold.");
  curve();
}

/** The loss after each step that was taken. */
function curve() {
  const losses = base.losses;
  const place = byId("lab-curve");
  if (losses.length < 2) return place.replaceChildren();
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const points = losses.map((each, i) => `${(100 * i) / (losses.length - 1)},${36 - (32 * (each - low)) / (high - low || 1)}`);
  place.replaceChildren(
    svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `loss over ${losses.length - 1} steps, from ${number(losses[0])} to ${number(losses[losses.length - 1])}` },
      svg("polyline", { points: points.join(" "), class: "lab-line" })),
    h("span", { class: "facts" }, `${losses.length - 1} ${losses.length === 2 ? "step" : "steps"}`),
  );
}
