// The walk: forward, loss, backward, update, one step after another; the detail pane shows the current one.

import { sectionOf, shown, text, plainText, waysOf } from "./blocks.js";
import { closeUp, startCloseUp } from "./closeup.js";
import { byId, h, math } from "./dom.js";
import { addressOf, isPassed, layoutBeside, rowShown } from "./lines.js";
import { followInPicture } from "./picture.js";
import { mark } from "./values.js";
import { below, fragment, fragmentFor, named, rowOf, rows, stopOf, stops } from "./store.js";
import { shapeText, tensor } from "./tensors.js";

/** @import { Way } from "./blocks.js" */
/** @import { Row, Stop } from "./types.d.ts" */

const FEW = 36; // numbers above a step that are not folded
const PAUSE = 2200; // milliseconds on each step while it plays

let current = 0;
/** @type {Row | null} the row that was followed here, if the step shown is that of a repeated block */
let viewed = null;
/** @type {Way} */
let way = "both";
/** @type {ReturnType<typeof setInterval> | null} */
let playing = null;

export function startWalk() {
  byId("previous").addEventListener("click", () => go(beside(-1)));
  byId("next").addEventListener("click", () => go(beside(1)));
  byId("play").addEventListener("click", () => play(playing === null));
  for (const button of document.querySelectorAll("input[name=way]")) {
    button.addEventListener("change", () => {
      way = /** @type {Way} */ (/** @type {HTMLInputElement} */ (button).value);
      render();
    });
  }
  byId("phases").append(...phases());
  startCloseUp();
  window.addEventListener("hashchange", () => {
    if (!open(location.hash.slice(1), false) && location.hash.length <= 1) go(0, false);
  });
  document.addEventListener("click", followLink);
  document.addEventListener("keydown", onKey);
  go(0, false);
  open(location.hash.slice(1), false);
}

/**
 * Go to what an address names. Returns whether it names a step.
 * @param {string} address
 * @param {boolean} [asNamed] whether to set the address
 */
function open(address, asNamed = true) {
  const found = decoded(address);
  if (found) go(found.stop, asNamed, found.row);
  if (found && stops[found.stop].whole) document.querySelector(`#step [data-anchor="${CSS.escape(decodeURIComponent(address))}"]:not(:first-child)`)?.scrollIntoView({ block: "nearest" });
  return found !== undefined;
}

/** @param {string} address */
function decoded(address) {
  try {
    return named(decodeURIComponent(address));
  } catch {
    return undefined; // a malformed escape names no step
  }
}

/**
 * @param {string} anchor
 * @param {Row} [row] the row to show
 */
export function walkTo(anchor, row) {
  open((row ? addressOf(anchor, row) : fragment(anchor)).slice(1));
}

/**
 * Follow links to steps: in a notebook's frame the address cannot change.
 * @param {MouseEvent} event
 */
