// Ask me: gradients, values or an update as blanks. What is wrong is named by the mistakes in the document.

import { byId, h, math } from "./dom.js";
import { number, real } from "./numbers.js";
import { key, report, rows, sumOf } from "./store.js";

/** @import { Exercise, Row, Summand, Tensor } from "./types.d.ts" */

/** @typedef {{ x: number, half: number }} Typed a number, and half a unit of its last digit */
/**
 * @typedef {{
 *   exercise: Exercise, place: number, right: number, field: HTMLInputElement, mark: HTMLElement,
 *   state: "open" | "right" | "wrong" | "shown", hints: number,
 * }} Blank
 */

const ASK_BY_CHANCE = 0.05; // as in answers.py, which says why: the rules here are the same
const ASK_COARSE = 0.05;
const ASK_NAMED = 3; // mistakes from which one number comes out
const MOST_DIGITS = 7;
const GIVEN = 36; // numbers of a tensor that are written out
const ZERO_DIGITS = 0.7;

const ASKED_KINDS = { gradient: "gradients", value: "forward values", update: "updates" };
const ASK_MARKS = { open: "", right: "✓", wrong: "✗", shown: "shown" };

/** @type {Blank[]} */
let blanks = [];
/** @type {Blank | undefined} where the reader is */
let atBlank;

/** Make the tab, where the page has exercises. */
export function startAsking() {
  const exercises = report.exercises ?? [];
  byId("tab-ask").hidden = !exercises.length;
  if (!exercises.length) return;
  const kinds = Object.entries(ASKED_KINDS).filter(([kind]) => exercises.some((each) => each.asks === kind));
  const choice = /** @type {HTMLSelectElement} */ (h("select", { id: "ask-kind" }, kinds.map(([kind, text]) => h("option", { value: kind }, text))));
  choice.addEventListener("change", () => askFor(choice.value));
  const button = (/** @type {string} */ id, /** @type {string} */ text, /** @type {() => void} */ act) => h("button", { type: "button", id, onclick: act }, text);
  byId("ask").replaceChildren(
    h("div", { class: "ask-bar" },
      h("label", null, "Ask me for ", choice),
      button("ask-check", "Check", checkHere),
      button("ask-hint", "Hint", hintHere),
      button("ask-reveal", "Reveal", revealHere),
      button("ask-again", "Start again", () => askFor(choice.value)),
      h("output", { id: "ask-progress" }),
    ),
    h("p", { class: "facts" }, "Give at least two digits, rounded: 0.0247, -1.5e-3, 1/3. Enter checks."),
    h("details", { id: "ask-given" }, h("summary", null, "What is given"), h("ul")),
    h("p", { id: "ask-said", role: "status" }),
    h("div", { id: "ask-blanks" }),
  );
  askFor(choice.value);
}

/** @param {string} kind */
function askFor(kind) {
  blanks = [];
  atBlank = undefined;
  const exercises = (report.exercises ?? []).filter((each) => each.asks === kind);
  if (kind === "gradient") exercises.sort((a, b) => b.row - a.row); // from the loss back
  byId("ask-blanks").replaceChildren(...exercises.map(askedSection));
  byId("ask-given").querySelector("ul")?.replaceChildren(...rows.map((row) => h("li", null, h("code", null, givenText(row, kind)))));
  tellAsked("");
  showProgress();
}

/**
 * How a row came about, with the numbers that an exercise of this kind may use.
 * @param {Row} row
 * @param {string} kind
 */
function givenText(row, kind) {
  const isComputed = row.kind === "operation" || row.kind === "loss";
  const made = isComputed && row.expression ? ` = ${row.expression}` : "";
  const value = isComputed && kind === "value" ? "" : ` = ${nestedText(row.value)}`;
  const gradient = kind === "update" && row.kind === "parameter" && row.gradient ? `, dJ/d${row.name} = ${nestedText(row.gradient)}` : "";
  return `${row.name}${made}${value}${gradient}`;
}

