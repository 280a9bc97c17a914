// The value table: every value of the step beside its gradient. Forward runs down on the left, backward up on the right.

import { MARKS } from "./blocks.js";
import { h, math, svg } from "./dom.js";
import { lanes } from "./lanes.js";
import { number } from "./numbers.js";
import { addressOf, computesOne, isFolded, lineOfRow } from "./lines.js";
import { rows, unravel, uses } from "./store.js";
import { brief, norm } from "./tensors.js";

/** @import { Row } from "./types.d.ts" */
/** @import { Drawn, Vertex } from "./lanes.js" */

/** @typedef {{ path: string, name: string, items: (Group | Row)[], rows: Row[], open: boolean, line?: boolean }} Group */
/** @typedef {{ group: Group, depth: number } | { row: Row, depth: number }} Line */

const LANE = 14;
const MOST_LANES = 12; // further lanes are drawn on the last one
const MANY = 40; // rows; most tensors of such a step are thumbnails, so names get more room
const LONG = 10; // characters from which a name in a denominator is small
const BROKEN = 20; // characters from which a name is text, which wraps, unlike a formula
const BROKEN_BELOW = 11; // the same, in a denominator
/** @type {any} how far ahead lines are filled; TypeScript lacks scrollMargin */
const MARGIN = { rootMargin: "800px", scrollMargin: "800px" };
const AT_ONCE = 120; // lines that are filled before they are visible

/** @type {(Group | Row)[]} */
let tree = [];
/** @type {HTMLElement} */
let list;
/** @type {IntersectionObserver | null} */
let watcher = null;
/** @type {Map<Element, () => void>} */
const unfilled = new Map();
let wanted = "";
/** @type {{ row: number, role: string } | null} */
let marked = null;

/** @param {HTMLElement} place */
export function startValues(place) {
  list = place;
  list.parentElement?.classList.toggle("many", rows.length > MANY);
  tree = grouped(rows, 0, "");
  foldRepeated(tree);
  draw();
}

// -- groups -----------------------------------------------------------------------------------------------------------

/** @param {Row} row */
function segments(row) {
  return row.module ? row.module.split(".") : [];
}

/**
 * Runs of rows from one module, with runs from one submodule in them.
 * @param {Row[]} some
 * @param {number} depth
 * @param {string} above
 * @returns {(Group | Row)[]}
 */
function grouped(some, depth, above) {
  /** @type {(Group | Row)[]} */
  const items = [];
  for (let first = 0; first < some.length; ) {
    const name = segments(some[first])[depth];
    let end = first + 1;
    while (end < some.length && segments(some[end])[depth] === name) end++;
    const run = some.slice(first, end);
    first = end;
    if (name === undefined || run.length === 1) items.push(...(name === undefined ? byLine(run) : run));
    else items.push(group(run, depth, above ? `${above}.${name}` : name, name));
  }
  return items;
}

/**
 * One line for each line of the user's code that computes one thing; of others, their layout steps are one line.
 * @param {Row[]} some
 * @returns {(Group | Row)[]}
 */
function byLine(some) {
  /** @type {(Group | Row)[]} */
  const items = [];
  for (let first = 0; first < some.length; ) {
    const line = lineOfRow[some[first].index];
    let end = first + 1;
    const joins = (/** @type {Row} */ row) => lineOfRow[row.index] === line && (computesOne(line) || (isFolded(row) && isFolded(some[first])));
    while (end < some.length && joins(some[end])) end++;
    const run = some.slice(first, end);
    const path = `line ${run[0].index}`;
    if (run.length === 1 && !(isFolded(run[0]) && !computesOne(line))) items.push(run[0]);
    else items.push({ path, name: run.at(-1)?.expression ?? "", items: run, rows: run, open: false, line: true });
    first = end;
  }
  return items;
}

/**
 * A group. If it contains only another group, the two become one, with both names.
 * @param {Row[]} run
 * @param {number} depth
 * @param {string} path
 * @param {string} name
 * @returns {Group}
 */
function group(run, depth, path, name) {
  const items = grouped(run, depth + 1, path);
  const [only] = items;
  if (items.length === 1 && "items" in only && !only.line) return { ...only, name: `${name}.${only.name}` };
  return { path, name, items, rows: run, open: true };
}

/**
 * Fold numbered blocks that run the same operations, all but the first.
 * @param {(Group | Row)[]} items
 */
