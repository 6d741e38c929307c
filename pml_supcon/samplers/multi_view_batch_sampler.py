"""Batches of sample indices for contrastive training: seeded, resumable, sharded."""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler

from pml_supcon._checks import check_bool, check_int
from pml_supcon.samplers.batch_shape import read_shape
from pml_supcon.samplers.label_arrays import Labels, LabelsAre, labels_digest, read_labels
from pml_supcon.samplers.planners import build_planner
from pml_supcon.samplers.saved_state import check_state
from pml_supcon.samplers.seeded_batch import SeededBatch
from pml_supcon.samplers.weighted_planner import Draw, check_draw

logger = logging.getLogger("pml_supcon")


class MultiViewBatchSampler(BatchSampler):
    """A batch sampler of *sample* indices, with a limit on an anchor's positives, P x K, or a plain shuffle.

    The transform (``views.MultiView``) creates the ``V`` views of each sample, so that a batch of ``B`` samples becomes
    ``N = V * B`` rows. There are three modes:

    - ``max_per_class=m``: no class has more than ``m`` samples in a batch, so that an anchor has at most
      ``V * m - 1`` positives.
    - ``samples_per_class=k``: P x K, ``batch_size / k`` classes with exactly ``k`` samples each. Each epoch cuts
      every class anew into groups of ``k``, and a batch has at most one group of a class.
    - neither: a plain shuffle.

    Labels may be classes, sets of labels or the levels of a hierarchy (``labels_are``), and classes may be drawn by
    weight (``draw``): the page "MultiViewBatchSampler" has the details and measurements.

    A batch is drawn uniformly at random from the samples that remain, as far as the limit allows. An epoch uses a
    sample at most once and leaves out as few as possible, drawn anew each epoch. It has as many full batches as
    possible, then one smaller batch unless ``drop_last``. Where classes are drawn by weight, or sets have a limit, an
    epoch has as many draws as samples instead: some come again, never in the same batch. There is no
    ``shuffle=False``: under a limit the samples cannot keep their order.

    Batches depend only on ``(seed, epoch)``, so that all processes plan the same batches without communication (NumPy
    may change its random streams between versions). A batch is a list with an attribute ``seed``, from which
    ``views.SeededDataset`` draws its views, independent of all earlier draws. ``set_epoch`` selects the epoch; after a
    whole epoch it advances automatically, for trainers that never call ``set_epoch``. An interrupted iteration
    starts again with the same batches: call ``set_epoch`` if epochs are cut short.

    There are two ways to use several processes:

    - With ``num_replicas`` and ``rank``, rank ``r`` yields ``batch[r::num_replicas]`` of every global batch. They do
      not default to ``torch.distributed``, because a loader that accelerate shards would then be sharded twice.
    - ``accelerator.prepare(loader)`` with ``DataLoaderConfiguration(split_batches=True)`` and ``drop_last=True``
      here. Without ``split_batches`` each process has whole batches, so that the limit holds in each, not over
      all; without ``drop_last`` accelerate fills its last batch with samples used before. Its loader sets
      the epoch to its own count: after ``load_state_dict`` call ``loader.set_epoch(sampler.epoch)``.

    Args:
        labels: Sequence, array or tensor: ``(n,)`` integers, one class per sample; ``(n, C)`` bool, or 0 and 1 of any
            type, sets; ``(n, L)`` integers, coarse to fine, a hierarchy.
        batch_size: Samples in a batch, over all processes, ``>= num_replicas``.
        labels_are: Meaning of the labels, "classes", "sets" or "hierarchy".
        max_per_class: Most samples of a class, or of a label of sets, in a batch, ``>= 1``.
        samples_per_class: Samples of each class in a batch that has the class, ``>= 1``, a divisor of
            ``batch_size``.
        draw: "uniform", every sample as likely; "class_balanced", every class; "effective_number", samples of a
            class of n by ``(1 - beta) / (1 - beta^n)`` (Cui et al., CVPR 2019), between the two.
        beta: In (0, 1), with "effective_number" only; the paper has 0.9 to 0.9999.
        drop_last: Leave out the smaller batch. A batch with fewer samples than processes is always left out.
        seed: Seed of all batches, ``>= 0``.
        num_replicas: Number of processes that share each batch.
        rank: Rank of this process, in ``[0, num_replicas)``.

    Attributes:
        left_out: Samples that an epoch leaves out because of incomplete groups, the limit or the smaller
            batch; where some come again, those that no epoch draws. Where it is not 0, rank 0 logs one warning that
            gives the reasons (logger ``pml_supcon``).

    Raises:
        TypeError: If ``labels`` or a number has another type.
        ValueError: If arguments exclude each other, if a label of a hierarchy has two parents, if the limit does not
            allow a batch as large as ``batch_size``, or if there is nothing to yield.

    Examples:
        >>> sampler = MultiViewBatchSampler([0] * 6 + [1] * 3 + [2] * 3, batch_size=4, max_per_class=2)
        >>> len(sampler), sampler.left_out
        (3, 0)
        >>> sorted(index for batch in sampler for index in batch) == list(range(12))
        True
    """

    # The base class is what pytorch-metric-learning's trainers and accelerate look for. Its __init__ only
    # stores a sampler of single indices, which this class does not have.
    def __init__(
        self,
        labels: Labels,
        batch_size: int,
        *,
        labels_are: LabelsAre = "classes",
        max_per_class: int | None = None,
        samples_per_class: int | None = None,
        draw: Draw = "uniform",
        beta: float | None = None,
        drop_last: bool = False,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        shape = read_shape(batch_size, max_per_class=max_per_class, samples_per_class=samples_per_class)
        beta = check_draw(draw, beta)
        array = read_labels(labels, labels_are)
        self._planner = build_planner(array, shape, labels_are=labels_are, draw=draw, beta=beta)
        self.batch_size, self.drop_last = int(batch_size), check_bool("drop_last", drop_last)
        self.seed = check_int("seed", seed, low=0)
        self.num_replicas = check_int("num_replicas", num_replicas, low=1)
        self.rank = check_int("rank", rank, low=0)
        if self.rank >= self.num_replicas:
            raise ValueError(f"Expected argument `rank` to be below num_replicas={num_replicas}, but got {rank}")
        if batch_size < self.num_replicas:
            raise ValueError(
                f"Expected argument `batch_size` to be at least num_replicas={num_replicas}, but got {batch_size}"
            )
        self._settings = {
            "batch_size": int(batch_size),
            "max_per_class": None if max_per_class is None else int(max_per_class),
            "samples_per_class": None if samples_per_class is None else int(samples_per_class),
            "drop_last": self.drop_last,
            "seed": self.seed,
            "labels": labels_digest(array),
            "labels_are": labels_are,
            "draw": draw,
            "beta": beta,
        }
        self._samples = len(array)
        yields_rest = self._planner.rest >= self.num_replicas and not self.drop_last
        self._length = self._planner.full + yields_rest
        if not self._length:
            raise ValueError(
                f"Expected samples for one batch at least, but got {self._samples} labels with "
                f"batch_size={batch_size}, drop_last={drop_last}, num_replicas={num_replicas}"
            )
        self.left_out, reasons = self._planner.left_out(rest_dropped=not yields_rest)
        if self.left_out and self.rank == 0:
            logger.warning(
                "MultiViewBatchSampler leaves out %d of %d samples %s", self.left_out, self._samples, reasons
            )
        # (epoch, batches done): the start of the next iteration, and the place of the current one.
        self._next = self._at = (0, 0)
        self._loaded = False

    def __len__(self) -> int:
        """Return the batches of a whole epoch: the same number on every rank and in every epoch, also a resumed one."""
        return self._length

    def __iter__(self) -> Iterator[list[int]]:
        self._at, self._loaded = self._next, False
        start = epoch, first = self._next
        plan = self._planner.plan(np.random.default_rng((self.seed, epoch)))
        for done in range(first + 1, len(self) + 1):
            # Advance the epoch with its last batch, not after it: a caller that counts batches requests no more.
            # Keep an epoch that was set during the iteration.
            if done == len(self) and self._next == start:
                self._next = (epoch + 1, 0)
            self._at = (epoch, done)
            seeds = (self.seed, epoch, done, self.rank, self.num_replicas)
            yield SeededBatch(plan[done - 1][self.rank :: self.num_replicas].tolist(), seeds)

    @property
    def sampler(self) -> "MultiViewBatchSampler":  # type: ignore[override]
        """The sampler itself: accelerate's loader sets the epoch of its batch sampler's ``sampler``."""
        return self

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration yields."""
        return self._next[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, ``>= 0``; a loaded state of the same epoch keeps its position."""
        epoch = check_int("epoch", epoch, low=0)
        if epoch != self.epoch:
            if self._loaded:
                logger.warning(
                    "set_epoch(%d) discards the loaded state: epoch %d after %d batches. "
                    "With accelerate, call loader.set_epoch(sampler.epoch) after load_state_dict.",
                    *(epoch, *self._next),
                )
            self._next, self._loaded = (epoch, 0), False
            self._at = self._next
        elif epoch != self._at[0]:
            self._at = self._next

    def state_dict(self, batches_done: int | None = None) -> dict[str, Any]:
        """Return the place in the epoch and the settings that it depends on, without ``num_replicas`` and ``rank``.

        Args:
            batches_done: Batches of the running epoch, from its start, that the training has used. By default
                the batches that were *yielded*, which is more if they are prefetched: by the workers of a
                ``DataLoader``, and by accelerate's loader. Count the batches of this sampler: under accelerate
                without ``split_batches`` each step uses one per process.

        Raises:
            TypeError: If ``batches_done`` is not an integer.
            ValueError: If ``batches_done`` is more than was yielded, or negative.
        """
        epoch, done = self._at
        if batches_done is not None:
            if check_int("batches_done", batches_done, low=0) > done:
                raise ValueError(
                    f"Expected argument `batches_done` to be at most {done}, as many as epoch {epoch} has yielded, "
                    f"but got {batches_done}"
                )
            done = int(batches_done)
        if done == len(self):
            epoch, done = epoch + 1, 0
        return {
            "epoch": epoch,
            "batches_done": done,
            "settings": dict(self._settings),
            "samples": self._samples,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state: the next iteration yields the batches that follow it.

        ``__len__`` stays the length of a whole epoch. The number of processes may have changed since.

        Raises:
            TypeError: If ``state`` or its settings are not a mapping.
            ValueError: If ``state`` is not a state of this class, or has other settings, which the error lists.
        """
        check_state(state, self._settings, self._samples)
        epoch = check_int("epoch", state["epoch"], low=0)
        done = check_int("batches_done", state["batches_done"], low=0)
        if done > self._planner.full:
            raise ValueError(f"Expected batches_done to be at most {self._planner.full}, but got {done}")
        # Where more processes share a batch, the last one of the saved epoch may be left out here.
        self._next = (epoch, done) if done < len(self) else (epoch + 1, 0)
        self._at, self._loaded = self._next, True
