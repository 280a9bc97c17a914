// One function for each kind of block, chosen by its name.

import { h, math } from "./dom.js";
import { number } from "./numbers.js";
import { tensor } from "./tensors.js";

/** @import { Block, Equation, Measured, Paragraph, Section, Span, Table, Verdict } from "./types.d.ts" */

const SHORT = 24; // characters of a table cell that are not wrapped

/** @type {Record<string, string>} */
export const MARKS = {
  agrees: "✓",
  disagrees: "✗",
  "by convention": "∠",
  "not differentiable": "–",
  "not checked": "·",
};

/** @type {Record<string, (block: any) => HTMLElement>} */
const SHOW = { paragraph, equation, tensor, verdict, table };

/**
 * @param {Block} block
 * @returns {HTMLElement}
 */
export function shown(block) {
  const show = SHOW[block.block];
  if (!show) throw new Error(`the page has no function for a block of kind ${block.block}`);
  return show(block);
}

/**
 * A line of text: words, formulas, and the user's code.
 * @param {Span[]} spans
 * @returns {(string | Element)[]}
 */
export function text(spans) {
  return spans.map((span) => {
    if (typeof span === "string") return span;
    return "math" in span ? math(span.math) : h("code", null, span.code);
  });
}

/** @param {Span[]} spans */
export function plainText(spans) {
  return spans.map((span) => (typeof span === "string" ? span : "math" in span ? math(span.math).textContent : span.code)).join("");
}

/** @param {Paragraph} block */
function paragraph(block) {
  const word = { note: "Note", warning: "Warning", error: "Error", plain: "" }[block.tone ?? "plain"];
  return h("p", { class: `tone-${block.tone ?? "plain"}` }, word && h("strong", { class: "tone" }, word), text(block.text));
}

/** @param {Equation} block */
function equation(block) {
  return h("div", { class: "equation" }, block.label && h("span", { class: "label" }, block.label), h("div", { class: "formula", tabindex: "0", role: "group", "aria-label": block.label || "equation" }, math(block.latex, true)));
}

/** @param {Verdict} block */
function verdict(block) {
  const { difference, tolerance, measured: found } = block;
  const known = [difference === undefined ? "" : `difference ${number(difference)}`, tolerance === undefined ? "" : `tolerance ${number(tolerance)}`];
  const figures = [known.filter(Boolean).join(", "), found ? measured(found) : ""].filter(Boolean);
  return h(
    "p",
    { class: `verdict ${block.kind.replaceAll(" ", "-")}` },
    h("span", { class: "mark", "aria-hidden": "true" }, MARKS[block.kind]),
    h("span", null, h("strong", null, block.kind), block.text.length ? ": " : "", text(block.text), figures.length ? h("span", { class: "facts" }, ` (${figures.join("; ")})`) : null),
  );
}

/** @param {Measured} found */
function measured(found) {
  const listed = found.elements.map((each) => (each === null ? "-" : number(each))).join(", ");
  const taken = found.taken < found.count ? `${found.taken.toLocaleString("en")} of ` : "";
  const numbers = found.count > found.elements.length ? `${taken}${found.count.toLocaleString("en")} elements` : listed;
  const gave = found.taken ? `measured ${numbers}` : "measured along random directions";
  return `${gave}: difference ${number(found.difference)}, tolerance ${number(found.tolerance)}`;
}

/** @param {Table} block */
function table(block) {
  return h(
    "div",
    { class: "scroll", tabindex: "0", role: "group", "aria-label": block.label || "table" },
    h(
      "table",
      { class: "plain" },
      block.label && h("caption", null, block.label),
      h("thead", null, h("tr", null, block.headers.map((header) => h("th", { scope: "col" }, header)))),
      h("tbody", null, block.rows.map((row) => h("tr", null, row.map((cell) => h("td", { class: plainText(cell).length <= SHORT ? "short" : null }, text(cell)))))),
    ),
  );
}

/** @typedef {"both" | "jacobian" | "product"} Way */

/**
 * The blocks of a step that compute its gradient with the Jacobian, or as PyTorch runs it, or both.
 *
 * Roles and labels come from the report: a block with role `jacobian` begins the product with the Jacobian; the equation
 * labelled `what PyTorch runs`, with its `numbers`, is the other. A Jacobian that is too large has no blocks.
 * @param {Block[]} blocks
 * @param {Way} way
 */
export function waysOf(blocks, way) {
  const long = blocks.findIndex((block) => block.block === "tensor" && block.role === "jacobian");
  const short = blocks.findIndex((block) => block.block === "equation" && block.label === "what PyTorch runs");
  if (way === "both" || long < 0 || short < long) return blocks;
  if (way === "product") return blocks.filter((_, place) => place < long || place >= short);
  const after = blocks[short + 1];
  const numbers = after?.block === "equation" && after.label === "numbers" ? short + 1 : short;
  return blocks.filter((_, place) => place < short || place > numbers);
}

/**
 * @param {Section} section
 * @param {Way} way
 * @param {number} level of its heading
 * @param {HTMLElement | null} [picture] what stands between heading and text
 * @returns {HTMLElement}
 */
export function sectionOf(section, way, level, picture = null) {
  return h(
    "section",
    { class: `step ${section.kind}`, "data-anchor": section.anchor },
    h(`h${Math.min(level, 6)}`, null, text(section.title)),
    picture,
    waysOf(section.blocks ?? [], way).map(shown),
  );
}
