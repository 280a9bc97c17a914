// How a number is written: as in numbers.py, which says why.

/** @import { Entry } from "./types.d.ts" */

/**
 * A number with at most 4 decimals; `whole` if its type is an integer.
 * @param {Entry} value
 * @param {boolean} [whole]
 * @returns {string}
 */
export function number(value, whole = false) {
  if (typeof value === "string") return value;
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "object") return complex(value);
  if (value === 0) return "0";
  if (whole) return String(value);
  const size = Math.abs(value);
  const text = size >= 1e-4 && size < 1e6 ? fixed(value) : powered(value);
  if (Math.abs(Number(text) - value) > 5e-7 * size) return text;
  const [mantissa, exponent] = text.split("e");
  const short = mantissa.includes(".") ? mantissa.replace(/0+$/, "").replace(/\.$/, "") : mantissa;
  return exponent === undefined ? short : `${short}e${exponent}`;
}

/** @param {{ re: Entry, im: Entry }} value */
function complex(value) {
  const imaginary = number(value.im);
  return number(value.re) + (imaginary.startsWith("-") ? "" : "+") + imaginary + "j";
}

/**
 * Four decimals, with ties to even, as in Python.
 * @param {number} value
 */
function fixed(value) {
  const scaled = Math.abs(value) * 1e4;
  const tie = Number.isInteger(value * 32) && scaled % 1 === 0.5;
  if (!tie || Math.floor(scaled) % 2 === 1) return value.toFixed(4);
  return (value < 0 ? "-" : "") + (Math.floor(scaled) / 1e4).toFixed(4);
}

/** @param {number} value */
function powered(value) {
  return value.toExponential(2).replace(/e([+-])(\d)$/, "e$10$2");
}

/**
 * An entry as a real number for drawing: the magnitude of a complex one, NaN if there is none.
 * @param {Entry} value
 * @returns {number}
 */
export function real(value) {
  if (typeof value === "object") return Math.hypot(real(value.re), real(value.im));
  if (typeof value === "string") return { inf: Infinity, "-inf": -Infinity }[value] ?? NaN;
  return Number(value);
}
