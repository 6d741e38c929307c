"""Exact nearest neighbours of rows, in blocks of bounded memory."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Protocol

import numpy as np
import torch

from pml_supcon._arrays import Floats, Labels
from pml_supcon.search.distances import float32_products, squared_lengths

BLOCK_BYTES = 64 * 2**20
SAMPLE = 1024  # of a row of distances
#: Up to so many neighbours FAISS is faster; beyond, its lists of candidates cost more than sorting.
FAISS_MAX_K = 128


class Searcher(Protocol):
    """Finds the references nearest to queries that are named by their rows.

    Attributes:
        row_bytes: memory that each query of a call of `find` takes, beside what is found.
    """

    row_bytes: int

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """Squared distances, float32, and row numbers, int64, both `(n, k)`, of the k nearest references.

        Nearest first; where fewer than k are found, the last have row -1 and an infinite distance.
        """
        ...


class FaissSearcher:
    """FAISS's search through all references, on the CPU, without a copy of them.

    Args:
        faiss: the module.
        queries: `(N, D)` float32.
        references: `(M, D)` float32.
        own: the first N references are the queries, which do not find themselves.
    """

    row_bytes = 0  # FAISS has blocks of its own, of 4,096 queries and 1,024 references

    def __init__(self, faiss: ModuleType, queries: Floats, references: Floats, *, own: bool) -> None:
        self.faiss, self.own = faiss, own
        self.queries, self.references = np.ascontiguousarray(queries), np.ascontiguousarray(references)

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """See `Searcher`."""
        distances, neighbours = self.faiss.knn(self.queries[rows], self.references, k + int(self.own))
        return without_own(distances, neighbours, rows) if self.own else (distances, neighbours)


def without_own(distances: Floats, neighbours: Labels, rows: Labels) -> tuple[Floats, Labels]:
    """Leave one of k + 1 neighbours out: the query itself.

    Among many duplicates of a query its own row may not be found at all: then the last neighbour goes, and the k
    before it are right.
    """
    drop = neighbours == rows[:, None]
    drop[~drop.any(axis=1), -1] = True
    shape = len(rows), neighbours.shape[1] - 1
    return distances[~drop].reshape(shape), neighbours[~drop].reshape(shape)


class StreamedSearcher:
    """Blocks of queries times references: for any k, on the CPU or a GPU. Of equal distances the lower row is nearer.

    Args:
        queries: `(N, D)` float32.
        references: `(M, D)` float32.
        own: as for `FaissSearcher`.
        device: where blocks are computed.
    """

    def __init__(self, queries: Floats, references: Floats, *, own: bool, device: torch.device) -> None:
        self.own, self.row_bytes = own, 4 * len(references)
        self.queries = torch.from_numpy(np.ascontiguousarray(queries)).to(device)
        self.references = torch.from_numpy(np.ascontiguousarray(references)).to(device)
        self.squares = torch.from_numpy(squared_lengths(references).astype(np.float32)).to(device)

    def block(self, rows: Labels) -> torch.Tensor:
        """What the distances are ordered by, `(n, M)`: the squared distance less the query's own square."""
        chosen = torch.from_numpy(rows)
        queries = self.queries[chosen.to(self.queries.device)]
        with float32_products(queries.device):
            found = torch.addmm(self.squares, queries, self.references.T, alpha=-2)
        if self.own:
            found[torch.arange(len(rows)), chosen] = math.inf
        return found

    def find(self, rows: Labels, k: int) -> tuple[Floats, Labels]:
        """See `Searcher`."""
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
        """The rank, from 1, of the nearest reference `(M,)` labels that has the label wanted, `(n,)`."""
        block = self.block(rows).cpu().numpy()
        return np.array([first_rank(row, np.flatnonzero(labels == w)) for row, w in zip(block, wanted, strict=True)])


def nearest(values: Floats, k: int) -> tuple[Floats, Labels]:
    """The k smallest of `(M,)` float32 values in rising order, and their places; of equal ones the first.

    Sorts those up to a bound, value and place in one integer: several times faster than `torch.topk` or an `argsort`.
    """
    places: Labels = np.flatnonzero(values <= upper_bound(values, k))
    chosen = (values[places] + np.float32(0)).view(np.int32).astype(np.int64)  # -0.0 + 0.0 is 0.0
    chosen ^= (chosen >> 63) & 0x7FFFFFFF  # the bits of floats below zero fall as these rise
    keys = (chosen << 32) | places
    keys.sort()
    keys = keys[:k]
    bits = keys >> 32
    bits ^= (bits >> 63) & 0x7FFFFFFF
    return bits.astype(np.int32).view(np.float32), keys & 0xFFFFFFFF


def upper_bound(values: Floats, k: int) -> float:
    """A number that is not below the k-th smallest of `(M,)` values, and above few others.

    A sample suggests it and a count confirms it; where it does not, the k-th smallest itself is found, which takes
    longer than all else here.
    """
    sample = values[:: max(1, len(values) // SAMPLE) | 1]  # an odd step: labels often repeat with an even one
    share = k * len(sample) / len(values)
    rank = math.ceil(share + 4 * math.sqrt(share) + 4)  # four deviations above what is expected
    if rank < len(sample):
        bound = float(np.partition(sample, rank)[rank])
        if k <= np.count_nonzero(values <= bound) <= 2 * k + len(values) // 8:
            return bound
    return float(np.partition(values, k - 1)[k - 1])


def nearest_on_device(values: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `nearest` for each row of `(n, M)`, on any device."""
    bits = (values + 0.0).view(torch.int32).long()
    bits ^= (bits >> 63) & 0x7FFFFFFF
    keys = (bits << 32) | torch.arange(values.shape[1], device=values.device)
    places = keys.topk(k, largest=False, sorted=True).values & 0xFFFFFFFF
    return values.gather(1, places), places


def first_rank(values: Floats, relevant: Labels) -> int:
    """The rank, from 1, of the smallest of the `relevant` places among `(M,)` values; of equal ones the first."""
    best = relevant[values[relevant].argmin()]
    return 1 + int((values < values[best]).sum()) + int((values[:best] == values[best]).sum())


def in_threads(work: Callable[[slice], None], count: int) -> None:
    """Do work on `count` rows, a part in each of torch's number of threads, and none without a row."""
    number = min(torch.get_num_threads(), count)
    if number < 2:
        work(slice(0, count))
        return
    parts = [slice(i * count // number, (i + 1) * count // number) for i in range(number)]
    with ThreadPoolExecutor(number) as threads:
        list(threads.map(work, parts))  # raises what they raised


def split_rows(rows: Labels, *, row_bytes: int, chunk_size: int | None) -> Iterator[Labels]:
    """Split row numbers into chunks of equal size, at most `chunk_size` (None: about `BLOCK_BYTES` each).

    Equal sizes, because FAISS computes the distances of fewer than 20 queries by another formula, whose rounding
    differs: a short last chunk could order near-ties otherwise than the rest.
    """
    if chunk_size is None:
        chunk_size = max(1, BLOCK_BYTES // row_bytes)
    yield from np.array_split(rows, math.ceil(len(rows) / chunk_size))
