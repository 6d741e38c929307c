"""The engine of training: runs, stages, methods, checkpoints."""
