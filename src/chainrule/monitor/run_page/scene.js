// State that all charts share: the visible columns, the column of the line, and the selected row.

import { h } from "../../views/page/dom.js";
import { number, real } from "../../views/page/numbers.js";

/** @import { Cell, Drawn, RunPage } from "./types.d.ts" */

const CLOSEST = 8; // columns at the highest zoom

/** The visible columns, and the charts that draw them. */
export class Scene {
  /** @param {RunPage} run */
  constructor(run) {
    this.run = run;
    this.count = run.columns.length;
    this.from = 0;
    this.to = this.count;
    this.at = Math.max(0, this.count - 1);
    /** @type {string} */
    this.row = "";
    /** @type {Drawn[]} */
    this.charts = [];
  }

  /** @param {Drawn} chart */
  add(chart) {
    this.charts.push(chart);
  }

  /**
   * Show these columns, clamped to those of the run.
   * @param {number} from
   * @param {number} to
   */
  show(from, to) {
    const width = Math.min(this.count, Math.max(CLOSEST, Math.round(to - from)));
    this.from = Math.round(Math.min(Math.max(0, from), this.count - width));
    this.to = this.from + width;
    this.at = Math.min(Math.max(this.at, this.from), this.to - 1);
    for (const chart of this.charts) chart.draw();
    this.point(this.at);
  }

  /**
   * Move the line to a column, and select a row of the heat map.
   * @param {number} column
   * @param {string} [row]
   */
  point(column, row = this.row) {
    this.at = Math.min(Math.max(column, this.from), Math.max(this.from, this.to - 1));
    this.row = row;
    for (const chart of this.charts) chart.mark();
  }

  /**
   * Move the line to the column of a step, wherever it is, and select the row of a tensor, or the first one below a module.
   * @param {number} step
   * @param {string} where
   */
  goTo(step, where) {
    const column = this.columnOf(step);
    const half = (this.to - this.from) / 2;
    if (column < this.from || column >= this.to) this.show(column - half, column + half);
    const names = this.run.maps.flatMap((map) => map.rows.map((row) => row.name));
    this.point(column, names.find((name) => name === where) ?? names.find((name) => name.startsWith(`${where}.`)) ?? this.row);
  }

  /** @param {number} factor */
  zoom(factor) {
    const half = ((this.to - this.from) * factor) / 2;
    this.show(this.at - half, this.at + half);
  }

  /** @param {number} part of the visible width */
  move(part) {
    const by = Math.round((this.to - this.from) * part);
    this.show(this.from + by, this.to + by);
  }

  /**
   * The column of a step, or the first one after it.
   * @param {number} step
   */
  columnOf(step) {
    const found = this.run.columns.findIndex(([, last]) => last >= step);
    return found < 0 ? this.count - 1 : found;
  }

  /**
   * The position of a column, in percent of the visible width.
   * @param {number} column
   */
  percent(column) {
    return (100 * (column - this.from)) / (this.to - this.from);
  }

  /** @param {number} column */
  steps(column) {
    const [first, last] = this.run.columns[column] ?? [0, 0];
    return first === last ? `step ${whole(first)}` : `steps ${whole(first)} to ${whole(last)}`;
  }
}

/** @param {number} value */
export function whole(value) {
  return value.toLocaleString("en-US");
}

/** @param {Cell | undefined} cell */
export function text(cell) {
  return cell === null || cell === undefined ? "none" : number(cell);
}

/**
 * A cell as a number for drawing: NaN if there is none.
 * @param {Cell | undefined} cell
 */
export function size(cell) {
  return cell === null || cell === undefined ? NaN : real(cell);
}

/**
 * Let the pointer and arrow keys move the line over a plot, and dragging zoom in; returns a function that draws the line.
 * @param {Scene} scene
 * @param {HTMLElement} plot
 * @param {(event: PointerEvent) => string} [rowAt]
 */
export function listen(scene, plot, rowAt) {
  const line = h("i", { class: "line" });
  const chosen = h("i", { class: "chosen", hidden: true });
  plot.append(line, chosen);
  /** @type {number | null} */
  let start = null;
  const columnAt = (/** @type {PointerEvent} */ event) => {
    const box = plot.getBoundingClientRect();
    const part = (event.clientX - box.left) / box.width;
    return Math.min(scene.to - 1, Math.max(scene.from, scene.from + Math.floor(part * (scene.to - scene.from))));
  };
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || (event.target instanceof Element && event.target.closest("a"))) return;
    start = columnAt(event);
    plot.setPointerCapture(event.pointerId);
  });
  plot.addEventListener("pointermove", (event) => {
    const column = columnAt(event);
    scene.point(column, rowAt?.(event) || undefined);
    chosen.hidden = start === null || start === column;
    if (start === null) return;
    chosen.style.left = `${scene.percent(Math.min(start, column))}%`;
    chosen.style.width = `${scene.percent(Math.max(start, column) + 1) - scene.percent(Math.min(start, column))}%`;
  });
  plot.addEventListener("pointerup", (event) => {
    const end = columnAt(event);
    if (start !== null && Math.abs(end - start) > 1) scene.show(Math.min(start, end), Math.max(start, end) + 1);
    start = null;
    chosen.hidden = true;
  });
  plot.addEventListener("dblclick", () => scene.show(0, scene.count));
  plot.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1, Home: -scene.count, End: scene.count }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    scene.point(scene.at + by);
  });
  return () => {
    line.style.left = `${scene.percent(scene.at + 0.5)}%`;
  };
}

const TICKS = 8;

/**
 * The time axis, with ticks at round numbers of steps.
 * @param {Scene} scene
 * @returns {HTMLElement}
 */
export function axis(scene) {
  const ticks = h("div", { class: "ticks" });
  scene.add({
    mark() {},
    draw() {
      const first = scene.run.columns[scene.from][0];
      const last = scene.run.columns[scene.to - 1][1];
      const by = round((last - first) / TICKS);
      const labels = [];
      for (let step = Math.ceil(first / by) * by; step <= last; step += by) {
        const label = h("span", null, whole(step));
        label.style.left = `${Math.min(100, scene.percent(scene.columnOf(step) + 0.5))}%`;
        labels.push(label);
      }
      ticks.replaceChildren(...labels);
    },
  });
  return h("div", { class: "chart axis", "aria-hidden": "true" }, h("span", { class: "facts" }, "step"), ticks);
}

/**
 * The smallest of 1, 2 or 5 times a power of ten that is at least this size.
 * @param {number} least
 */
function round(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, least)));
  return power * ([1, 2, 5].find((factor) => factor * power >= least) ?? 10);
}
