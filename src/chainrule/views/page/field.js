// A number that can be typed, stepped by the arrow keys, or dragged.

import { h } from "./dom.js";
import { number } from "./numbers.js";

/** @typedef {{ current: () => number, begun: () => void, put: (x: number) => void, left: () => void }} Changes */

const DRAGGED = 4; // pixels for one step

/**
 * `begun` is called before the first change since the field got the focus, `put` with each number.
 * @param {string} label
 * @param {Changes} changes
 * @param {boolean} floating
 */
export function changeableField(label, { current, begun, put, left }, floating) {
  const made = /** @type {HTMLInputElement} */ (h("input", { type: "text", inputmode: "decimal", "aria-label": label, autocomplete: "off", spellcheck: "false" }));
  let isBegun = false;
  let x = NaN; // as it is being changed
  const move = (/** @type {number} */ to) => {
    if (!isBegun) begun();
    isBegun = true;
    x = to;
    put(x);
  };
  const size = () => (floating ? 10 ** Math.floor(Math.log10(Math.abs(x) || 1) - 1) : 1);
  made.addEventListener("focus", () => {
    isBegun = false;
    x = current();
  });
  made.addEventListener("input", () => {
    const typed = Number(made.value.replace("−", "-"));
    const isNumber = made.value.trim() !== "" && Number.isFinite(typed);
    made.toggleAttribute("aria-invalid", !isNumber);
    if (isNumber) move(typed);
  });
  made.addEventListener("change", left);
  made.addEventListener("keydown", (event) => {
    const way = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (!way) return;
    event.preventDefault();
    move(x + way * size() * (event.shiftKey ? 10 : 1));
    made.value = number(x);
  });
  made.addEventListener("pointerdown", (event) => {
    if (document.activeElement === made) return;
    const [start, from] = [event.clientX, current()];
    x = from;
    const by = size();
    const drag = (/** @type {PointerEvent} */ moved) => {
      const steps = Math.round((moved.clientX - start) / DRAGGED);
      if (!steps) return;
      move(from + steps * by);
      made.value = number(x);
    };
    window.addEventListener("pointermove", drag);
    window.addEventListener("pointerup", () => window.removeEventListener("pointermove", drag), { once: true });
  });
  return made;
}
