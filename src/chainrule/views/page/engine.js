// Computes what the lab shows: by the program of the page, or by PyTorch behind it.

import { number } from "./numbers.js";
import { Machine, toNumber } from "./program.js";
import { behind, key, report, rows, sumOf } from "./store.js";

/** @import { LabAnswer, LabChosen, LabFacts, LabQuestion, LabTerm, Instruction, Operand, Program, Role } from "./types.d.ts" */

/** @typedef {{ facts: LabFacts, ask: (question: LabQuestion) => Promise<LabAnswer> }} Engine */
/** @typedef {{ slots: Map<number, number[]>, steps: number, loss: number, inputs: Map<number, number[]>, gradients: Map<number, number[]> }} Base */

const MOVED = 2 ** -17; // of an element's size (of 1, for a small one), by which a measured difference moves it
const NEAR = [1e-6, 1e-3]; // of a derivative: up to which a measured one is the same, and within which it must be known
const ROUGHLY = [1e-2, 5e-2]; // the same, not in double precision
const CORNER = 1e-3; // of a derivative, beyond which the two sides are two
const PATIENCE = 30; // seconds for which a notebook may take its time
const ENTRIES = 4000; // of a Jacobian's column that are computed
export const LISTED = 12; // terms of a sum

/**
 * The engine of this page. Gives the reason where there is none.
 * @returns {{ engine: Engine | null, reason: string }}
 */
export function engineOfPage() {
  if (behind) return { engine: new Behind(behind), reason: "" };
  if (!report.program) return { engine: null, reason: report.without_program ?? "" };
  const engine = new Inside(report.program);
  const reason = engine.differs();
  return { engine: reason ? null : engine, reason };
}

/**
 * The flat place of an element.
 * @param {number[]} shape
 * @param {number[]} index
 */
export function placeOf(shape, index) {
  return index.reduce((before, each, axis) => before * (shape[axis] ?? 1) + each, 0);
}

/**
 * @param {number[]} shape
 * @param {number} place
 * @returns {number[]}
 */
export function indexAt(shape, place) {
  const index = [];
  for (const size of [...shape].reverse()) {
    index.unshift(place % size);
    place = Math.floor(place / size);
  }
  return index;
}

/**
 * @param {string} name
 * @param {number[]} index
 */
function elementOf(name, index) {
  return index.length ? `${name}[${index.join(",")}]` : name;
}

/** The program in the page. */
class Inside {
  /** @param {Program} program */
  constructor(program) {
    this.program = program;
    this.machine = new Machine(program);
    /** @type {Machine | null} */
    this.wide = null; // the same in double precision, made when first asked for
    /** @type {Base[]} */
    this.bases = [];
    this.slotOfRow = new Map(program.inputs);
    /** @type {LabFacts} */
    this.facts = {
      inputs: program.inputs.map(([row]) => row),
      gradients: program.gradients.map(([row]) => row),
      updates: (program.updates ?? []).map(({ row }) => row),
      settings: (program.settings ?? []).map(([name, , value]) => [name, value]),
      without: program.without ?? "",
      said: [],
    };
    this.begin();
  }

  /** Set every variable to what it was when the step was recorded. */
  begin() {
    const { program, machine } = this;
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
  }

  /** What the program computes otherwise than PyTorch did, if anything; else the recorded step is the first base. */
  differs() {
    const { program, machine } = this;
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
    this.keep(0);
    return "";
  }

  loss(machine = this.machine) {
    const found = this.program.values.find(([row]) => row === this.program.loss);
    return found ? machine.read(found[1])[0] : NaN;
  }

  /**
   * Keep what the machine holds as a base; gives its number.
   * @param {number} steps
   */
  keep(steps) {
    const { program, machine } = this;
    const states = (program.updates ?? []).flatMap(({ state }) => (state ?? []).map(([, slot]) => slot));
    const counter = program.step && program.step[0] >= 0 ? [program.step[0]] : [];
    const variables = [...program.inputs.map(([, slot]) => slot), ...states, ...counter];
    this.bases.push({
      slots: new Map(variables.map((slot) => [slot, Array.from(machine.slots[slot])])),
      steps,
      loss: this.loss(),
      inputs: this.inputs(),
      gradients: new Map(program.gradients.map(([row, operand]) => [row, machine.read(operand)])),
    });
    return this.bases.length - 1;
  }

