/** The data of the page of a run, made by `data_of` in __init__.py; tests/views/test_run_page.py compares the two. */

/** A number; a word if it is not finite, null if there is none. */
export type Cell = number | string | null;

export interface Curve { mean: Cell[]; low: Cell[]; high: Cell[]; broken: number[] }
export interface Line { name: string; type: string }
export interface HeatMap {
  hue: "value" | "gradient";
  title: string;
  about: string;
  rows: Line[];
  left_out: number;
  cells: Cell[][];
}
export interface Finding {
  id: string;
  severity: "error" | "warning" | "note";
  where: string;
  text: string;
  place: string;
  evidence: string[];
  advice: string;
  since: number | null;
  until: number | null;
  because: string;
}
export interface Recorded { step: number; reason: string; link: string }

export interface RunPage {
  format: string;
  version: number;
  title: string;
  about: [string, string][];
  /** The first and the last step of each column. */
  columns: [number, number][];
  watched: number;
  loss: Curve;
  /** The learning rate of each parameter group. */
  rates: Cell[][];
  /** How many steps of each column a GradScaler skipped. */
  skipped: number[];
  maps: HeatMap[];
  findings: Finding[];
  recordings: Recorded[];
}

/** A part of the page: `draw` renders the visible columns, `mark` moves the line. */
export interface Drawn { draw: () => void; mark: () => void }
