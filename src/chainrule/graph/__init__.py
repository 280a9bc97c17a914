"""The facts of one step as frozen data, the statistics of its tensors, and the file that holds them.

Imports no other room. Reading a run needs `history` and `statistics` without torch, so this file imports nothing.
"""
