"""The facts of one step as frozen data, the statistics of its tensors, and the file that holds them.

Imports no other room. Whoever reads a run needs `history`, `ranks` and `statistics` without torch: this file imports
nothing.
"""
