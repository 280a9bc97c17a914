"""Compares rule, autograd and finite differences, and finds what is wrong with a user's `backward`.

Imports everything above it: `graph`, `rules`, `capture`, `execution`, `derivation`.
"""
