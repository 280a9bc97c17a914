"""Backpropagation with our own rules, Jacobians, and the sum behind one element of a gradient.

Imports `graph` and `rules`. No gradient comes from autograd where there is a rule.
"""