  inputs() {
    return new Map(this.program.inputs.map(([row, slot]) => [row, Array.from(this.machine.slots[slot])]));
  }

  /**
   * @param {LabQuestion} question
   * @returns {Promise<LabAnswer>}
   */
  async ask({ base, changes, settings, chosen, step }) {
    const { machine, program } = this;
    const known = this.bases[base];
    for (const [slot, numbers] of known.slots) machine.slots[slot].set(numbers);
    (program.settings ?? []).forEach(([, slot], place) => (machine.slots[slot][0] = settings[place]));
    for (const [row, place, x] of changes) machine.slots[this.slotOfRow.get(row) ?? 0][place] = x;
    machine.run();
    const predicted = step ? this.step(known.steps) : this.predicted(known);
    if (step) base = this.keep(known.steps + 1);
    const first = this.bases[base].steps === 0;
    const update = (program.updates ?? []).map((each) => /** @type {[number, Operand]} */ ([each.row, first ? each.first : each.later]));
    const read = (/** @type {[number, Operand][]} */ places) => places.map(([row, operand]) => /** @type {[number, number[]]} */ ([row, machine.read(operand)]));
    return {
      base,
      loss: this.loss(),
      values: read(program.values.map(([row, operand]) => [row, operand])),
      gradients: read(program.gradients.map(([row, operand]) => [row, operand])),
      after: read(update),
      holds: machine.holds(),
      note: machine.holds() ? "" : "With these numbers the step counts other elements than it did, and its program does not hold.",
      ...predicted,
      chosen: chosen && !step ? this.chosen(chosen[0], chosen[1]) : undefined,
    };
  }

  /**
   * What the gradient at the base predicts for the loss.
   * @param {Base} base
   */
  predicted(base) {
    let predicted = 0;
    for (const [row, numbers] of this.inputs()) {
      const before = base.inputs.get(row) ?? [];
      if (numbers.every((x, i) => x === before[i])) continue;
      const gradient = base.gradients.get(row);
      if (!gradient) return { predicted: null, unpredicted: row };
      numbers.forEach((x, i) => (predicted += x === before[i] ? 0 : (x - before[i]) * gradient[i]));
    }
    return { predicted };
  }

  /**
   * Take a step from where the machine is; gives what the gradient there predicts for the loss.
   * @param {number} steps
   */
  step(steps) {
    const { machine, program } = this;
    const first = steps === 0;
    /** @type {[number, number[]][]} */
    const moves = [];
    let predicted = 0;
    for (const update of program.updates ?? []) {
      const slot = this.slotOfRow.get(update.row) ?? 0;
      const after = machine.read(first ? update.first : update.later);
      const gradient = program.gradients.find(([row]) => row === update.row);
      const slopes = gradient ? machine.read(gradient[1]) : [];
      after.forEach((x, i) => (predicted += (x - machine.slots[slot][i]) * (slopes[i] ?? NaN)));
      moves.push([slot, after]);
      for (const [, held, , made, later] of update.state ?? []) moves.push([held, machine.read(first ? made : later)]);
    }
    for (const [row, operand] of program.carried ?? []) moves.push([this.slotOfRow.get(row) ?? 0, machine.read(operand)]);
    for (const [slot, numbers] of moves) machine.slots[slot].set(numbers);
    if (program.step && program.step[0] >= 0) machine.slots[program.step[0]][0] += 1;
    machine.run();
    return { predicted };
  }

  // -- one element ----------------------------------------------------------------------------------------------------

  /**
   * The gradient of one element of an input: the sum that it is, and a measured difference beside it.
   * @param {number} row
   * @param {number} place
   * @returns {LabChosen | undefined}
   */
  chosen(row, place) {
    const gradient = this.program.gradients.find(([of]) => of === row);
    const slot = this.slotOfRow.get(row);
    if (!gradient || slot === undefined || !this.program.types[slot].includes("float")) return undefined;
    return { row, place, gradient: this.machine.read(gradient[1])[place], ...this.terms(row, place, gradient[1]), ...this.measured(slot, place, gradient[1]) };
  }

