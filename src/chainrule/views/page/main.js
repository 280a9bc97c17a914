// The page starts here: read the data, draw the value table, and show the step that the address names.

import { plainText, shown, text } from "./blocks.js";
import { startAsking } from "./ask.js";
import { byId, h } from "./dom.js";
import { foldAll, lineOf, mark, numberFound, searchValues, startValues } from "./values.js";
import { findings, overview, searchOverview } from "./overview.js";
import { startLab } from "./lab.js";
import { startLines } from "./lines.js";
import { fragment, key, load, report, rows, stops } from "./store.js";
import { startPicture } from "./picture.js";
import { startTour } from "./tour.js";
import { everyStep, startWalk, walkTo } from "./walk.js";
import { pinNumber, startWhy } from "./why.js";

/** @import { Row } from "./types.d.ts" */

let noLab = ""; // why there is none
const PRINTED = 150; // steps; of a longer report only the current one is printed

async function start() {
  await load();
  startLines();
  byId("title").replaceChildren(...text(report.title));
  const first = report.summary.findIndex((block) => block.block !== "verdict"); // the verdict never scrolls out of sight
  const verdicts = first < 0 ? report.summary.length : first;
  byId("verdict").replaceChildren(...report.summary.slice(0, verdicts).map(shown));
  byId("summary").replaceChildren(...report.summary.slice(verdicts).map(shown));
  startValues(byId("rows"));
  noLab = startLab();
  startAsking();
  startTabs();
  startSearch();
  startTheme();
  startWhy(byId("why"), walkTo);
  startWalk();
  startTour(walkTo);
  byId("unfold").addEventListener("click", () => foldAll(true));
  byId("fold").addEventListener("click", () => foldAll(false));
  openTab("values");
  const count = findings().length;
  if (count) byId("tab-overview").append(h("span", { class: "count", title: "findings" }, String(count)));
  window.addEventListener("beforeprint", () => {
    const few = stops.length <= PRINTED;
    document.documentElement.classList.toggle("prints-all", few);
    byId("printed").replaceChildren(...(few ? everyStep() : [h("p", { class: "left-out" }, `Of the ${stops.length} steps of this report only the one that was shown is printed.`)]));
  });
  window.addEventListener("afterprint", () => byId("printed").replaceChildren());
  document.documentElement.dataset.ready = String(Math.round(performance.now())); // milliseconds since navigation began
}

// -- tabs -------------------------------------------------------------------------------------------------------------

const TABS = ["values", "overview", "picture", "lab", "ask"];

function startTabs() {
  const template = /** @type {HTMLTemplateElement} */ (byId("picture-source"));
  byId("tab-lab").hidden = !byId("lab").hasChildNodes();
  byId("tab-picture").hidden = !template.content.querySelector("svg");
  const buttons = TABS.map((name) => byId(`tab-${name}`)).filter((button) => !button.hidden);
  buttons.forEach((button, place) => {
    button.addEventListener("click", () => openTab(button.id.slice(4)));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const next = buttons[(place + step + buttons.length) % buttons.length];
      next.focus();
      openTab(next.id.slice(4));
    });
  });
}

/** @param {string} name */
function openTab(name) {
  for (const each of TABS) {
    byId(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
    byId(each).hidden = each !== name;
  }
  byId("fold-tools").hidden = name !== "values" || !document.querySelector("#rows button.fold");
  if (name === "overview" && !byId("overview").hasChildNodes()) {
    byId("overview").append(overview(showRow));
    if (noLab) byId("overview").append(h("p", { class: "facts" }, `This page has no lab: ${noLab} There may be one with PyTorch behind it: chainrule lab FILE.`));
    searchOverview(byId("overview"), search().value);
  }
  if (name === "picture" && !byId("picture").hasChildNodes()) {
    startPicture();
  }
}

/**
 * Show a row in the value table.
 * @param {Row} row
 */
function showRow(row) {
  search().value = "";
  searchValues("");
  openTab("values");
  mark({ row: row.index, role: "value" }, true);
  const link = lineOf(row.index)?.querySelector("a, td[tabindex]");
  if (link instanceof HTMLElement) link.focus({ preventScroll: true });
}

// -- search and theme -------------------------------------------------------------------------------------------------

function search() {
  return /** @type {HTMLInputElement} */ (byId("search"));
}

function startSearch() {
  search().addEventListener("input", find);
  search().addEventListener("keydown", (event) => {
    if (event.key === "Enter") goToFirst();
    else if (event.key === "Escape") clearSearch();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || (event.target instanceof Element && event.target.closest("input"))) return;
    event.preventDefault();
    search().focus();
  });
}

/** Show what has the text alone: values by their name, symbol, code or number, modules, and findings. */
function find() {
  const words = search().value.trim().toLowerCase();
  const met = searchValues(words);
  searchOverview(byId("overview"), words);
  const said = words ? foundFindings(words) : [];
  const lines = said.map((finding) => h("li", { class: "found" }, h("a", { href: fragment(finding.anchor) }, text(finding.title))));
  byId("rows").prepend(...lines);
  if (lines.length && !met.length) byId("rows").querySelector(".nothing")?.remove();
  const findingsToo = lines.length ? `, ${lines.length} findings` : "";
  byId("status").textContent = words ? `${met.length} of ${rows.length} values${findingsToo}` : "";
}

/** @param {string} wanted */
function foundFindings(wanted) {
  const said = (/** @type {import("./types.d.ts").Section} */ finding) => [plainText(finding.title), ...(finding.blocks ?? []).map((block) => (block.block === "paragraph" ? plainText(block.text) : ""))];
  return findings().filter((finding) => said(finding).join(" ").toLowerCase().includes(wanted));
}

function goToFirst() {
  const wanted = search().value.trim().toLowerCase();
  if (!wanted) return;
  const met = searchValues(wanted);
  const row = met.find((each) => each.name.toLowerCase() === wanted || `dj/d${each.name}`.toLowerCase() === wanted) ?? met[0];
  const finding = foundFindings(wanted)[0];
  if (!row && !finding) return find();
  const number = row ? numberFound(row) : null;
  clearSearch();
  if (!row) return walkTo(finding.anchor);
  const backwards = number ? number.role === "gradient" : wanted.startsWith("dj/d");
  const anchor = (backwards ? row.backward?.[0] : row.forward) ?? row.backward?.[0] ?? row.updates?.[0];
  if (anchor) walkTo(anchor, row);
  else showRow(row);
  if (number) pinNumber(key(number));
}

function clearSearch() {
  search().value = "";
  find();
}

function startTheme() {
  byId("theme").addEventListener("click", () => {
    const dark = getComputedStyle(document.documentElement).colorScheme.trim() === "dark" || (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
    document.documentElement.dataset.theme = dark ? "light" : "dark";
  });
}

await start();
