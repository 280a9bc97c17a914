"""Watches a whole training: which steps are recorded, the file of a run, ranks, callbacks, and the page of a run.

Reading a run needs no torch, so nothing is imported here.
"""
