// The tour: six stops with a sentence each, for who opens a page for the first time; and the legend, behind "?".

import { byId, h } from "./dom.js";
import { isPassed } from "./lines.js";
import { number, real } from "./numbers.js";
import { key, rowOf, rows, stops, sumsOf } from "./store.js";
import { pinNumber } from "./why.js";

/** @import { Row, Sum } from "./types.d.ts" */

/** @typedef {{ title: string, said: string, stop: number, pin?: string }} TourStop */

const SEEN = "chainrule-tour"; // in the browser's storage: it was closed once

/** @type {TourStop[]} */
let tour = [];
let atStop = -1; // before the first: what the tour is
/** @type {(anchor: string) => void} */
let walkThere = () => {};

/**
 * Open the tour, unless the reader came by a link or closed it once.
 * @param {(anchor: string) => void} walk
 */
export function startTour(walk) {
  walkThere = walk;
  const legend = /** @type {HTMLDialogElement} */ (byId("legend"));
  const openLegend = () => {
    legend.showModal();
    byId("legend-close").focus();
  };
  byId("help").addEventListener("click", openLegend);
  byId("legend-close").addEventListener("click", () => legend.close());
  byId("legend-tour").addEventListener("click", () => {
    legend.close();
    openTour();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, dialog");
    if (event.key === "?" && !typing) openLegend();
  });
  const framed = window.parent !== window; // by a notebook, where it would open with every page
  if (location.hash.length <= 1 && !framed && !wasSeen()) openTour();
}

function wasSeen() {
  try {
    return localStorage.getItem(SEEN) !== null;
  } catch {
    return false; // a page in a notebook's sandboxed frame has no storage
  }
}

function openTour() {
  tour = tourStops();
  atStop = -1;
  drawTour();
  byId("tour").hidden = tour.length === 0;
}

function closeTour() {
  byId("tour").hidden = true;
  try {
    localStorage.setItem(SEEN, "closed");
  } catch {
    // as above
  }
}

/** @param {number} place */
function goOn(place) {
  if (place >= tour.length) return closeTour();
  atStop = place;
  walkThere(stops[tour[place].stop].section.anchor);
  const pinned = tour[place].pin;
  if (pinned) pinNumber(pinned);
  drawTour();
  byId("tour-next").focus({ preventScroll: true });
}

function drawTour() {
  const here = tour[atStop];
  const last = atStop === tour.length - 1;
  const steps = tour.map((each, place) => h("li", null, h("button", { type: "button", class: "link", "aria-current": place === atStop ? "step" : null, onclick: () => goOn(place) }, each.title)));
  byId("tour").replaceChildren(
    h("p", null, here ? [h("strong", null, `${here.title}. `), here.said] : [h("strong", null, "New here? "), `${tour.length} stops, a sentence each, show how to read this page.`]),
    h("ol", null, steps),
    h(
      "p",
      { class: "tour-buttons" },
      h("button", { type: "button", id: "tour-next", onclick: () => goOn(atStop + 1) }, here ? (last ? "Done" : "Next stop") : "Start the tour"),
      last ? null : h("button", { type: "button", id: "tour-skip", onclick: closeTour }, here ? "End the tour" : "Skip"),
    ),
  );
}

/** The stops that this step has. */
function tourStops() {
  /** @type {TourStop[]} */
  const found = [];
  const each = stops.map((stop, place) => ({ place, phase: stop.phase, at: rowOf(stop.section), section: stop.section })).filter(({ place }) => !isPassed(place));
  const add = (/** @type {string} */ title, /** @type {{ place: number } | undefined} */ met, /** @type {string} */ said, /** @type {string | undefined} */ pin = undefined) => {
    if (met) found.push({ title, said, stop: met.place, pin });
  };
  const many = (/** @type {Sum} */ sum) => sum.summands.filter((summand) => summand.sources.length > 1).length > 1;
  const forward = each.filter(({ at }) => at?.role === "value");
  const computed = forward.find(({ at }) => at && sumsOf(at.row.index, "value").some(many)) ?? forward[0];
  add("A number forward", computed, "A value is computed from values above it in the table. The picture shows which numbers make one of its numbers: point at another one to see its own.");
  const loss = forward.find(({ at }) => at?.row.kind === "loss");
  const cost = loss?.at?.row.value.entries?.[0];
  add("The loss", loss, `All of it ends in one number${cost === undefined ? "" : `, ${loss?.at?.row.name} = ${number(cost)}`}: how wrong the model was. Training makes it smaller.`);
  add("The seed", each.find(({ at }) => at?.role === "gradient"), "Backward begins at the loss with its derivative by itself, which is 1. It visits the same operations in the opposite order.");
  const parameters = each.filter(({ at }) => at?.role === "gradient" && at.row.kind === "parameter");
  add("One product", parameters.find(({ at }) => at && sumsOf(at.row.index, "gradient").some(many)) ?? parameters[0], "A gradient is the gradient that arrived, times the local derivative, added up over all numbers that this one went into.");
  const zero = zeroOf(each);
  add("A zero", zero?.met, `A zero has a cause. Here, below: ${zero?.reason}.`, zero?.pin);
  add("An update", each.find(({ section }) => section.kind === "update"), "The optimizer changes the parameter by its gradient. This is what all of the above was computed for.");
  return found;
}

/**
 * A gradient that is zero for a known reason.
 * @param {{ place: number, at: { row: Row, role: string } | null }[]} all
 */
function zeroOf(all) {
  for (const met of all) {
    if (met.at?.role !== "gradient") continue;
    for (const sum of sumsOf(met.at.row.index, "gradient")) {
      const reason = sum.summands.find((summand) => summand.reason)?.reason;
      const total = sum.summands.reduce((before, summand) => before + Math.abs(real(summand.value)), 0);
      if (reason && total === 0) return { met, reason: `dJ/d${rows[sum.of.row].name}[${sum.of.index.join(",")}] = 0, since ${reason}`, pin: key(sum.of) };
    }
  }
  return undefined;
}
