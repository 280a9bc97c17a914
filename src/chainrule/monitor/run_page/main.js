// The page of a run: the parts are built once, and each redraws itself when the visible columns change.

import { byId, h } from "../../views/page/dom.js";
import { chart } from "./curves.js";
import { followAddress, texts, timeline } from "./findings.js";
import { BLANK, heat } from "./heat.js";
import { Scene, axis, text, whole } from "./scene.js";

/** @import { RunPage } from "./types.d.ts" */

/** @type {RunPage} */
const run = JSON.parse(byId("data").textContent ?? "");
const scene = new Scene(run);

function head() {
  byId("title").textContent = run.title;
  byId("about").append(...run.about.map(([name, fact]) => h("div", null, h("dt", null, name), h("dd", null, fact))));
  byId("theme").addEventListener("click", () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
    document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    if (scene.count) scene.show(scene.from, scene.to);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => scene.count && scene.show(scene.from, scene.to));
  byId("earlier").addEventListener("click", () => scene.move(-0.5));
  byId("later").addEventListener("click", () => scene.move(0.5));
  byId("in").addEventListener("click", () => scene.zoom(0.5));
  byId("out").addEventListener("click", () => scene.zoom(2));
  byId("all").addEventListener("click", () => scene.show(0, scene.count));
}

function course() {
  const { loss, rates, maps, findings, recordings } = run;
  const parts = [chart(scene, { title: "loss", hue: "value", lines: [loss.mean], band: [loss.low, loss.high] })];
  if (rates.length) parts.push(chart(scene, { title: "learning rate", hue: "plain", lines: rates }));
  if (findings.length || recordings.length) parts.push(timeline(scene));
  byId("course").append(...parts, axis(scene), ...maps.map((map) => heat(scene, map)), axis(scene));
  byId("findings").append(...texts(scene));
}

function span() {
  const most = Math.ceil(run.watched / Math.max(1, scene.count));
  const [first] = run.columns[scene.from];
  const [, last] = run.columns[scene.to - 1];
  const wide = most > 1 ? `; a column covers up to ${most} watched steps, and heat maps show their maximum` : "";
  byId("span").textContent = `steps ${whole(first)} to ${whole(last)}${wide}`;
}

function readout() {
  const { loss, rates, skipped, maps, recordings } = run;
  const at = scene.at;
  const [first, last] = run.columns[at];
  const several = first !== last && loss.low[at] !== loss.high[at];
  /** @type {[string, string][]} */
  const facts = [["loss", text(loss.mean[at]) + (several ? ` (${text(loss.low[at])} to ${text(loss.high[at])})` : "")]];
  if (rates.length) facts.push(["learning rate", rates.map((rate) => text(rate[at])).join(", ")]);
  if (skipped[at]) facts.push(["skipped by the GradScaler", `${skipped[at]} step${skipped[at] > 1 ? "s" : ""}`]);
  for (const map of maps) {
    const row = map.rows.findIndex((each) => each.name === scene.row);
    const cell = row < 0 ? undefined : map.cells[row][at];
    if (cell !== undefined) facts.push([map.title, cell === null ? BLANK.replace("blank: ", "") : text(cell)]);
  }
  const full = recordings.filter((each) => each.step >= first && each.step <= last);
  byId("readout").replaceChildren(
    h("h2", null, scene.steps(at)),
    scene.row ? h("p", null, h("code", null, scene.row)) : h("p", { class: "facts" }, "Point at a heat map to select a tensor."),
    h("dl", null, facts.flatMap(([name, fact]) => [h("dt", null, name), h("dd", null, fact)])),
    ...full.map((each) =>
      h("p", null, each.link ? h("a", { href: each.link }, `Open step ${whole(each.step)}`) : `Step ${whole(each.step)} is recorded in full`, ` (${each.reason})`),
    ),
  );
}

function open() {
  head();
  if (!scene.count) {
    byId("course").append(h("p", null, "No step has been watched yet."));
    if (run.findings.length) byId("findings").append(...texts(scene));
  } else {
    course();
    scene.add({ draw: span, mark: readout });
    scene.show(0, scene.count);
    followAddress(scene);
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView(); // built after the browser looked
    window.addEventListener("hashchange", () => followAddress(scene));
    document.addEventListener("keydown", (event) => {
      const link = byId("readout").querySelector("a");
      if (event.key === "Enter" && link && document.activeElement?.classList.contains("plot")) link.click();
    });
  }
  document.documentElement.dataset.ready = "";
}

open();
