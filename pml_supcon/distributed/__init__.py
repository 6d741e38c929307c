"""Losses over the batches of all processes."""

from pml_supcon.distributed.global_batch import GlobalBatchLoss

__all__ = ["GlobalBatchLoss"]
