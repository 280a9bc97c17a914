"""Exercises on a recorded step: whether a student's number is right, and which mistake explains a wrong one.

A `Quantity` is what is asked for, `dJ/dW2[0,1]`. The step is worked through again with one change that students make
(`slips`), forward, back and in the update (`chain`). An answer that agrees with what comes out has that mistake.
"""
