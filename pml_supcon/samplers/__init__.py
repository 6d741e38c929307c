"""Batch samplers: seeded, resumable, for many processes, P x K or with a limit; over classes, label sets and trees."""

from pml_supcon.samplers.multi_view_batch_sampler import MultiViewBatchSampler

__all__ = ["MultiViewBatchSampler"]
