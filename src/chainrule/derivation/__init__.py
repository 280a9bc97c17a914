"""Backpropagation with our own rules, and the sum behind one element of a gradient.

Imports `graph` and `rules`. Never calls autograd.
"""
