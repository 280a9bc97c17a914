// Lanes, as in a commit graph: a value has a lane from where it is computed to where it is last used.

/** @typedef {{ id: number, inputs: Set<number> } | null} Vertex  null: a heading, which lanes pass through */
/** @typedef {{ from: number, to: number, part: "through" | "in" | "out" }} Line */
/** @typedef {{ lane: number, lines: Line[] }} Drawn */

/**
 * For each line of the value table the lane of its vertex, and the lines to draw.
 * @param {Vertex[]} vertices
 * @returns {Drawn[]}
 */
export function lanes(vertices) {
  const last = new Map();
  vertices.forEach((vertex, place) => vertex?.inputs.forEach((input) => last.set(input, place)));
  /** @type {(number | null)[]} */
  const active = [];
  return vertices.map((vertex, place) => {
    /** @type {Line[]} */
    const lines = [];
    /** @type {number[]} */
    const entering = [];
    active.forEach((id, lane) => {
      if (id === null) return;
      const used = vertex !== null && vertex.inputs.has(id);
      if (used) entering.push(lane);
      if (used && last.get(id) === place) active[lane] = null;
      else lines.push({ from: lane, to: lane, part: "through" });
    });
    if (vertex === null) return { lane: -1, lines };
    const free = active.indexOf(null);
    const lane = free < 0 ? active.length : free;
    entering.forEach((from) => lines.push({ from, to: lane, part: "in" }));
    if (last.has(vertex.id)) {
      active[lane] = vertex.id;
      lines.push({ from: lane, to: lane, part: "out" });
    }
    return { lane, lines };
  });
}
