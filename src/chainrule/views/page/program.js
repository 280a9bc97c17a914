// Runs the step's program: a small machine for primitive operations, in the number types of the step.

/** @import { Entry, Instruction, Operand, Program } from "./types.d.ts" */

/** @typedef {(x: number) => number} Rounding */
/** @typedef {{ data: ArrayLike<number>, places: Int32Array | null, size: number }} Source */

const RUNS = 6; // with random rounding
const SLACK = 8; // times as far as random rounding moved a number, a kernel's own rounding may
/** @type {Record<string, { bits: number, least: number, most: number }>} */
const KINDS = {
  float64: { bits: 52, least: -1022, most: Number.MAX_VALUE },
  float32: { bits: 23, least: -126, most: 3.4028234663852886e38 },
  bfloat16: { bits: 7, least: -126, most: 3.3895313892515355e38 },
  float16: { bits: 10, least: -14, most: 65504 },
};

/**
 * A number rounded to so many bits after the leading one, ties to even.
 * @param {number} x
 * @param {{ bits: number, least: number, most: number }} kind
 */
function rounded(x, kind) {
  if (x === 0 || !Number.isFinite(x)) return x;
  const step = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), kind.least) - kind.bits);
  const near = halfEven(x / step) * step;
  return Math.abs(near) > kind.most ? Math.sign(near) * Infinity : near;
}

/** @param {number} x */
function halfEven(x) {
  const near = Math.round(x);
  return Math.abs(x % 1) === 0.5 && near % 2 !== 0 ? near - 1 : near;
}

/**
 * @param {string} type
 * @returns {Rounding}
 */
function roundingOf(type) {
  if (type === "float32") return Math.fround;
  if (type === "float16" || type === "bfloat16") return (x) => rounded(x, KINDS[type]);
  return (x) => x;
}

/**
 * The error function: a series of positive terms, and beyond 2.5 the continued fraction of its complement.
 * @param {number} x
 * @returns {number}
 */
