/** What stands in the page of a run, as data.py makes it. tests/views/test_run_page.py holds the two together. */

/** A number; a word where it is not finite, null where there is none. */
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
  evidence: string[];
  advice: string;
  since: number | null;
  until: number | null;
}
export interface Recorded { step: number; reason: string; link: string }

export interface RunPage {
  format: string;
  version: number;
  title: string;
  about: [string, string][];
  /** The first and the last step of each column of time. */
  columns: [number, number][];
  watched: number;
  loss: Curve;
  /** The learning rate of each parameter group. */
  rates: Cell[][];
  /** How many steps a GradScaler left out. */
  skipped: number[];
  maps: HeatMap[];
  findings: Finding[];
  recordings: Recorded[];
}

/** A part of the page that draws the columns from `from` up to `to`, and a line at one of them. */
export interface Drawn { draw: () => void; mark: () => void }
