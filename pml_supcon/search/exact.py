"""Exact nearest neighbours of rows, in blocks of bounded memory.

PML's own search took 17 to 72 times as long where measured, and breaks ties at random; here the lower row is nearer.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Protocol

import numpy as np
import torch

from pml_supcon._arrays import Floats, Labels
from pml_supcon.functional.supcon.execution import full_precision
from pml_supcon.search.distances import squared_lengths

BLOCK_BYTES = 64 * 2**20
SAMPLE = 1024  # sample size per row for the estimate of the upper bound
#: Up to this number of neighbours FAISS is faster; above it, its lists of candidates cost more than sorting.
FAISS_MAX_K = 128


class Searcher(Protocol):
    """A search for the references nearest to some rows of the queries.

    Queries ``(N, D)`` and references ``(M, D)`` are float32. With ``own`` the first N references are the queries, and
    no query is its own neighbour.

    Attributes:
        row_bytes: Memory for each query of a call of `find`, beside the result.
    """

    row_bytes: int

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """Return squared distances, float32, and row numbers, int64, both ``(n, k)``, of the k nearest references.

        The nearest is first; where fewer than k are found, the last have row -1 and an infinite distance.
        """
        ...


class FaissSearcher:
    """FAISS's search through all references, on the CPU, without a copy of them."""

    row_bytes = 0  # FAISS works in blocks of 4,096 queries and 1,024 references

    def __init__(self, faiss: ModuleType, queries: Floats, references: Floats, *, own: bool) -> None:
        self.faiss, self.own = faiss, own
        self.queries, self.references = np.ascontiguousarray(queries), np.ascontiguousarray(references)

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """Search as `Searcher.find`."""
        distances, neighbours = self.faiss.knn(self.queries[rows], self.references, k + int(self.own))
        return without_own(distances, neighbours, rows) if self.own else (distances, neighbours)


