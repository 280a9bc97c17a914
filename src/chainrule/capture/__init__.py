"""Records a step while the user's code runs: modes, hooks and the tape; then `lowering` turns the tape into a graph.

Imports `graph`. Knows no mathematics: what an operation means is in `rules`.
"""