/** @param {Tensor} tensor */
function nestedText({ shape, entries }) {
  if (!entries || entries.length > GIVEN) return `(${shape.join(", ")} numbers, in the tab Values)`;
  let written = entries.map((each) => number(each));
  for (const size of shape.slice().reverse()) {
    const outer = [];
    for (let k = 0; k < written.length; k += size) outer.push(`[${written.slice(k, k + size).join(", ")}]`);
    written = outer;
  }
  return written.join(", ");
}

/** @param {Exercise} exercise */
function askedSection(exercise) {
  const row = rows[exercise.row];
  const symbol = math(exercise.asks === "gradient" ? row.gradient_symbol : row.symbol);
  const shape = row.value.shape;
  const columns = shape.at(-1) ?? 1;
  const right = rightNumbers(exercise);
  const cells = right.map((x, place) => madeBlank(exercise, place, x));
  const lines = [];
  for (let first = 0; first < cells.length; first += columns) {
    lines.push(h("tr", null, cells.slice(first, first + columns).map((each) => h("td", null, each.field, each.mark))));
  }
  return h("section", { class: "ask-one", "aria-label": exercise.name },
    h("h2", null, exercise.asks === "update" ? "new " : null, symbol, " ", h("code", { class: "facts" }, exercise.name)),
    h("div", { class: "ask-grid" }, h("table", { role: "presentation" }, h("tbody", null, lines))),
  );
}

/** @param {Exercise} exercise */
function rightNumbers(exercise) {
  const row = rows[exercise.row];
  const entries = exercise.asks === "update" ? exercise.after : exercise.asks === "gradient" ? row.gradient?.entries : row.value.entries;
  return (entries ?? []).map(real);
}

/**
 * @param {Exercise} exercise
 * @param {number} place
 * @param {number} right
 * @returns {Blank}
 */
function madeBlank(exercise, place, right) {
  const field = /** @type {HTMLInputElement} */ (h("input", { type: "text", inputmode: "text", "aria-label": askedName(exercise, place), autocomplete: "off", spellcheck: "false" }));
  /** @type {Blank} */
  const made = { exercise, place, right, field, mark: h("span", { class: "ask-mark" }), state: "open", hints: 0 };
  blanks.push(made);
  field.addEventListener("focus", () => (atBlank = made));
  field.addEventListener("input", () => setBlank(made, "open"));
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    checkHere();
  });
  return made;
}

/**
 * @param {Exercise} exercise
 * @param {number} place
 */
function askedName(exercise, place) {
  const index = askedIndex(exercise, place);
  return index.length ? `${exercise.name}[${index.join(",")}]` : exercise.name;
}

/**
 * @param {Exercise} exercise
 * @param {number} place
 */
function askedIndex(exercise, place) {
  const index = [];
  for (const size of [...rows[exercise.row].value.shape].reverse()) {
    index.unshift(place % size);
    place = Math.floor(place / size);
  }
  return index;
}

// -- what the reader does ---------------------------------------------------------------------------------------------

function askedHere() {
  return atBlank ?? blanks.find((each) => each.state !== "right" && each.state !== "shown");
}

function checkHere() {
  const now = askedHere();
  if (!now) return tellAsked("All of it is done.");
  atBlank = now;
  if (now.state === "shown") return tellAsked(`${askedName(now.exercise, now.place)} was shown.`);
  const typed = typedNumber(now.field.value);
  if (!typed) {
    setBlank(now, now.field.value.trim() ? "wrong" : "open");
    now.field.focus();
    return tellAsked(now.field.value.trim() ? `“${now.field.value}” is no number. Write one such as 0.0247, -1.5e-3 or 1/3.` : `${askedName(now.exercise, now.place)} is empty.`);
  }
  if (isRight(typed, now)) return gotRight(now);
  setBlank(now, "wrong");
  now.field.focus();
  const may = Math.abs(typed.x - now.right) <= typed.half * (1 + 1e-6) + now.exercise.slack;
  tellAsked(`${askedName(now.exercise, now.place)} ${may ? "has too few digits: give at least two, and no 0 for a small number." : `is not right${mistakeAt(now)}.`}`);
}

