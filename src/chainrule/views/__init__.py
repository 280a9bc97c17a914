"""Output forms of the one document: each view is a file of small functions, one for each kind of block."""