function foldRepeated(items) {
  const seen = new Set();
  for (const item of items) {
    if (!("items" in item) || item.line) continue;
    const signature = item.rows.map((row) => row.operation).join(" ");
    if (/(^|\.)\d+$/.test(item.name)) {
      item.open = !seen.has(signature);
      seen.add(signature);
    }
    foldRepeated(item.items);
  }
}

/** @param {boolean} open */
export function foldAll(open) {
  const waiting = [...tree];
  for (let item = waiting.pop(); item; item = waiting.pop()) {
    if (!("items" in item)) continue;
    item.open = open;
    waiting.push(...item.items);
  }
  draw();
}

/**
 * Show the rows that have the text, or the number, alone.
 * @param {string} text
 * @returns {Row[]}
 */
export function searchValues(text) {
  wanted = text.trim().toLowerCase();
  draw();
  return wanted ? rows.filter(matches) : [];
}

/** @param {Row} row */
function matches(row) {
  const words = [row.name, row.expression, row.module, row.operation, math(row.symbol).textContent ?? ""];
  return words.some((each) => each.toLowerCase().includes(wanted)) || (row.gradient && `dj/d${row.name}`.toLowerCase().includes(wanted)) || numberFound(row) !== null;
}

/**
 * Where a row has the number that is searched: a number that begins with it, or is it if it is one digit.
 * @param {Row} row
 * @returns {import("./types.d.ts").Source | null}
 */
export function numberFound(row) {
  if (!/^[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d*)?$/.test(wanted)) return null;
  for (const role of /** @type {const} */ (["value", "gradient"])) {
    const block = role === "value" ? row.value : row.gradient;
    const place = (block?.entries ?? []).findIndex((entry) => {
      const said = number(entry);
      return wanted.length > 1 ? said.startsWith(wanted) : said === wanted;
    });
    if (block && place >= 0) return { row: row.index, role, index: unravel(place, block.shape) };
  }
  return null;
}

/**
 * The lines that are shown now.
 * @param {(Group | Row)[]} items
 * @param {number} depth
 * @returns {Line[]}
 */
function lines(items, depth) {
  return items.flatMap((item) => {
    if (!("items" in item)) return [{ row: item, depth }];
    return item.open ? [{ group: item, depth }, ...lines(item.items, depth + 1)] : [{ group: item, depth }];
  });
}

// -- drawing ----------------------------------------------------------------------------------------------------------

function draw() {
  watcher?.disconnect();
  unfilled.clear();
  watcher = new IntersectionObserver(fillSeen, MARGIN);
  const seen = wanted ? rows.filter(matches).map((row) => ({ row, depth: 0 })) : lines(tree, 0);
  const drawn = lanes(vertices(seen));
  const width = LANE * (Math.min(MOST_LANES, Math.max(1, ...drawn.flatMap((each) => [each.lane, ...each.lines.map((l) => l.from)].map((l) => l + 1)))) + 0.5);
  list.parentElement?.style.setProperty("--lanes", `${width}px`);
  const made = seen.map((line, place) => drawnLine(line, drawn[place], width, place < AT_ONCE));
  list.replaceChildren(...made);
  if (!seen.length) list.append(h("li", { class: "nothing" }, "No value has that name or number."));
  mark(marked);
}

/**
 * @param {Line[]} seen
 * @returns {Vertex[]}
 */
function vertices(seen) {
  const vertexOf = new Map();
  seen.forEach((line, place) => {
    if ("row" in line) vertexOf.set(line.row.index, place);
    else if (!line.group.open) line.group.rows.forEach((row) => vertexOf.set(row.index, place));
  });
  return seen.map((line, place) => {
    if ("group" in line && line.group.open) return null;
    const own = "row" in line ? [line.row] : line.group.rows;
    const inputs = new Set(own.flatMap((row) => row.inputs.map((input) => vertexOf.get(input))));
    inputs.delete(undefined);
    inputs.delete(place);
    return { id: place, inputs };
  });
}

/** @param {IntersectionObserverEntry[]} entries */
function fillSeen(entries) {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    unfilled.get(entry.target)?.();
    unfilled.delete(entry.target);
    watcher?.unobserve(entry.target);
  }
}

/**
 * @param {Line} line
 * @param {Drawn} drawn
 * @param {number} width
 * @param {boolean} now
 */