function followLink(event) {
  const target = event.target instanceof Element ? event.target : null;
  const link = target?.closest('a[href^="#"]');
  if (link && !event.ctrlKey && !event.metaKey && open(link.getAttribute("href")?.slice(1) ?? "")) {
    event.preventDefault();
    return;
  }
  const side = target?.closest("[data-go]");
  if (side && !target?.closest("td, button, a")) open(side.getAttribute("data-go")?.slice(1) ?? "");
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const target = event.target instanceof HTMLElement ? event.target : null;
  if (event.defaultPrevented || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (target?.closest("input, [role=tab], td[data-source], .heat") || (target && target.scrollWidth > target.clientWidth && target.tabIndex === 0)) return;
  if (event.key === "ArrowRight") go(beside(1));
  else if (event.key === "ArrowLeft") go(beside(-1));
  else if (event.key === " " && !target?.closest("button, a, summary")) play(playing === null);
  else return;
  event.preventDefault();
}

/**
 * The next stop in a direction that is more than a layout step.
 * @param {1 | -1} direction
 */
function beside(direction) {
  let stop = current + direction;
  while (isPassed(stop)) stop += direction;
  return stop;
}

/** @param {boolean} on */
function play(on) {
  if (playing !== null) clearInterval(playing);
  playing = on ? setInterval(() => (beside(1) < stops.length ? go(beside(1)) : play(false)), PAUSE) : null;
  byId("play").setAttribute("aria-pressed", String(on));
}

/**
 * @param {number} stop
 * @param {boolean} [asNamed] whether to set the address
 * @param {Row | null} [row] the row to show
 */
function go(stop, asNamed = true, row = null) {
  if (!stops.length) return;
  current = Math.min(stops.length - 1, Math.max(0, stop));
  viewed = row;
  const { anchor } = stops[current].section;
  if (asNamed) name(row ? fragmentFor(anchor, row) : fragment(anchor));
  render();
  byId("detail").scrollTop = 0;
  if (asNamed) toTheStep();
  const { section } = stops[current];
  const updated = rows.find((each) => each.updates?.includes(section.anchor));
  const at = updated ? { row: updated, role: "value" } : rowOf(section);
  const marked = at && (row ?? (isPassed(current) ? at.row : rowShown(at.row, at.role)));
  const place = at && marked && { row: marked.index, role: at.role };
  mark(place, true);
  followInPicture(place);
}

/** On a phone the step is below or above what is in sight. */
function toTheStep() {
  if (document.documentElement.scrollHeight <= innerHeight || byId("detail").scrollHeight > byId("detail").clientHeight) return;
  document.documentElement.style.setProperty("--bar", `${document.querySelector("nav")?.offsetHeight ?? 0}px`);
  byId("step").scrollIntoView({ block: "start" });
}

/** @param {string} address */
function name(address) {
  try {
    if (playing !== null || location.hash === address) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
  } catch {
    // A page in a notebook's sandboxed frame has no address.
  }
}

function render() {
  const stop = stops[current];
  byId("step").replaceChildren(...parts(stop));
  const counted = stops.map((_, place) => place).filter((place) => !isPassed(place));
  const place = counted.indexOf(current);
  byId("position").textContent = place < 0 ? "layout step" : `${place + 1} of ${counted.length}`;
  byId("status").textContent = plainText(stop.section.title);
  /** @type {HTMLButtonElement} */ (byId("previous")).disabled = beside(-1) < 0;
  /** @type {HTMLButtonElement} */ (byId("next")).disabled = beside(1) >= stops.length;
  for (const phase of document.querySelectorAll("#phases button")) {
    const [first, end] = (phase.getAttribute("data-stops") ?? "0 0").split(" ").map(Number);
    const here = current >= first && current < end;
    if (here) phase.setAttribute("aria-current", "step");
    else phase.removeAttribute("aria-current");
    const done = Math.min(1, Math.max(0, (current + 1 - first) / (end - first)));
    /** @type {HTMLElement} */ (phase).style.setProperty("--done", `${100 * done}%`);
  }
  const blocks = stop.section.blocks ?? [];
  byId("ways").hidden = waysOf(blocks, "product") === blocks;
}

/**
 * The step with its context: the text of a heading before its first step, the upstream gradient before each of its parts.
 * @param {Stop} stop
 * @param {boolean} [printed]
 * @returns {HTMLElement[]}
 */
function parts(stop, printed = false) {
  const { section, above, whole } = stop;
  const crumbs = above.map((each) => h("li", null, text(each.title)));
  const before = above.flatMap((each, depth) => (depth > 0 || isFirst(stop, each) ? (each.blocks ?? []) : []));
  const inner = whole ? below(section).slice(1) : [];
  return [
    ...(crumbs.length ? [h("ol", { class: "crumbs", "aria-label": "in" }, crumbs)] : []),
    ...(viewed && viewed.module !== rowOf(section)?.row.module ? [instead(viewed, section)] : []),
    ...(before.length ? [h("div", { class: "arrives" }, before.map(arriving))] : []),
    sectionOf(section, way, 2, printed ? null : closeUp(section, viewed)),
    layoutSteps(stop),
    printed ? null : howToRead(stop),
    ...inner.map((each) => sectionOf(each, way, 3)),
  ].filter((each) => each !== null);
}

/**
 * What stands above a step; many numbers are folded, since the step's picture has those that it is about.
 * @param {import("./types.d.ts").Block} block
 */
function arriving(block) {
  const many = block.block === "tensor" && (block.entries?.length ?? 0) > FEW;
  return many ? h("details", null, h("summary", null, math(block.symbol), ` ${block.label ?? ""}, ${shapeText(block.shape)}`), shown(block)) : shown(block);
}

/**
 * What is said once, where a phase begins: folded, for who comes to a later step of it.
 * @param {Stop} stop
 */
function howToRead(stop) {
  const [phase] = stop.above;
  if (!phase?.blocks?.length || isFirst(stop, phase)) return null;
  return h("details", { class: "how" }, h("summary", null, "how to read this, and how it was checked"), phase.blocks.map(shown));
}

/**
 * The layout steps of the user's line, folded.
 * @param {Stop} stop
 */
function layoutSteps(stop) {
  const found = layoutBeside(stops.indexOf(stop));
  if (!found.length) return null;
  const items = found.map((each) => {
    const { row, role } = /** @type {NonNullable<ReturnType<typeof rowOf>>} */ (rowOf(stops[each.stop].section));
    const names = role === "value" ? [row.name, rows[row.inputs[0]].name] : [`dJ/d${row.name}`, `dJ/d${each.result.name}`];
    const block = role === "value" ? row.value : row.gradient;
    return h("li", null, h("a", { href: fragment(stops[each.stop].section.anchor) }, h("code", null, names[0])), " has the numbers of ", h("code", null, names[1]), h("span", { class: "facts" }, ` ${each.result.operation}, ${shapeText(block?.shape ?? [])}`));
  });
  return h("details", { class: "layout-steps" }, h("summary", null, `${items.length} layout step${items.length > 1 ? "s" : ""} in this line`), h("ul", null, items));
}

/**
 * The numbers of the row that was followed, above the step of the repeated block that is shown for all.
 * @param {Row} row
 * @param {import("./types.d.ts").Section} section
 */
function instead(row, section) {
  const shownRow = rowOf(section);
  const own = shownRow?.role === "gradient" ? row.gradient : row.value;
  return h(
    "section",
    { class: "instead", "aria-label": `the numbers of ${row.name}` },
    h("p", null, "The numbers of ", h("code", null, row.name), row.module ? [" in ", h("code", null, row.module)] : "", ". Below is the same step of ", h("code", null, shownRow?.row.name ?? ""), shownRow?.row.module ? [" in ", h("code", null, shownRow.row.module)] : "", ", which is shown for all repeated blocks."),
    own && tensor(own),
  );
}

/**
 * Whether a stop is the first one below a section.
 * @param {Stop} stop
 * @param {import("./types.d.ts").Section} section
 */
function isFirst(stop, section) {
  return stopOf(section.anchor) === stops.indexOf(stop);
}

function phases() {
  /** @type {{ title: string, first: number, end: number }[]} */
  const found = [];
  stops.forEach((stop, place) => {
    const top = stop.above[0] ?? stop.section;
    const loss = rowOf(stop.section)?.row.kind === "loss" && stop.phase === "forward";
    const title = loss ? "Loss" : PHASES[top.kind] && top.kind !== "overview" && top.anchor !== "gradients" ? PHASES[top.kind] : plainText(top.title);
    const last = found.at(-1);
    const short = top.anchor === "gradients" ? (last?.title ?? title) : title;
    if (last?.title === short) last.end = place + 1;
    else found.push({ title: short, first: place, end: place + 1 });
  });
  return found.map(({ title, first, end }) => h("button", { type: "button", "data-stops": `${first} ${end}`, onclick: () => go(first) }, title));
}

/** @type {Record<string, string>} */
const PHASES = { forward: "Forward", backward: "Backward", update: "Update", note: "Findings" };

/** Every step, for printing. */
export function everyStep() {
  return stops.flatMap((stop) => parts(stop, true));
}
