"""A wrapper that measures the time of a miner and the pairs that it chooses."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor
from torch.nn import functional as F

from pml_supcon._checks import check_type
from pml_supcon._pml import miners as _pml
from pml_supcon.functional.supcon.execution import full_precision

COUNTS = ("positive_pairs", "negative_pairs", "triplets")
SIMILARITIES = ("positive_similarity", "positive_similarity_all", "negative_similarity", "negative_similarity_all")


class MeasuredMiner(_pml.CheckedMiner):
    """A wrapper around a miner that returns its result unchanged and records time, counts and similarities.

    Args:
        miner: Any PML miner, including the miners of this package.

    Shape:
        - input and output: as the wrapped miner.

    Raises:
        TypeError: If ``miner`` is not a PML miner.

    Note:
        The time covers the wrapped miner only. On the CPU it is wall-clock time; on CUDA it is measured by events, and
        only ``report`` waits for them. The measurements of a call take a few ``(N, M)`` matrices and one product of
        them. They are in the ``state_dict``, so that a run resumed from a checkpoint reports all of its calls. Inside
        ``GlobalBatchLoss`` rank 0 mines for all ranks, and it alone has a report. PML's ``DistributedMinerWrapper``
        wraps this miner, not the reverse.

    Examples:
        >>> import torch
        >>> from pytorch_metric_learning.miners import BatchHardMiner
        >>> from pml_supcon import miners
        >>> miner = miners.MeasuredMiner(BatchHardMiner())
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.6, 0.8]])
        >>> _ = miner(embeddings, torch.tensor([0, 0, 0, 1]))
        >>> {name: round(mean, 2) for name, mean in miner.report().items() if name.startswith("positive")}
        {'positive_similarity': -0.93, 'positive_similarity_all': -0.33}
    """

    def __init__(self, miner: BaseMiner) -> None:
        check_type("miner", miner, BaseMiner, "a miner of pytorch-metric-learning (a BaseMiner)")
        super().__init__(distance=miner.distance, collect_stats=False)
        self.miner = miner
        self.reset()

    def reset(self) -> None:
        """Discard the measurements of all calls so far."""
        self._calls = 0
        self._timer = _Timer()
        self._counts = {name: [0, 0] for name in COUNTS}  # number chosen, number of calls
        self._similarities: dict[torch.device, Tensor] = {}

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Sequence[Tensor]:
        """Return the result of the wrapped miner."""
        batch = _pml.Batch(embeddings, labels, ref_emb, ref_labels)
        chosen: Sequence[Tensor] = self._timer.time(embeddings.device, self.miner, *batch)
        self._calls += 1
        for name, indices in zip(COUNTS[2:] if len(chosen) == 3 else COUNTS[:2], chosen[::2], strict=False):
            self._counts[name][0] += len(indices)
            self._counts[name][1] += 1
        sums, counts = _similarities(batch, chosen)
        # (2, 4): the mean similarity of each kind of pair in this call, and 1 if there were any; a mean of no pairs is
        # NaN, and must not enter the sum
        present = counts > 0
        values = torch.stack([torch.where(present, sums / counts.clamp(min=1), 0.0), present.to(sums.dtype)])
        so_far = self._similarities.get(values.device)
        self._similarities[values.device] = values if so_far is None else so_far + values
        return chosen

    def report(self) -> dict[str, float]:
        """Return the means over the calls since the last ``reset``; waits for the device.

        Returns:
            ``seconds`` per call; the numbers chosen per call, ``positive_pairs`` and ``negative_pairs``, or
            ``triplets``; ``positive_similarity`` and ``negative_similarity``, the mean cosine similarity of the chosen
            pairs (a triplet has one of each), and ``positive_similarity_all`` and ``negative_similarity_all`` of all
            pairs of the batch. Positives are harder the lower their similarity, negatives the higher. A mean covers
            the calls that had such pairs; a key without any such call is absent.
        """
        report = {}
        if self._calls:
            report["seconds"] = self._timer.seconds() / self._calls
        report |= {name: number / calls for name, (number, calls) in self._counts.items() if calls}
        for name, total, number in zip(SIMILARITIES, *self._totals().tolist(), strict=True):
            if number:
                report[name] = total / number
        return report

    def get_extra_state(self) -> Tensor:
        """Return all measurements as one tensor, as some checkpoint formats require; waits for the device."""
        counts = [value for name in COUNTS for value in self._counts[name]]
        so_far = torch.tensor([self._calls, self._timer.seconds(), *counts], dtype=torch.float64)
        return torch.cat([so_far, self._totals().flatten()])

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the measurements from ``get_extra_state``."""
        self.reset()
        calls, seconds, *counts = state[: 2 + 2 * len(COUNTS)].tolist()
        self._calls = int(calls)
        self._timer = _Timer(seconds)
        self._counts = {name: [int(counts[2 * at]), int(counts[2 * at + 1])] for at, name in enumerate(COUNTS)}
        totals = state[2 + 2 * len(COUNTS) :].cpu().reshape(2, len(SIMILARITIES))
        self._similarities = {totals.device: totals}

    def _totals(self) -> Tensor:
        """Return the sums of the calls' mean similarities and the numbers of calls with them, ``(2, 4)`` float64."""
        totals = torch.zeros(2, len(SIMILARITIES), dtype=torch.float64)
        for values in self._similarities.values():
            totals += values.cpu()
        return totals