/** @param {Blank} now */
function gotRight(now) {
  setBlank(now, "right");
  const next = blanks.slice(blanks.indexOf(now)).find((each) => each.state === "open") ?? blanks.find((each) => each.state === "open" || each.state === "wrong");
  tellAsked(`${askedName(now.exercise, now.place)} is right.${next ? "" : " All of it is done."}`);
  (next ?? now).field.focus();
}

function revealHere() {
  const now = askedHere();
  if (!now || now.state === "right") return;
  now.field.value = number(now.right);
  setBlank(now, "shown");
  now.field.focus();
  tellAsked(`${askedName(now.exercise, now.place)} = ${number(now.right)}`);
}

function hintHere() {
  const now = askedHere();
  if (!now) return;
  const given = hintsFor(now);
  now.field.focus();
  if (!given.length) return tellAsked(`There is no hint for ${askedName(now.exercise, now.place)}.`);
  const place = Math.min(now.hints, given.length - 1);
  now.hints += 1;
  tellAsked(`Hint ${place + 1} of ${given.length}: ${given[place]}`);
}

/**
 * The chain rule, then the factors, then one of several products.
 * @param {Blank} now
 * @returns {string[]}
 */
function hintsFor({ exercise, place, right }) {
  const name = askedName(exercise, place);
  const row = rows[exercise.row];
  if (exercise.asks === "update") {
    const gradient = row.gradient?.entries?.[place];
    const index = name.slice(exercise.name.length);
    const numbers = `${row.name}${index} = ${number(row.value.entries?.[place] ?? NaN)}, its gradient is ${gradient === undefined ? "not known" : number(gradient)}`;
    return [exercise.rule ?? "", numbers, `the step is ${number(right - real(row.value.entries?.[place] ?? NaN))}`].filter(Boolean);
  }
  const role = exercise.asks;
  const sum = sumOf(key({ row: exercise.row, role, index: askedIndex(exercise, place) }));
  const terms = (sum?.summands ?? []).filter((each) => each.factors.length);
  if (!sum || !terms.length) return [];
  const rule = `${name} = ${terms.map((each) => each.factors.map(([factor]) => factor).join(" · ")).join(" + ")}`;
  const known = [...new Set(terms.flatMap(knownNumbers))].join(", ");
  const one = terms.find((each) => each.factors.length > 1 && real(each.value) !== 0 && number(each.value) !== number(right));
  const product = terms.length > 1 && one ? `${one.factors.map(([factor]) => factor).join(" · ")} = ${number(one.value)}` : "";
  return [rule, known, product].filter(Boolean);
}

/**
 * The factors of a term with their numbers; of one that is a whole formula the numbers in it.
 * @param {Summand} term
 * @returns {string[]}
 */
function knownNumbers(term) {
  if (term.factors.length > 1) return term.factors.map(([name, value]) => `${name} = ${number(value)}`);
  return term.sources.map((source) => {
    const row = rows[source.row];
    const entries = source.role === "gradient" ? row.gradient?.entries : row.value.entries;
    const place = source.index.reduce((flat, i, axis) => flat * row.value.shape[axis] + i, 0);
    const index = source.index.length ? `[${source.index.join(",")}]` : "";
    return `${source.role === "gradient" ? "dJ/d" : ""}${row.name}${index} = ${number(entries?.[place] ?? NaN)}`;
  });
}

/** @param {string} text */
function tellAsked(text) {
  byId("ask-said").textContent = text;
}

function showProgress() {
  const right = blanks.filter((each) => each.state === "right").length;
  const shown = blanks.filter((each) => each.state === "shown").length;
  byId("ask-progress").textContent = `${right} of ${blanks.length} right${shown ? `, ${shown} shown` : ""}`;
}

/**
 * @param {Blank} blank
 * @param {Blank["state"]} state
 */
function setBlank(blank, state) {
  blank.state = state;
  blank.mark.textContent = ASK_MARKS[state];
  blank.field.readOnly = state === "right" || state === "shown";
  blank.field.className = `is-${state}`;
  if (state === "wrong") blank.field.setAttribute("aria-invalid", "true");
  else blank.field.removeAttribute("aria-invalid");
  showProgress();
}

