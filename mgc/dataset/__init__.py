"""Clips for learning: which are trained on, in which batches, how they are augmented."""
