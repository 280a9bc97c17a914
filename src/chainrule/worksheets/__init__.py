"""Worksheets of one training step, to be worked out by hand: their numbers, their files, and how answers are graded."""
