"""A step as a program of primitive operations, which a page can run again on numbers that the reader changed.

The recorded operations, our rules' vector-Jacobian products and the formula of the update run once more on the recorded
numbers, and what they come down to is written down (`tracing`), instruction by instruction (`instructions`). No
operation is written a second time: the page knows primitives alone.
"""