def without_own(distances: Floats, neighbours: Labels, rows: Labels) -> tuple[Floats, Labels]:
    """Drop the query itself from its k + 1 neighbours.

    Among many duplicates of a query its own row may be missing: then the last neighbour is dropped.
    """
    drop = neighbours == rows[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = len(rows), neighbours.shape[1] - 1
    return distances[~drop].reshape(shape), neighbours[~drop].reshape(shape)


class StreamedSearcher:
    """An exact search for any k, on the CPU or a GPU: blocks of queries times references, then a partial sort.

    Among equal distances the lower row is nearer. ``device`` holds the blocks.
    """

    def __init__(self, queries: Floats, references: Floats, *, own: bool, device: torch.device) -> None:
        self.own, self.row_bytes = own, 4 * len(references)
        self.queries = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
        self.references = torch.from_numpy(np.ascontiguousarray(references)).to(device)
        self.squares = torch.from_numpy(squared_lengths(references).astype(np.float32)).to(device)

    def block(self, rows: Labels) -> torch.Tensor:
        """Return ``|r|^2 - 2 q r``, ``(n, M)``: the squared distance minus ``|q|^2``, which has the same order."""
        chosen = torch.from_numpy(rows)
        queries = self.queries[chosen.to(self.queries.device)]
        with full_precision(queries.device):
            found = torch.addmm(self.squares, queries, self.references.T, alpha=-2)
        if self.own:
            found[torch.arange(len(rows)), chosen] = math.inf
        return found

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """Search as `Searcher.find`."""
        block = self.block(rows)
        if block.device.type != "cpu":
            values, neighbours = (part.cpu().numpy() for part in nearest_on_device(block, k))
        else:
            values = np.empty((len(rows), k), np.float32)
            neighbours = np.empty((len(rows), k), np.int64)

            def select(part: slice) -> None:
                for row in range(part.start, part.stop):
                    values[row], neighbours[row] = nearest(ordered[row], k)

            ordered = block.numpy()
            in_threads(select, len(rows))
        squares = np.square(self.queries[torch.from_numpy(rows)].cpu().numpy()).sum(1, keepdims=True)
        return np.maximum(values + squares, 0), neighbours

    def first_ranks(self, rows: Labels, wanted: Labels, labels: Labels) -> Labels:
        """Return the rank, from 1, of the nearest reference with the label wanted ``(n,)``, given ``(M,)`` labels."""
        block = self.block(rows).cpu().numpy()
        return np.array([first_rank(row, np.flatnonzero(labels == w)) for row, w in zip(block, wanted, strict=True)])


def nearest(values: Floats, k: int) -> tuple[Floats, Labels]:
    """Return the k smallest of ``(M,)`` float32 values in ascending order, and their places; the first of equal ones.

    Only values up to a bound are sorted, as integers of value and place: several times faster than ``torch.topk`` or an
    ``argsort``.
    """
    places: Labels = np.flatnonzero(values <= upper_bound(values, k))
    # Keys of 64 bits: the value, as an integer with the order of the floats, above the place.
    chosen = (values[places] + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 + 0.0 is 0.0
    chosen ^= (chosen >> 63) & 0x7FFFFFFF  # the bits of negative floats have the reverse order
    keys = (chosen << 32) | places
    keys.sort()
    keys = keys[:k]
    bits = keys >> 32
    bits ^= (bits >> 63) & 0x7FFFFFFF
    return bits.astype(np.int32).view(np.float32), keys & 0xFFFFFFFF


def upper_bound(values: Floats, k: int) -> float:
    """Return an upper bound of the k-th smallest of ``(M,)`` values that few other values are below.

    A sample suggests the bound and a count confirms it; otherwise the k-th smallest itself is computed, which is
    the slowest step.
    """
    # an odd step, because labels often repeat with an even period
    sample = values[:: max(1, len(values) // SAMPLE) | 1]
    share = k * len(sample) / len(values)
    rank = math.ceil(share + 4 * math.sqrt(share) + 4)  # four deviations above what is expected
    if rank < len(sample):
        bound = float(np.partition(sample, rank)[rank])
        if k <= np.count_nonzero(values <= bound) <= 2 * k + len(values) // 8:
            return bound
    return float(np.partition(values, k - 1)[k - 1])


def nearest_on_device(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `nearest` for each row of ``(n, M)``, on any device."""
    bits = (values + 0.0).view(torch.int32).long()
    bits ^= (bits >> 63) & 0x7FFFFFFF
    keys = (bits << 32) | torch.arange(values.shape[1], device=values.device)
    places = keys.topk(k, largest=False, sorted=True).values & 0xFFFFFFFF
    return values.gather(1, places), places


def first_rank(values: Floats, relevant: Labels) -> int:
    """Return the rank, from 1, of the smallest of the ``relevant`` places among ``(M,)`` values, ties by place."""
    best = relevant[values[relevant].argmin()]
    return 1 + int((values < values[best]).sum()) + int((values[:best] == values[best]).sum())


def in_threads(work: Callable[[slice], None], count: int) -> None:
    """Divide ``count`` rows among as many threads as torch uses, and run ``work`` on each part."""
    number = min(torch.get_num_threads(), count)
    if number < 2:
        work(slice(0, count))
        return
    parts = [slice(i * count // number, (i + 1) * count // number) for i in range(number)]
    with ThreadPoolExecutor(number) as threads:
        list(threads.map(work, parts))  # re-raises the errors of the threads


def split_rows(rows: Labels, *, row_bytes: int, chunk_size: int | None) -> Iterator[Labels]:
    """Split row numbers into chunks of equal size, at most ``chunk_size`` (None: about `BLOCK_BYTES` each).

    The sizes are equal because FAISS computes the distances of fewer than 20 queries by another formula with other
    rounding: a short last chunk could order near-ties differently.
    """
    if chunk_size is None:
        chunk_size = max(1, BLOCK_BYTES // row_bytes)
    yield from np.array_split(rows, math.ceil(len(rows) / chunk_size))