function erf(x) {
  if (Math.abs(x) > 2.5) return Math.sign(x) * (1 - erfc(Math.abs(x)));
  let term = x;
  let sum = x;
  for (let n = 1; Math.abs(term) > Math.abs(sum) * 1e-17; n++) {
    term *= (2 * x * x) / (2 * n + 1);
    sum += term;
  }
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

/**
 * @param {number} x
 * @returns {number}
 */
function erfc(x) {
  if (!(x > 2.5)) return 1 - erf(x);
  let fraction = 0;
  for (let n = 80; n > 0; n--) fraction = n / 2 / (x + fraction);
  return Math.exp(-x * x) / Math.sqrt(Math.PI) / (x + fraction);
}

/** @type {Record<string, (a: number, b: number, c: number) => number>} */
const ELEMENTWISE = {
  neg: (a) => -a,
  abs: Math.abs,
  sqrt: Math.sqrt,
  rsqrt: (a) => 1 / Math.sqrt(a),
  reciprocal: (a) => 1 / a,
  cbrt: Math.cbrt,
  exp: Math.exp,
  expm1: Math.expm1,
  exp2: (a) => 2 ** a,
  log: Math.log,
  log1p: Math.log1p,
  log2: Math.log2,
  log10: Math.log10,
  sin: Math.sin,
  cos: Math.cos,
  tan: Math.tan,
  asin: Math.asin,
  acos: Math.acos,
  atan: Math.atan,
  sinh: Math.sinh,
  cosh: Math.cosh,
  tanh: Math.tanh,
  asinh: Math.asinh,
  acosh: Math.acosh,
  atanh: Math.atanh,
  erf,
  erfc,
  floor: Math.floor,
  ceil: Math.ceil,
  round: halfEven,
  trunc: Math.trunc,
  sign: Math.sign,
  signbit: (a) => Number(a < 0 || Object.is(a, -0)),
  isfinite: (a) => Number(Number.isFinite(a)),
  add: (a, b) => a + b,
  sub: (a, b) => a - b,
  mul: (a, b) => a * b,
  div: (a, b) => a / b,
  pow: (a, b) => (a === 1 ? 1 : a ** b),
  maximum: (a, b) => Math.max(a, b),
  minimum: (a, b) => Math.min(a, b),
  fmax: (a, b) => (Number.isNaN(a) ? b : Number.isNaN(b) ? a : Math.max(a, b)),
  fmin: (a, b) => (Number.isNaN(a) ? b : Number.isNaN(b) ? a : Math.min(a, b)),
  atan2: Math.atan2,
  hypot: (a, b) => Math.hypot(a, b),
  fmod: (a, b) => a % b,
  remainder: (a, b) => a - b * Math.floor(a / b),
  eq: (a, b) => Number(a === b),
  ne: (a, b) => Number(a !== b),
  lt: (a, b) => Number(a < b),
  le: (a, b) => Number(a <= b),
  gt: (a, b) => Number(a > b),
  ge: (a, b) => Number(a >= b),
  bitwise_and: (a, b) => a & b,
  bitwise_or: (a, b) => a | b,
  bitwise_xor: (a, b) => a ^ b,
  where: (a, b, c) => (a ? b : c),
};

/** @type {Record<string, { begin: number, join: (a: number, b: number) => number }>} */
const REDUCED = {
  sum: { begin: 0, join: (a, b) => a + b },
  prod: { begin: 1, join: (a, b) => a * b },
  amax: { begin: -Infinity, join: Math.max },
  amin: { begin: Infinity, join: Math.min },
};

const EXACT = new Set("neg abs floor ceil round trunc sign maximum minimum fmax fmin where amax amin".split(" ")); // they round nothing

export const PRIMITIVES = [
  ...Object.keys(ELEMENTWISE),
  ...Object.keys(REDUCED),
  "bitwise_not", "convert", "join", "product", "take", "put", "argmax", "argmin", "cumsum", "cumprod",
];

/** The slots of a program, with what computes them. */
export class Machine {
  /**
   * @param {Program} program
   * @param {(type: string) => string} [typed] the number type in which one of the program's is computed
   */
  constructor(program, typed = (type) => type) {
    this.program = program;
    this.types = program.types.map(typed);
    this.tables = program.tables.map(expanded);
    /** @type {(Float32Array | Float64Array)[]} */
    this.slots = this.types.map((type, slot) =>
      type in KINDS && type !== "float64" ? new Float32Array(program.sizes[slot]) : new Float64Array(program.sizes[slot]),
    );
    this.roundings = this.types.map(roundingOf);
    for (const [slot, held] of program.constants) this.slots[slot].set(held.map(toNumber));
    /** @type {(() => void)[]} */
    this.code = program.code.map((line) => this.compiled(line));
    this.noise = 0; // the state of a generator of random numbers; 0: rounding is as usual
  }

  /** Compute every slot from the inputs. */
  run() {
    for (const step of this.code) step();
  }

  /** Whether what was traced holds for these numbers. */
  holds() {
    return (this.program.guards ?? []).every(([operand, number]) => this.read(operand)[0] === number);
  }

  /**
   * The numbers of an operand.
   * @param {Operand} operand
   * @returns {number[]}
   */
  read(operand) {
    const source = this.source(operand, "float64");
    return Array.from({ length: source.size }, (_, i) => source.data[source.places ? source.places[i] : i]);
  }

  /**
   * @param {Operand} operand
   * @param {string} type
   * @returns {Source}
   */
  source(operand, type) {
    if (typeof operand === "string") return { data: [roundingOf(type)(toNumber(operand))], places: null, size: 1 };
    if (typeof operand === "number") return { data: this.slots[operand], places: null, size: this.slots[operand].length };
    const places = this.tables[operand[1]];
    return { data: this.slots[operand[0]], places, size: places.length };
  }

  /**
   * The rounding of one type, which while the machine is noisy moves a number by up to a last place.
   * @param {number} slot
   * @returns {Rounding}
   */
  rounding(slot) {
    const kind = KINDS[this.types[slot]];
    const round = this.roundings[slot];
    if (!kind) return round;
    const place = 2 ** -kind.bits;
    return (x) => (this.noise ? round(x * (1 + place * (2 * this.random() - 1))) : round(x));
  }

  /** A number between 0 and 1 (mulberry32, by Tommy Ettinger). */
  random() {
    this.noise = (this.noise + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.noise ^ (this.noise >>> 15), this.noise | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  }

  /**
   * @param {Instruction} line
   * @returns {() => void}
   */
  compiled([name, slot, operands, ...sizes]) {
    const out = this.slots[slot];
    const type = this.types[slot];
    const first = operands.find((each) => typeof each !== "string");
    const compared = first === undefined ? type : this.types[typeof first === "number" ? first : Number(first[0])];
    const sources = operands.map((each) => this.source(each, name === "where" ? type : compared));
    const [a, b, c] = sources;
    const round = EXACT.has(name) ? (/** @type {number} */ x) => x : this.rounding(slot);
    const partial = (/** @type {number} */ sum) => (this.noise ? round(sum) : sum); // a kernel rounds each partial sum
    const whole = type === "integer";
    if (name in ELEMENTWISE) {
      const f = name === "div" && whole ? (/** @type {number} */ x, /** @type {number} */ y) => Math.trunc(x / y) : ELEMENTWISE[name];
      return () => {
        for (let i = 0; i < out.length; i++) out[i] = round(f(at(a, i), b ? at(b, i) : 0, c ? at(c, i) : 0));
      };
    }
    if (name in REDUCED) {
      const { begin, join } = REDUCED[name];
      return () => {
        for (let i = 0; i < out.length; i++) {
          let found = begin;
          for (let k = 0; k < sizes[0]; k++) found = partial(join(found, at(a, i * sizes[0] + k)));
          out[i] = round(found);
        }
      };
    }
    switch (name) {
      case "bitwise_not":
        return () => out.forEach((_, i) => (out[i] = whole ? ~at(a, i) : 1 - at(a, i)));
      case "convert":
        return () => {
          for (let i = 0; i < out.length; i++) {
            const x = at(a, i);
            out[i] = whole ? Math.trunc(x) : type === "boolean" ? Number(x !== 0) : this.roundings[slot](x);
          }
        };
      case "join":
        return () => {
          let place = 0;
          for (const each of sources) for (let i = 0; i < each.size; i++) out[place++] = at(each, i);
        };
      case "product": {
        const [, rows, inner, columns] = sizes;
        return () => {
          for (let i = 0; i < out.length; i++) {
            const column = i % columns;
            const row = (i - column) / columns; // of all batches
            const from = Math.floor(row / rows) * inner * columns + column;
            let sum = 0;
            for (let k = 0; k < inner; k++) sum = partial(sum + at(a, row * inner + k) * at(b, from + k * columns));
            out[i] = round(sum);
          }
        };
      }
      case "take":
        return () => {
          for (let i = 0; i < out.length; i++) {
            const place = at(b, i);
            out[i] = place >= -a.size && place < a.size ? at(a, place < 0 ? place + a.size : place) : NaN;
          }
        };
      case "put":
        return () => {
          for (let i = 0; i < out.length; i++) out[i] = at(a, i);
          for (let i = 0; i < b.size; i++) {
            const place = at(b, i) < 0 ? at(b, i) + out.length : at(b, i);
            out[place] = sizes[0] ? round(out[place] + at(c, i)) : at(c, i);
          }
        };
      case "argmax":
      case "argmin":
        return () => {
          const sign = name === "argmax" ? 1 : -1;
          for (let i = 0; i < out.length; i++) {
            let best = 0;
            for (let k = 1; k < sizes[0]; k++) {
              const [x, y] = [sign * at(a, i * sizes[0] + k), sign * at(a, i * sizes[0] + best)];
              if (x > y || (Number.isNaN(x) && !Number.isNaN(y))) best = k;
            }
            out[i] = best;
          }
        };
      case "cumsum":
      case "cumprod":
        return () => {
          for (let i = 0; i < out.length; i++) {
            const before = i % sizes[0] ? out[i - 1] : name === "cumsum" ? 0 : 1;
            out[i] = round(name === "cumsum" ? before + at(a, i) : before * at(a, i));
          }
        };
      default:
        throw new Error(`the program has an unknown primitive: ${name}`);
    }
  }

  /**
   * The numbers of some operands, and how far random rounding moves each: the most over several runs. Kernels hide their
   * steps, so the inputs move by a last place too.
   * @param {Operand[]} operands
   * @returns {{ numbers: number[][], spreads: number[][] }}
   */
  measured(operands) {
    const spreads = operands.map((each) => this.read(each).fill(0));
    this.run();
    const numbers = operands.map((each) => this.read(each));
    const inputs = this.program.inputs.map(([, slot]) => ({ slot, kept: this.slots[slot].slice() }));
    for (let seed = 1; seed <= RUNS; seed++) {
      this.noise = seed;
      for (const { slot, kept } of inputs) {
        const place = KINDS[this.types[slot]] ? 2 ** -KINDS[this.types[slot]].bits : 0;
        this.slots[slot].set(kept.map((x) => x * (1 + place * Math.floor(3 * this.random() - 1))));
      }
      this.run();
      operands.forEach((each, place) =>
        this.read(each).forEach((x, i) => {
          const apart = Math.abs(x - numbers[place][i]);
          if (apart > spreads[place][i]) spreads[place][i] = apart;
        }),
      );
    }
    this.noise = 0;
    for (const { slot, kept } of inputs) this.slots[slot].set(kept);
    this.run();
    return { numbers, spreads };
  }

  /**
   * Whether a number is another one up to rounding.
   * @param {number} ours
   * @param {number} recorded
   * @param {number} spread
   * @param {string} type
   */
  static same(ours, recorded, spread, type) {
    if (Object.is(ours, recorded) || ours === recorded) return true;
    const place = type in KINDS ? 2 ** -KINDS[type].bits : 0;
    return Math.abs(ours - recorded) <= SLACK * (spread + place * Math.abs(recorded)) + (place ? 1.2e-38 : 0);
  }
}

/**
 * @param {Source} source
 * @param {number} i
 */
function at(source, i) {
  if (source.places) return source.data[source.places[i]];
  return source.data[source.size === 1 ? 0 : i];
}

/**
 * A table from its runs: first, step, count.
 * @param {number[]} runs
 * @returns {Int32Array}
 */
function expanded(runs) {
  const places = [];
  for (let i = 0; i < runs.length; i += 3) {
    for (let k = 0; k < runs[i + 2]; k++) places.push(runs[i] + k * runs[i + 1]);
  }
  return Int32Array.from(places);
}

/**
 * @param {Entry} entry
 * @returns {number}
 */
export function toNumber(entry) {
  if (typeof entry === "number") return entry;
  if (typeof entry === "boolean") return Number(entry);
  return typeof entry === "string" ? Number(entry.replace("inf", "Infinity")) : NaN;
}
