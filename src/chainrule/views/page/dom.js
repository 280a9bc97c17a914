// Elements made by plain calls. Text is always text: nothing in the page parses markup.

/** @import { Formula, Formulas, Tree } from "./types.d.ts" */

const MATHML = "http://www.w3.org/1998/Math/MathML";
const SVG = "http://www.w3.org/2000/svg";

/** @typedef {Node | string | null | undefined | false} Child */

/**
 * An HTML element. Attributes that are null or false are left out; `on...` are listeners.
 * @param {string} tag
 * @param {Record<string, any> | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {HTMLElement}
 */
export function h(tag, attributes, ...children) {
  const element = document.createElement(tag);
  set(element, attributes);
  append(element, children);
  return element;
}

/**
 * An SVG element.
 * @param {string} tag
 * @param {Record<string, any> | null} [attributes]
 * @param {...(Child | Child[])} children
 * @returns {SVGElement}
 */
export function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  set(element, attributes);
  append(element, children);
  return /** @type {SVGElement} */ (element);
}

/**
 * @param {Element} element
 * @param {Record<string, any> | null} [attributes]
 */
function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
}

/**
 * @param {Element} element
 * @param {(Child | Child[])[]} children
 */
function append(element, children) {
  for (const child of children.flat()) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

/**
 * The element with this id, which the page always has.
 * @param {string} id
 * @returns {HTMLElement}
 */
export function byId(id) {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no element #${id}`);
  return found;
}

/** @type {Formulas} */
let formulas = { shapes: [], formulas: [] };

/** @param {Formulas} table */
export function useFormulas(table) {
  formulas = table;
}

/**
 * A formula as MathML, from the table in the page's data.
 * @param {Formula} place
 * @param {boolean} [display]
 * @returns {Element}
 */
export function math(place, display = false) {
  const element = document.createElementNS(MATHML, "math");
  if (display) element.setAttribute("display", "block");
  element.append(formula(place));
  return element;
}

/**
 * @param {string} tag
 * @param {string} text
 */
function leaf(tag, text) {
  const element = document.createElementNS(MATHML, tag);
  element.textContent = text;
  return element;
}

/** @param {Formula} place */
function formula(place) {
  const found = formulas.formulas[place];
  // At its ends MathML drops spaces, but not those that never break.
  if (typeof found === "string") return leaf("mtext", found.replace(/^ | $/g, "\u00a0"));
  const [shape, ...names] = found;
  return built(formulas.shapes[shape], names);
}

/**
 * A shape with its holes filled with names.
 * @param {Tree} tree
 * @param {number[]} names
 * @returns {Element}
 */
function built(tree, names) {
  const [tag, ...rest] = tree;
  if (rest.length === 1 && typeof rest[0] === "string") {
    const hole = rest[0].charCodeAt(0) - 0xe000;
    if (rest[0].length === 1 && hole >= 0 && hole < names.length) return formula(names[hole]);
  }
  const element = document.createElementNS(MATHML, String(tag));
  for (const part of rest) {
    if (typeof part === "string") element.append(part);
    else if (Array.isArray(part)) element.append(built(part, names));
    else set(element, part);
  }
  return element;
}