  /**
   * The losses around one element, in double precision, where rounding cannot hide a difference.
   * @param {number} slot
   * @param {number} place
   * @param {Operand} operand
   */
  measured(slot, place, operand) {
    this.wide ??= new Machine(this.program, (type) => (type.includes("float") ? "float64" : type));
    const wide = this.wide;
    wide.slots.forEach((data, each) => data.set(this.machine.slots[each]));
    const x = wide.slots[slot][place];
    const step = MOVED * Math.max(Math.abs(x), 1);
    const at = (/** @type {number} */ moved) => {
      wide.slots[slot][place] = x + moved;
      wide.run();
      return wide.holds() ? this.loss(wide) : NaN;
    };
    const [far, high, low, below] = [2 * step, step, -step, -2 * step].map(at);
    const here = at(0);
    const losses = [below, low, here, high, far];
    const rounding = 2 ** -52 * Math.max(...losses.map(Math.abs));
    return judged(wide.read(operand)[place], losses, { step, rounding, scale: Math.max(Math.abs(x), 1), precise: "float64" });
  }

  /**
   * The terms of a gradient's element: what arrives at each result that the element goes into, times the derivative of
   * that by the element. The derivatives are what comes back from a 1 there and 0 everywhere else.
   * @param {number} row
   * @param {number} place
   * @param {Operand} operand
   * @returns {{ terms: LabTerm[], more: number, total: number }}
   */
  terms(row, place, operand) {
    const { machine } = this;
    const { uses, code } = this.back(operand);
    const arrived = uses.map(([of, slot]) => ({ of, slot, numbers: Array.from(machine.slots[slot]) }));
    if (arrived.reduce((sum, { numbers }) => sum + numbers.length, 0) > ENTRIES) return { terms: [], more: 0, total: NaN };
    const source = { row, role: /** @type {"gradient"} */ ("gradient"), index: indexAt(rows[row].value.shape, place) };
    const recorded = sumOf(key(source));
    /** @type {LabTerm[]} */
    const terms = [];
    for (const { slot } of arrived) machine.slots[slot].fill(0);
    for (const { of, slot, numbers } of arrived) {
      numbers.forEach((upstream, at) => {
        machine.slots[slot][at] = 1;
        for (const run of code) run();
        const local = machine.read(operand)[place];
        machine.slots[slot][at] = 0;
        const index = indexAt(rows[of].value.shape, at);
        const name = elementOf(rows[of].name, index);
        const known = recorded?.summands.find(({ sources }) => sources[0] && key(sources[0]) === key({ row: of, role: "gradient", index }));
        if (local === 0 && !known) return;
        const words = known?.factors[1]?.[0] ?? `d${name}/d${elementOf(rows[row].name, source.index)}`;
        terms.push({ factors: [[`dJ/d${name}`, upstream], [words, local]], value: local === 0 ? 0 : upstream * local });
      });
    }
    for (const { slot, numbers } of arrived) machine.slots[slot].set(numbers);
    for (const run of code) run();
    const total = terms.reduce((sum, { value }) => sum + value, 0);
    return { terms: terms.slice(0, LISTED), more: Math.max(terms.length - LISTED, 0), total };
  }

  /**
   * The results whose arriving gradients a gradient is computed from, and what computes it from these.
   * @param {Operand} operand
   */
  back(operand) {
    const { program, machine } = this;
    const arriving = new Map((program.arriving ?? []).map(([row, slot]) => [slot, row]));
    const computes = new Map(program.code.map((line, place) => [line[1], place]));
    const depends = new Set();
    const waiting = [slotOf(operand)];
    const seen = new Set(waiting);
    const places = [];
    for (let slot = waiting.pop(); slot !== undefined; slot = waiting.pop()) {
      const place = computes.get(slot);
      if (arriving.has(slot)) depends.add(slot);
      if (place === undefined || arriving.has(slot)) continue;
      places.push(place);
      for (const each of program.code[place][2].map(slotOf)) {
        if (seen.has(each)) continue;
        seen.add(each);
        waiting.push(each);
      }
    }
    const reached = new Set(depends);
    const back = places.sort((a, b) => a - b).filter((place) => {
      const [, slot, operands] = program.code[place];
      return operands.some((each) => reached.has(slotOf(each))) && reached.add(slot);
    });
    const uses = (program.arriving ?? []).filter(([, slot]) => depends.has(slot));
    return { uses, code: back.map((place) => machine.code[place]) };
  }
}