// -- comparing --------------------------------------------------------------------------------------------------------

/**
 * A number as it was typed; a fraction is exact.
 * @param {string} text
 * @returns {Typed | undefined}
 */
function typedNumber(text) {
  const plain = text.replace(/−/g, "-").replace(/\s/g, "");
  const fraction = /^([-+]?[\d.]+)\/([\d.]+)$/.exec(plain);
  if (fraction) {
    const x = Number(fraction[1]) / Number(fraction[2]);
    return Number.isFinite(x) ? { x, half: 0 } : undefined;
  }
  const found = /^[-+]?(\d+(?:\.(\d*))?|\.(\d+))(?:e([-+]?\d+))?$/i.exec(plain);
  if (!found) return undefined;
  const decimals = (found[2] ?? found[3] ?? "").length - Number(found[4] ?? 0);
  return { x: Number(plain), half: 0.5 * 10 ** -decimals };
}

/**
 * @param {Typed} typed
 * @param {Blank} blank
 */
function isRight({ x, half }, { right, exercise }) {
  const off = Math.abs(x - right);
  return off <= exercise.slack || (off <= half * (1 + 1e-6) + exercise.slack && half <= ASK_COARSE * Math.abs(right));
}

/**
 * The mistake that explains the numbers of a tensor so far, as the end of a sentence.
 * @param {Blank} now
 */
function mistakeAt(now) {
  const filled = blanks
    .filter((each) => each.exercise === now.exercise && each.state !== "shown")
    .flatMap((each) => {
      const typed = typedNumber(each.field.value);
      return typed ? [{ ...typed, place: each.place, right: each.right, isRight: isRight(typed, each) }] : [];
    });
  const wrong = filled.filter((each) => !each.isRight);
  const own = filled.filter((each) => each.place === now.place);
  return mistakeFitting(now.exercise, wrong, filled) ?? mistakeFitting(now.exercise, own, own) ?? "";
}

/** @typedef {Typed & { place: number, right: number, isRight: boolean }} Filled */

/**
 * The likeliest mistake that gives all these numbers, and of a single one the others that give it; `among` are the numbers that it must agree with.
 * @param {Exercise} exercise
 * @param {Filled[]} wrong
 * @param {Filled[]} among
 */
function mistakeFitting(exercise, wrong, among) {
  /** @type {number[][]} */
  const likelier = [];
  let isKnown = false;
  const found = [];
  for (const [sentence, isPlain, numbers] of exercise.mistakes) {
    const unit = (/** @type {Filled} */ each) => each.half + 1e-5 * Math.abs(numbers[each.place]) + 1e-9;
    const fits = (/** @type {Filled} */ each) => Math.abs(each.x - numbers[each.place]) <= unit(each);
    if (!among.filter((each) => each.isRight).every(fits)) continue;
    likelier.push(numbers); // and this one
    if (!wrong.every(fits)) continue;
    const size = (/** @type {Filled} */ each) => Math.min(Math.abs(numbers[each.place]), Math.abs(numbers[each.place] - each.right));
    const digits = wrong.reduce((sum, each) => {
      if (numbers[each.place] === 0) return sum + ZERO_DIGITS;
      return sum + Math.min(MOST_DIGITS, Math.max(0, Math.log10(size(each) / unit(each))));
    }, 0);
    const rank = likelier.filter((others) => wrong.every((each) => Math.abs(others[each.place] - each.x) <= size(each) + unit(each))).length;
    const enough = wrong.every((each) => Number.isInteger(each.x)) ? 0.6 : 2;
    isKnown ||= (isPlain && digits >= enough) || rank * 10 ** -digits <= ASK_BY_CHANCE;
    if (isKnown && wrong.length > 1) return `: ${(report.slips ?? [])[sentence]}`;
    found.push((report.slips ?? [])[sentence]);
  }
  return isKnown ? `: ${found.slice(0, ASK_NAMED).join("; or ")}` : undefined;
}
