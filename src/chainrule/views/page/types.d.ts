/**
 * The JSON form of the document, as in docs/document.md, but with the number of each formula in the page's table instead
 * of its LaTeX. tests/views/test_page.py compares the two.
 */

export type Role = "value" | "gradient" | "jacobian" | "parameter";
export type Verdicts = "agrees" | "by convention" | "not checked" | "disagrees" | "not differentiable";
/** A number that JSON lacks is a string (`nan`, `inf`, `-inf`) or a complex number. */
export type Entry = number | boolean | string | { re: Entry; im: Entry };
/** A formula: its index in `Formulas.formulas`. */
export type Formula = number;
export type Span = string | { math: Formula } | { code: string };

export interface Histogram { low: Entry; high: Entry; counts: number[]; sample?: number }
export interface Sketch { rows: number; columns: number; means: Entry[] }

export interface Paragraph { block: "paragraph"; text: Span[]; tone?: "plain" | "note" | "warning" | "error" }
export interface Equation { block: "equation"; latex: Formula; label?: string }
export interface Tensor {
  block: "tensor";
  symbol: Formula;
  shape: number[];
  dtype: string;
  role: Role;
  entries: Entry[] | null;
  statistics?: [string, Entry][];
  row_labels?: string[];
  column_labels?: string[];
  label?: string;
  histogram?: Histogram;
  sketch?: Sketch;
  decimals?: number;
  upstream?: Margin;
  product?: Margin;
}
export interface Margin { symbol: Formula; entries: Entry[] }
export interface Measured { elements: (Entry | null)[]; count: number; taken: number; difference: Entry; tolerance: Entry }
export interface Verdict { block: "verdict"; kind: Verdicts; text: Span[]; difference?: Entry; tolerance?: Entry; measured?: Measured }
export interface Table { block: "table"; headers: string[]; rows: Span[][][]; label?: string }
export type Block = Paragraph | Equation | Tensor | Verdict | Table;

export interface Section {
  title: Span[];
  anchor: string;
  kind: "overview" | "forward" | "backward" | "update" | "note";
  blocks?: Block[];
  sections?: Section[];
  code?: string;
}
export interface Row {
  index: number;
  kind: "data" | "parameter" | "operation" | "loss";
  name: string;
  symbol: Formula;
  gradient_symbol: Formula;
  operation: string;
  expression: string;
  place: string;
  module: string;
  inputs: number[];
  value: Tensor;
  gradient: Tensor | null;
  forward?: string;
  backward?: string[];
  verdict?: Verdicts;
  update?: Entry;
  step?: string;
  updates?: string[];
  layout?: boolean;
  taken?: number[];
}
export interface Source { row: number; role: "value" | "gradient"; index: number[] }
export interface Summand { value: Entry; factors: [string, Entry][]; sources: Source[]; reason?: string; numbers?: Entry[] }
export interface Sum { of: Source; text: string; summands: Summand[]; chosen?: Source[] }
/** A slot of a program, a slot read through a table, or a number, as text. */
export type Operand = number | [number, number] | string;
export type Instruction = [string, number, Operand[], ...number[]];
export interface Moved { row: number; first: Operand; later: Operand; state?: [string, number, Entry[], Operand, Operand][] }
export interface Program {
  types: string[];
  sizes: number[];
  constants: [number, Entry[]][];
  tables: number[][];
  code: Instruction[];
  inputs: [number, number][];
  values: [number, Operand, Entry[]][];
  gradients: [number, Operand, Entry[]][];
  loss: number;
  settings?: [string, number, number][];
  step?: [number, number];
  updates?: Moved[];
  without?: string;
  guards?: [Operand, number][];
  arriving?: [number, number][];
  carried?: [number, Operand][];
}
/** What the lab must know before it asks: rows, settings with their values, why there is no update, what is computed. */
export interface LabFacts {
  inputs: number[];
  gradients: number[];
  updates: number[];
  settings: [string, number][];
  without: string;
  said: string[];
}
/** `changes` are (row, place, number) of a base, a step as recorded or after so many updates. */
export interface LabQuestion {
  base: number;
  changes: [number, number, number][];
  settings: number[];
  places: [number, number[]][];
  chosen: [number, number] | null;
  step: boolean;
}
export interface LabTerm { factors: [string, number][]; value: number; text?: string }
/** An element of a gradient: its sum, and what a measured difference says of it. */
export interface LabChosen {
  row: number;
  place: number;
  gradient: number;
  terms: LabTerm[];
  more: number;
  total: number;
  measured: number;
  step: number;
  sides: number[];
  precise: string;
  verdict: string;
}
/** `values`, `gradients` and `after` are (row, numbers): all of a small row, else those at the places asked for. */
export interface LabAnswer {
  base: number;
  loss: number;
  values: [number, number[]][];
  gradients: [number, number[]][];
  after: [number, number[]][];
  holds: boolean;
  note: string;
  predicted: number | null;
  unpredicted?: number;
  chosen?: LabChosen;
}
/** Of a mistake: the place of its sentence in the document's slips, whether it is a plain fact, what comes out. */
export type KnownMistake = [number, boolean, number[]];
export interface Exercise { asks: "value" | "gradient" | "update"; row: number; name: string; slack: number; mistakes: KnownMistake[]; after?: number[]; rule?: string }
export interface Document {
  title: Span[];
  summary: Block[];
  sections: Section[];
  rows?: Row[];
  sums?: Sum[];
  program?: Program;
  without_program?: string;
  exercises?: Exercise[];
  slips?: string[];
}

/** [tag, text] or [tag, ...children], with a dict of attributes after the tag where there are any. */
export type Tree = (string | Record<string, string> | Tree)[];
/** Shapes of formulas with holes in them; a formula is a shape and the formulas in its holes, or plain text. */
export interface Formulas { shapes: Tree[]; formulas: (number[] | string)[] }
export interface Page { format: string; version: number; document: Document; math: Formulas; lab?: { token?: string; facts: LabFacts } }

/** One stop of the walk: a section, with the sections around it. */
export interface Stop { section: Section; above: Section[]; whole: boolean; phase: string }
