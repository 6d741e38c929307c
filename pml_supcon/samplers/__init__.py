"""Batch samplers: seeded, resumable, for many processes, with a limit on the positives or P x K."""

from pml_supcon.samplers.multi_view_batch_sampler import MultiViewBatchSampler

__all__ = ["MultiViewBatchSampler"]
