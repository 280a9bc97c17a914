"""Turns the tape of a recorded step into a `Graph`: which tensor is which value, and what each is called."""
