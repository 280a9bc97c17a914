// The overview: one line per module, which shows vanishing and exploding gradients at a glance; and the findings.

import { plainText, text } from "./blocks.js";
import { logBar, powers } from "./charts.js";
import { h } from "./dom.js";
import { real } from "./numbers.js";
import { fragment, report, rows } from "./store.js";
import { typical } from "./tensors.js";

/** @import { Row, Section } from "./types.d.ts" */

/** @typedef {{ path: string, row: Row, value: number, gradient: number, update: number }} Module */

/** @returns {Section[]} */
export function findings() {
  return report.sections.find((section) => section.anchor === "findings")?.sections ?? [];
}

/**
 * The row that the title of a finding names.
 * @param {Section} finding
 * @returns {Row | undefined}
 */
export function rowOfFinding(finding) {
  const named = finding.title.flatMap((span) => (typeof span === "object" && "code" in span ? [span.code] : []));
  return rows.find((row) => named.includes(row.name)) ?? rows.find((row) => named.includes(row.module) && row.kind === "operation");
}

/**
 * One line per module: its last result, and the largest update of its parameters.
 * @returns {Module[]}
 */
function modules() {
  /** @type {Map<string, Row[]>} */
  const members = new Map();
  for (const row of rows) {
    const path = row.module || (row.kind === "operation" || row.kind === "loss" ? row.name : "");
    if (path) members.set(path, [...(members.get(path) ?? []), row]);
  }
  const found = [...members].map(([path, own]) => {
    const row = own.findLast((each) => each.kind === "operation" || each.kind === "loss") ?? own[0];
    const updates = own.map((each) => (each.update === undefined ? NaN : real(each.update))).filter(Number.isFinite);
    const gradient = row.gradient ? typical(row.gradient) : NaN;
    return { path, row, value: row.value.dtype ? typical(row.value) : NaN, gradient, update: updates.length ? Math.max(...updates) : NaN };
  });
  return found.sort((one, other) => one.row.index - other.row.index); // in execution order
}

/** @param {(row: Row) => void} show */
export function overview(show) {
  const all = modules();
  const updated = all.some((each) => !Number.isNaN(each.update));
  const table = h(
    "table",
    { class: "modules" },
    h("caption", null, "One line per module: the root mean square of its output and of the gradient of this output, on a logarithmic scale", updated ? "; and the norm of the update over the norm of the weights." : "."),
    h("thead", null, h("tr", null, ["module", "value", "gradient", ...(updated ? ["update / weight"] : [])].map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", null, all.map(lineOfModule(all, updated, show))),
  );
  return h("div", { class: "overview" }, findingList(show), table);
}

/**
 * @param {Module[]} all
 * @param {boolean} updated
 * @param {(row: Row) => void} show
 */
function lineOfModule(all, updated, show) {
  const values = powers(all.map((each) => each.value));
  const gradients = powers(all.map((each) => each.gradient));
  const updates = powers(all.map((each) => each.update));
  const bar = (/** @type {number} */ value, /** @type {[number, number]} */ range, /** @type {string} */ side) =>
    h("td", null, Number.isNaN(value) ? h("span", { class: "facts" }, "none") : logBar(value, range, side));
  return (/** @type {Module} */ each) =>
    h(
      "tr",
      { "data-name": each.path.toLowerCase() },
      h("th", { scope: "row" }, h("button", { type: "button", class: "link", onclick: () => show(each.row) }, each.path)),
      bar(each.value, values, "value"),
      bar(each.gradient, gradients, "gradient"),
      updated ? bar(each.update, updates, "update") : null,
    );
}

/** @param {(row: Row) => void} show */
function findingList(show) {
  const all = findings();
  if (!all.length) return null;
  const items = all.map((finding) => {
    const row = rowOfFinding(finding);
    const said = finding.blocks?.[0];
    return h(
      "li",
      null,
      h("a", { href: fragment(finding.anchor) }, text(finding.title)),
      row ? h("button", { type: "button", class: "chip", "aria-label": `show ${row.name} in the value table, for ${plainText(finding.title)}`, onclick: () => show(row) }, "show the row") : null,
      said?.block === "paragraph" ? h("p", null, text(said.text)) : null,
    );
  });
  return h("section", { class: "findings" }, h("h2", null, "Findings"), h("ul", null, items));
}

/**
 * Show only the modules whose name contains the text.
 * @param {HTMLElement} place
 * @param {string} wanted
 */
export function searchOverview(place, wanted) {
  const small = wanted.trim().toLowerCase();
  for (const line of place.querySelectorAll("tr[data-name]")) {
    /** @type {HTMLElement} */ (line).hidden = !(line.getAttribute("data-name") ?? "").includes(small);
  }
}
