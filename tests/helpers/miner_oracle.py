"""The miners' expected results by loops over plain numbers, and batches for them."""

import itertools
import math

import torch

#: rows, width, classes, references (None: the rows themselves)
SHAPES = [(12, 4, 3, None), (9, 3, 2, 7), (1, 2, 1, 5), (17, 5, 6, None), (6, 2, 1, 11), (30, 3, 4, None), (5, 8, 2, 1)]


def batch(rows, width, classes, references, *, dtype=torch.float64):
    """Return arguments of a miner."""
    embeddings, labels = torch.randn(rows, width, dtype=dtype), torch.randint(classes, (rows,))
    if references is None:
        return embeddings, labels
    return embeddings, labels, torch.randn(references, width, dtype=dtype), torch.randint(classes, (references,))


def pairs(labels, ref_labels=None):
    """Return all positive and all negative pairs, in the order of their indices."""
    others = labels if ref_labels is None else ref_labels
    positive, negative = [], []
    for i, label in enumerate(labels.tolist()):
        for j, other in enumerate(others.tolist()):
            if label != other:
                negative.append((i, j))
            elif ref_labels is not None or i != j:
                positive.append((i, j))
    return positive, negative


def triplets(labels, ref_labels=None):
    positive, negative = pairs(labels, ref_labels)
    return [(a, p, n) for (a, p), (b, n) in itertools.product(positive, negative) if a == b]


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))


def euclidean(x, y):
    """Return the distance of the normalised rows."""
    x, y = [a / math.hypot(*x) for a in x], [a / math.hypot(*y) for a in y]
    return math.dist(x, y)


def far(embeddings, ref_emb=None, measure=euclidean):
    """Return the distances of all pairs as `[i][j]`, or with `measure=cosine` their similarities."""
    rows, others = embeddings.tolist(), (embeddings if ref_emb is None else ref_emb).tolist()
    return [[measure(x, y) for y in others] for x in rows]


def number_of(share, number, most=None):
    """Return `ceil(share * number)` of a share in thousandths."""
    chosen = (round(share * 1000) * number + 999) // 1000
    return chosen if most is None else min(chosen, most)


def hardest(items, scores, number):
    """Return the items with the highest scores, highest first; of equal scores the first."""
    order = sorted(range(len(items)), key=lambda i: (-scores[i], i))
    return [items[i] for i in order[:number]]


def as_lists(indices):
    """Return the index tuples: `[(a, p)], [(a, n)]` of pairs, `[(a, p, n)]` of triplets."""
    assert all(x.dtype == torch.int64 and x.ndim == 1 for x in indices)
    if len(indices) == 3:
        return list(zip(*(x.tolist() for x in indices), strict=True))
    a1, p, a2, n = (x.tolist() for x in indices)
    return list(zip(a1, p, strict=True)), list(zip(a2, n, strict=True))


def assert_hardest(chosen, items, scores, number):
    """Assert that these are the `number` hardest items, hardest first; rounding may reorder equal scores."""
    by_item = dict(zip(items, scores, strict=True))
    assert len(chosen) == len(set(chosen)) == number
    assert set(chosen) <= set(items)
    right = sorted(scores, reverse=True)[:number]
    torch.testing.assert_close(
        torch.tensor([by_item[item] for item in chosen]), torch.tensor(right), rtol=1e-6, atol=1e-6
    )
