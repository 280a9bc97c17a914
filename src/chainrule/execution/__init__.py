"""Runs recorded operations again: one operation, one `backward`, or a part of a step.

Imports `graph`, `rules` and `capture`. Compares nothing: verdicts are in `verification`.
"""