function drawnLine(line, drawn, width, now) {
  const ends = "group" in line && line.group.line && !line.group.open && line.group.rows.some((each) => !each.layout) ? line.group : null;
  const row = ends ? ends.rows[ends.rows.length - 1] : "row" in line ? line.row : null;
  const kind = row ? `row ${row.kind}` : "group" in line && (line.group.open || line.group.line) ? "group open" : "group folded";
  const made = h("li", { class: kind });
  made.style.setProperty("--depth", String(line.depth));
  if (row) made.dataset.row = String(row.index);
  if ("group" in line && line.group.line && !line.group.open) made.dataset.rows = line.group.rows.map((each) => each.index).join(" ");
  const fill = () => {
    made.append(lanePicture(drawn, width), ...(row ? rowParts(row, ends) : groupParts(/** @type {{ group: Group }} */ (line).group)));
  };
  if (now) fill();
  else {
    unfilled.set(made, fill);
    watcher?.observe(made);
  }
  return made;
}

/**
 * @param {Drawn} drawn
 * @param {number} width
 */
function lanePicture(drawn, width) {
  const x = (/** @type {number} */ lane) => LANE * (Math.min(lane, MOST_LANES - 1) + 0.75);
  const paths = drawn.lines.map(({ from, to, part }) => {
    const ends = part === "through" ? "V 100" : part === "in" && from === to ? "V 50" : "";
    const path =
      part === "out" ? `M ${x(to)} 50 V 100` : ends ? `M ${x(from)} 0 ${ends}` : `M ${x(from)} 0 C ${x(from)} 38 ${x(to)} 12 ${x(to)} 50`;
    return svg("path", { d: path, class: `lane lane-${from % 4}` });
  });
  const picture = svg("svg", { viewBox: `0 0 ${width} 100`, preserveAspectRatio: "none" }, paths);
  const holder = h("span", { class: "lanes", "aria-hidden": "true" }, picture);
  if (drawn.lane >= 0) {
    const dot = h("i", { class: "dot" });
    dot.style.left = `${x(drawn.lane)}px`;
    holder.append(dot);
  }
  return holder;
}

/**
 * @param {Row} row
 * @param {Group | null} whole the line of code whose result it is, if its other rows are folded
 * @returns {HTMLElement[]}
 */
function rowParts(row, whole) {
  const computed = whole?.rows.find((each) => !each.layout) ?? row;
  const used = uses[row.index].length;
  const written = row.name.length > BROKEN ? longName(row.name) : math(row.symbol);
  const symbol = row.forward ? h("a", { href: addressOf(row.forward, row), "aria-label": row.name }, written) : h("span", null, written);
  const kind = row.kind === "operation" ? computed.operation : row.kind === "loss" ? `loss, ${computed.operation}` : row.kind;
  const about = [kind, row.place, used > 1 ? `used ${used} times` : ""].filter(Boolean).join(" · ");
  const { expression } = row;
  return [
    h("div", { class: "name" }, h("div", { class: "symbol" }, symbol, expression && h("code", { title: expression }, expression)), h("div", { class: "facts" }, about), whole && unfolding(whole)),
    h("div", { class: "side value", "data-go": row.forward ? addressOf(row.forward, row) : null }, brief(row.value, row)),
    h("div", { class: "side gradient", "data-go": row.backward?.length ? addressOf(row.backward[0], row) : null }, row.gradient ? brief(row.gradient, row) : h("span", { class: "facts none" }, "no gradient")),
    back(row, whole?.rows ?? [row]),
  ];
}

/** @param {Group} whole */
function unfolding(whole) {
  const count = whole.rows.filter((row) => row.layout).length;
  return h("button", { type: "button", class: "fold layout", "aria-expanded": String(whole.open), "data-path": whole.path, onclick: () => fold(whole) }, h("span", { class: "arrow", "aria-hidden": "true" }, "▸"), `${count} layout step${count === 1 ? "" : "s"}`);
}

/**
 * A path as text that may wrap at its dots.
 * @param {string} path
 */
function longName(path) {
  return h("span", { class: "long-name" }, path.split(/(?<=[./])/).flatMap((part) => [part, h("wbr")]));
}

/**
 * @param {Row} row
 * @param {Row[]} whole the rows of its line
 */
