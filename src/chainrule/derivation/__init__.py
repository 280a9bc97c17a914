"""Backpropagation with our own rules, Jacobians, and the sum behind one element of a gradient.

Imports `graph` and `rules`. Never calls autograd.
"""
