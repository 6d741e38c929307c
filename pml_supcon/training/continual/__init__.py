"""Continual learning: training on tasks that come one after another, with Co2L and its comparators."""