/** PyTorch, in the process that serves this page or in the notebook around it. */
class Behind {
  /** @param {NonNullable<typeof behind>} lab */
  constructor(lab) {
    this.lab = lab;
    this.facts = lab.facts;
    /** @type {Map<number, (answer: any) => void>} */
    this.waiting = new Map();
    this.count = 0;
    if (lab.token) return;
    window.addEventListener("message", (event) => {
      if (event.source !== window.parent || typeof event.data?.chainrule?.id !== "number") return;
      this.waiting.get(event.data.chainrule.id)?.(event.data.chainrule.answer);
      this.waiting.delete(event.data.chainrule.id);
    });
  }

  /**
   * @param {LabQuestion} question
   * @returns {Promise<LabAnswer>}
   */
  async ask(question) {
    const answer = await (this.lab.token ? this.fetched(question) : this.posted(question));
    if (answer.error) throw new Error(answer.error);
    const numbers = (/** @type {[number, any[]][]} */ listed) => listed.map(([row, found]) => /** @type {[number, number[]]} */ ([row, found.map(toNumber)]));
    const chosen = answer.chosen && explainedBy(answer.chosen);
    const predicted = answer.predicted === null ? null : toNumber(answer.predicted);
    return { ...answer, chosen, predicted, loss: toNumber(answer.loss), values: numbers(answer.values), gradients: numbers(answer.gradients), after: numbers(answer.after) };
  }

  /** @param {LabQuestion} question */
  async fetched(question) {
    const headers = { "Content-Type": "application/json", "X-Chainrule-Token": this.lab.token ?? "" };
    try {
      const response = await fetch("/ask", { method: "POST", headers, body: JSON.stringify(question) });
      return await response.json();
    } catch {
      return { error: "Nothing answers behind this page any more: start `chainrule lab` again, and open the page that it names." };
    }
  }

  /** @param {LabQuestion} question */
  posted(question) {
    const id = ++this.count;
    const error = `Your notebook has not answered for ${PATIENCE} seconds. If it runs a cell, wait for that, and change the number again; if its kernel was started again, run the cell of this lab again.`;
    return new Promise((resolve) => {
      const late = setTimeout(() => resolve({ error }), PATIENCE * 1000);
      this.waiting.set(id, (answer) => {
        clearTimeout(late);
        resolve(answer);
      });
      window.parent.postMessage({ chainrule: { id, question } }, "*");
    });
  }
}

/**
 * An element as PyTorch explained it: the losses say what a measured difference says.
 * @param {any} found
 * @returns {LabChosen}
 */
function explainedBy(found) {
  const gradient = toNumber(found.gradient);
  const terms = found.terms.map((/** @type {any} */ term) => ({ ...term, value: toNumber(term.value), factors: term.factors.map((/** @type {[string, any]} */ [text, x]) => [text, toNumber(x)]) }));
  return { ...found, gradient, terms, total: toNumber(found.total), ...judged(toNumber(found.slope), found.losses.map(toNumber), found) };
}

/**
 * What five losses, a step apart, say of a derivative. On a smooth curve the two sides part in proportion to the step;
 * where they do not, there is a corner. What is not computed in double precision is known less well.
 * @param {number} ours
 * @param {number[]} losses
 * @param {{ step: number, rounding: number, scale: number, precise: string }} how with the rounding of a loss, and the element's size
 */
function judged(ours, losses, { step, rounding, scale, precise }) {
  const [below, low, here, high, far] = losses;
  const [near, sure] = precise === "float64" ? NEAR : ROUGHLY;
  const measured = (high - low) / (2 * step);
  const sides = [(here - low) / step, (high - here) / step];
  const noise = (256 * rounding) / step;
  const jump = Math.abs(2 * (sides[1] - sides[0]) - (far - 2 * here + below) / (2 * step));
  const size = Math.max(Math.abs(measured), Math.abs(ours));
  const tolerance = near * size + noise + 4 * Math.abs(measured - (far - below) / (4 * step));
  const least = (sure * Math.abs(here)) / scale; // so little is a derivative of 0
  let verdict = Math.abs(ours - measured) > tolerance ? "differs" : "agrees";
  if (!losses.every(Number.isFinite)) verdict = "not measured";
  else if (jump > CORNER * size + 4 * noise) verdict = "corner";
  else if (tolerance > Math.max(sure * size, least)) verdict = "too coarse";
  return { measured, step, sides, precise, verdict };
}

/**
 * The slot of an operand; -1 for a number.
 * @param {Operand} operand
 * @returns {number}
 */
function slotOf(operand) {
  return typeof operand === "number" ? operand : typeof operand === "string" ? -1 : operand[0];
}