def _similarities(batch: _pml.Batch, chosen: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the sums of cosine similarities and the numbers of pairs, ``(4,)`` each, by ``SIMILARITIES``.

    Nothing waits for the device.
    """
    # cosine similarities (N, M) in full precision, and the masks of all positive and negative pairs
    embeddings, labels, ref_emb, ref_labels = _pml.in_full_precision(batch)
    with full_precision(embeddings.device):
        similarity = F.normalize(embeddings) @ F.normalize(ref_emb).T
    positive, negative = _pml.matches(labels, ref_labels)
    a1, p, a2, n = chosen if len(chosen) == 4 else (chosen[0], chosen[1], chosen[0], chosen[2])
    # chosen positives, all positives, chosen negatives, all negatives
    sums = [
        similarity[a1, p].sum(),
        similarity.where(positive, 0.0).sum(),
        similarity[a2, n].sum(),
        similarity.where(negative, 0.0).sum(),
    ]
    all_p, all_n = positive.sum(), negative.sum()
    counts = [torch.full_like(all_p, len(a1)), all_p, torch.full_like(all_n, len(a2)), all_n]
    wide = torch.float32 if similarity.device.type == "mps" else torch.float64  # MPS has no float64
    return torch.stack(sums).to(wide), torch.stack(counts)


class _Timer:
    """The total seconds of all calls."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._running: deque[tuple[torch.cuda.Event, torch.cuda.Event]] = deque()

    def __reduce__(self) -> tuple[Any, ...]:  # events of CUDA cannot be pickled
        return _Timer, (self.seconds(),)

    def time(self, device: torch.device, call: Callable[..., Any], *arguments: Any) -> Any:
        """Return the result of the call and add its time."""
        if device.type != "cuda":
            start = time.perf_counter()
            result = call(*arguments)
            self._seconds += time.perf_counter() - start
            return result
        with torch.cuda.device(device):
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            result = call(*arguments)
            after.record()
        self._running.append((before, after))
        while self._running and self._running[0][1].query():  # finished events only: `query` does not wait
            self._add(*self._running.popleft())
        return result

    def seconds(self) -> float:
        """Return the seconds of all calls; waits for calls that still run."""
        while self._running:
            self._running[0][1].synchronize()
            self._add(*self._running.popleft())
        return self._seconds

    def _add(self, before: torch.cuda.Event, after: torch.cuda.Event) -> None:
        self._seconds += before.elapsed_time(after) / 1000
