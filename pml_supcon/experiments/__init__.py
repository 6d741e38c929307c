"""The parts of `reproduce.py`: experiments, scales, how they are run and what becomes of their scores."""
