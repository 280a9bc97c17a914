// What the lab says beside its table: the sum behind the chosen number's gradient, and the curve of the loss.

import { byId, h, math, svg } from "./dom.js";
import { indexAt } from "./engine.js";
import { number } from "./numbers.js";
import { rows } from "./store.js";

/** @import { LabChosen } from "./types.d.ts" */

/**
 * The sum behind the chosen element's gradient, and what a measured difference says of it.
 * @param {LabChosen | undefined} found
 */
export function explained(found) {
  const place = byId("lab-chosen");
  if (!found) return place.replaceChildren();
  const row = rows[found.row];
  const index = indexAt(row.value.shape, found.place).join(",");
  const more = found.more ? ` + ${found.more} more` : "";
  return place.replaceChildren(
    h("p", null, math(row.gradient_symbol), `${index ? `[${index}]` : ""} = ${number(found.gradient)}`, h("span", { class: `lab-verdict ${found.verdict === "agrees" ? "good" : ""}` }, ` ${verdictOf(found)}`)),
    found.terms.length ? h("p", { class: "facts" }, "Its sum: what arrives, times the local derivative (an entry of the Jacobian)") : "",
    found.terms.length
      ? h("ol", { class: "terms" }, found.terms.map((term, k) => h("li", null, k ? "+ " : "= ", term.factors.map(([text, x]) => `${text} (${number(x)})`).join(" · "), term.factors.length ? ` = ${number(term.value)}` : number(term.value), term.text ? h("span", { class: "facts" }, ` ${term.text}`) : null)), more ? h("li", null, more) : null)
      : "",
  );
}

/** @param {LabChosen} found */
function verdictOf(found) {
  const how = `moving it by ±${number(found.step)} in ${found.precise}`;
  if (found.verdict === "not measured") return `not measured: ${how} gives no finite loss`;
  const measured = `measured by ${how}: ${number(found.measured)}`;
  if (found.verdict === "agrees") return `agrees with ${number(found.measured)}, measured by ${how}`;
  if (found.verdict === "corner") return `${measured}; from below ${number(found.sides[0])}, from above ${number(found.sides[1])}: there is a corner, where the gradient is a convention`;
  if (found.verdict === "too coarse") return `${measured}, which is too coarse for a verdict`;
  return `${measured}, which differs: a rule by convention (as straight through a rounding), or a wrong one`;
}

/**
 * The loss after each step that was taken.
 * @param {number[]} losses
 */
export function curve(losses) {
  const place = byId("lab-curve");
  if (losses.length < 2) return place.replaceChildren();
  const [low, high] = [Math.min(...losses), Math.max(...losses)];
  const points = losses.map((each, i) => `${(100 * i) / (losses.length - 1)},${36 - (32 * (each - low)) / (high - low || 1)}`);
  return place.replaceChildren(
    svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": `loss over ${losses.length - 1} steps, from ${number(losses[0])} to ${number(losses[losses.length - 1])}` },
      svg("polyline", { points: points.join(" "), class: "lab-line" })),
    h("span", { class: "facts" }, `${losses.length - 1} ${losses.length === 2 ? "step" : "steps"}`),
  );
}
