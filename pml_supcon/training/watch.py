"""What is watched while a stage runs: embeddings, throughput, the k-NN accuracy of held-out images."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 1024  # of a batch's embeddings that are compared


def alignment(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Mean squared distance of unit rows with one label (Wang & Isola, ICML 2020): 0 where they coincide.

    Args:
        embeddings: `(N, D)`, of any length.
        labels: `(N,)`.

    Returns:
        A scalar in [0, 4]; NaN where no two rows share a label.
    """
    rows = F.normalize(embeddings.float())
    same = (labels[:, None] == labels).triu(diagonal=1)
    distances = (2 - 2 * (rows @ rows.T)).clamp(min=0)
    return torch.where(same, distances, 0).sum() / same.sum()


def uniformity(embeddings: Tensor) -> Tensor:
    """Logarithm of the mean of `exp(-2 d^2)` over pairs of unit rows (Wang & Isola): lower is more even.

    Args:
        embeddings: `(N, D)`, of any length, N >= 2.

    Returns:
        A scalar in [-8, 0]; NaN for a single row.
    """
    rows = F.normalize(embeddings.float())
    potentials = (4 * (rows @ rows.T) - 4).clamp(max=0)
    others = torch.ones_like(potentials, dtype=torch.bool).triu(diagonal=1)
    return potentials[others].logsumexp(0) - others.sum().log()


def spread_of(embeddings: Tensor | None, labels: Tensor) -> dict[str, float]:
    """Alignment and uniformity of (some of) a batch's embeddings `(B, V, D)`, labels `(B,)`; those that exist."""
    if embeddings is None:
        return {}
    samples = max(1, ROWS // embeddings.shape[1])
    rows = embeddings.detach()[:samples].flatten(0, 1)
    names = labels[:samples].repeat_interleave(embeddings.shape[1])
    seen = {"alignment": float(alignment(rows, names)), "uniformity": float(uniformity(rows))}
    return {name: value for name, value in seen.items() if value == value}


class Stopwatch:
    """Times an epoch, and how long its loop waited for data."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0

    def waiting_for(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same batches; the time that each takes to come counts as waited."""
        coming = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                batch = next(coming)
            except StopIteration:
                return
            finally:
                self.waited += time.perf_counter() - asked
            yield batch

    def seen(self, images: int) -> dict[str, float]:
        """Images a second since the start, and the share of the time that was waited."""
        seconds = time.perf_counter() - self.started
        return {"images_per_second": images / seconds, "data_wait": self.waited / seconds}
