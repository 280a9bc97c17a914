// The findings: a bar for each on the timeline, and its text below.

import { byId, h } from "../../views/page/dom.js";
import { listen, whole } from "./scene.js";

/** @import { Drawn, Finding, Recorded } from "./types.d.ts" */
/** @import { Scene } from "./scene.js" */

const MARKS = { error: "✗", warning: "!", note: "i" };

/**
 * The timeline: findings as bars, recorded steps as marks that link to their pages.
 * @param {Scene} scene
 * @returns {HTMLElement}
 */
export function timeline(scene) {
  const { findings, recordings } = scene.run;
  const bars = findings.map((finding, place) => bar(finding, place));
  const marks = recordings.map((recorded) => mark(recorded));
  const plot = h(
    "div",
    { class: "plot", tabindex: "0", role: "group", "aria-label": "findings and recorded steps over time" },
    bars.map((each) => h("div", { class: "lane-of-time" }, each)),
    recordings.length ? h("div", { class: "lane-of-time recorded" }, marks) : null,
  );
  const line = listen(scene, plot);
  /** @type {Drawn} */
  const drawn = {
    mark: line,
    draw() {
      findings.forEach((finding, place) => {
        const first = scene.columnOf(finding.since ?? 0);
        const last = finding.until === null ? scene.count - 1 : scene.columnOf(finding.until);
        put(scene, bars[place], first, last + 1);
      });
      recordings.forEach((recorded, place) => {
        const column = scene.columnOf(recorded.step);
        put(scene, marks[place], column + 0.5, column + 0.5);
      });
    },
  };
  scene.add(drawn);
  const names = [
    ...findings.map((finding) => h("span", { title: finding.text }, `${finding.id}: ${finding.where}`)),
    ...(recordings.length ? [h("span", null, "recorded in full")] : []),
  ];
  return h(
    "figure",
    { class: "chart times" },
    h("figcaption", null, h("h2", null, "findings"), h("div", { class: "lanes-named" }, names)),
    plot,
  );
}

/**
 * @param {Finding} finding
 * @param {number} place
 */
function bar(finding, place) {
  const time = when(finding.since, finding.until);
  const label = `${finding.severity}${time && `, ${time}`}: ${finding.text}`;
  return h("a", { class: `found ${finding.severity}`, href: `#finding-${place + 1}`, "aria-label": label, title: label });
}

/** @param {Recorded} recorded */
function mark(recorded) {
  const label = `step ${whole(recorded.step)}, recorded in full: ${recorded.reason}`;
  const tag = recorded.link ? "a" : "span";
  return h(tag, { class: "recorded-step", href: recorded.link || null, "aria-label": label, title: label });
}

/**
 * @param {Scene} scene
 * @param {HTMLElement} element
 * @param {number} first
 * @param {number} end
 */
function put(scene, element, first, end) {
  element.hidden = end < scene.from || first >= scene.to;
  const left = Math.max(0, scene.percent(first));
  element.style.left = `${left}%`;
  element.style.width = end > first ? `${Math.min(100, scene.percent(end)) - left}%` : "";
}

/**
 * The findings as text.
 * @param {Scene} scene
 * @returns {Node[]}
 */
export function texts(scene) {
  const { findings } = scene.run;
  if (!findings.length) return [h("h2", null, "Findings"), h("p", null, "No findings.")];
  return [
    h("h2", null, `Findings (${findings.length})`),
    h("ol", null, findings.map((finding, place) => item(scene, finding, place))),
  ];
}

/**
 * A link to the finding that caused this one.
 * @param {Scene} scene
 * @param {Finding} finding
 */
function effectOf(scene, finding) {
  const place = scene.run.findings.findIndex((each) => `${each.id}: ${each.where}` === finding.because);
  if (place < 0) return null;
  return h("p", null, "Most likely because of ", h("a", { href: `#finding-${place + 1}` }, finding.because));
}

/**
 * @param {number | null} since
 * @param {number | null} until
 */
function when(since, until) {
  if (since === null) return "";
  if (until === null) return `since step ${whole(since)}`;
  return since === until ? `at step ${whole(since)}` : `steps ${whole(since)} to ${whole(until)}`;
}

/**
 * Move the line to where a finding begins.
 * @param {Scene} scene
 * @param {Finding} finding
 */
function goToFinding(scene, finding) {
  if (finding.since !== null) scene.goTo(finding.since, finding.where);
}

/**
 * Move the line to the finding that the address names.
 * @param {Scene} scene
 */
export function followAddress(scene) {
  const finding = scene.run.findings[Number(/^#finding-(\d+)$/.exec(location.hash)?.[1]) - 1];
  if (finding) goToFinding(scene, finding);
}

/**
 * @param {Scene} scene
 * @param {Finding} finding
 * @param {number} place
 */
function item(scene, finding, place) {
  const { since, until } = finding;
  const go = () => {
    goToFinding(scene, finding);
    byId("course").scrollIntoView({ block: "start" });
  };
  const time = when(since, until);
  return h(
    "li",
    { id: `finding-${place + 1}`, class: `finding ${finding.severity}`, tabindex: "-1" },
    h("p", null, h("b", { class: "mark" }, `${MARKS[finding.severity]} ${finding.severity}`), " ", h("code", null, finding.id), " ",
      time ? h("button", { type: "button", class: "link", onclick: go }, time) : null),
    h("p", null, finding.text, finding.place ? h("code", { class: "place" }, ` ${finding.place}`) : null),
    effectOf(scene, finding),
    finding.evidence.length ? h("ul", null, finding.evidence.map((each) => h("li", null, each))) : null,
    finding.advice ? h("p", { class: "facts" }, finding.advice) : null,
  );
}
