"""The program of continual learning: ``training.continual``, then its report."""