function back(row, whole) {
  const anchors = row.backward ?? [];
  const symbol = row.name.length > BROKEN_BELOW ? longName(`dJ/d${row.name}`) : math(row.gradient_symbol);
  const parts = h("div", { class: row.name.length > LONG ? "back long" : "back" });
  if (!row.gradient) return parts;
  const link = anchors.length === 1 ? h("a", { href: addressOf(anchors[0], row), "aria-label": `gradient of ${row.name}` }, symbol) : h("span", null, symbol);
  parts.append(link);
  if (anchors.length > 1) {
    const links = anchors.map((anchor, place) => h("a", { href: addressOf(anchor, row), "aria-label": `contribution ${place + 1} to the gradient of ${row.name}` }, String(place + 1)));
    parts.append(h("span", { class: "sum" }, `∑ of ${anchors.length} uses `, links));
  }
  const verdict = whole.map((each) => each.verdict).find((each) => each && each !== "agrees") ?? row.verdict;
  if (verdict) {
    const title = `check: ${verdict}`;
    parts.append(h("span", { class: `mark ${verdict.replaceAll(" ", "-")}`, role: "img", title, "aria-label": title }, MARKS[verdict]));
  }
  return parts;
}

/**
 * @param {Group} some
 * @returns {HTMLElement[]}
 */
function groupParts(some) {
  if (some.line) return [unfolding(some)];
  const result = some.rows.findLast((row) => row.kind === "operation" || row.kind === "loss");
  const count = some.rows.filter((row) => row.kind !== "parameter" && row.kind !== "data").length;
  const toggle = h(
    "button",
    { type: "button", class: "fold", "aria-expanded": String(some.open), "data-path": some.path, onclick: () => fold(some) },
    h("span", { class: "arrow", "aria-hidden": "true" }, "▸"),
    h("code", null, /^\d+$/.test(some.name) ? some.path.split(".").slice(-2).join(".") : some.name),
    h("span", { class: "facts" }, `${count} operation${count === 1 ? "" : "s"}`),
  );
  if (some.open || !result) return [toggle];
  const size = (/** @type {number} */ value) => h("span", { class: "facts" }, `norm ${number(value)}`);
  return [
    toggle,
    h("div", { class: "side value" }, size(norm(result.value))),
    h("div", { class: "side gradient" }, result.gradient ? size(norm(result.gradient)) : null),
    h("div", { class: "back" }),
  ];
}

/** @param {Group} some */
function fold(some) {
  some.open = !some.open;
  draw();
  for (const button of list.querySelectorAll("button.fold")) {
    if (/** @type {HTMLElement} */ (button).dataset.path === some.path) /** @type {HTMLElement} */ (button).focus();
  }
}

// -- the current step in the table ----------------------------------------------------------------------------------------

/**
 * Mark the row of the current step, on the side that the step computes; unfold it and scroll to it.
 * @param {{ row: number, role: string } | null} at
 * @param {boolean} [scroll]
 */
export function mark(at, scroll = false) {
  marked = at;
  if (at && scroll && !wanted && reveal(tree, at.row)) draw();
  for (const old of list.querySelectorAll("li.current")) old.classList.remove("current", "at-value", "at-gradient");
  const line = at && lineOf(at.row);
  if (!line) return;
  line.classList.add("current", `at-${at.role}`);
  if (scroll) bringIntoSight(line);
}

/**
 * Scroll the table, but not the page around it: the reader may be looking at the step.
 * @param {HTMLElement} line
 * @param {number} [tries]
 */
function bringIntoSight(line, tries = 3) {
  const pane = line.closest("[role=tabpanel]");
  if (!pane || pane.scrollHeight <= pane.clientHeight) return;
  const head = pane.querySelector(".directions")?.clientHeight ?? 0;
  const box = line.getBoundingClientRect();
  const frame = pane.getBoundingClientRect();
  if (box.top < frame.top + head || box.bottom > frame.bottom) pane.scrollTop += box.top - frame.top - frame.height / 3;
  // Lines get their true height when they become visible, which moves those below them.
  if (tries) requestAnimationFrame(() => bringIntoSight(line, tries - 1));
}

/**
 * @param {number} row
 * @returns {HTMLElement | null}
 */
export function lineOf(row) {
  const line = /** @type {HTMLElement | null} */ (list.querySelector(`li[data-row="${row}"], li[data-rows~="${row}"]`));
  if (line) unfilled.get(line)?.();
  if (line) unfilled.delete(line);
  return line;
}

/**
 * Open the groups around a row. Returns whether one was closed.
 * @param {(Group | Row)[]} items
 * @param {number} row
 * @returns {boolean}
 */
function reveal(items, row) {
  for (const item of items) {
    if (!("items" in item) || !item.rows.some((each) => each.index === row)) continue;
    if (item.line && row === item.rows[item.rows.length - 1].index && !item.rows.every((each) => each.layout)) return false; // it stands for the line
    const closed = !item.open;
    item.open = true;
    return reveal(item.items, row) || closed;
  }
  return false;
}
