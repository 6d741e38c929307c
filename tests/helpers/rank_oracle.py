"""Rank-N-Contrast in plain Python loops from the paper, without code of the package, and with one mistake each."""

from math import dist, exp, fsum, log, sqrt

MISTAKES = (
    "ties excluded",
    "own row kept",
    "nearer rows for farther ones",
    "all rows contrasted",
    "rows normalised",
    "distance squared",
    "temperature forgotten",
    "sum over rows for their mean",
    "own row in the mean",
)


def anchor_losses(rows, labels, *, ref_emb=None, ref_labels=None, temperature=2.0, mistake=None):
    """Return the loss of every anchor of rows `(N, D)` with labels `(N, K)`, lists of numbers."""
    itself = ref_emb is None
    if mistake == "rows normalised":
        rows = [[x / sqrt(fsum(x * x for x in row)) for x in row] for row in rows]
    others, other_labels = (rows, labels) if itself else (ref_emb, ref_labels)
    losses = []
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        ranks = [fsum(abs(a - b) for a, b in zip(label, other, strict=True)) for other in other_labels]
        power = 2 if mistake == "distance squared" else 1
        s = [
            -(dist(row, other) ** power) / (1 if mistake == "temperature forgotten" else temperature)
            for other in others
        ]
        partners = [j for j in range(len(others)) if not itself or j != i]
        contrasted = range(len(others)) if mistake == "own row kept" else partners
        terms = []
        for j in partners:
            members = {
                "ties excluded": [k for k in contrasted if ranks[k] > ranks[j] or k == j],
                "nearer rows for farther ones": [k for k in contrasted if ranks[k] <= ranks[j]],
                "all rows contrasted": contrasted,
                # the label distance of the own row is 0: kept, it would count only where others are 0 too
                "own row kept": [k for k in contrasted if ranks[k] >= ranks[j] or k == i],
            }.get(mistake, [k for k in contrasted if ranks[k] >= ranks[j]])
            terms.append(log(fsum(exp(s[k]) for k in members)) - s[j])
        number = {"sum over rows for their mean": 1, "own row in the mean": len(others)}.get(mistake, len(partners))
        losses.append(fsum(terms) / number)
    return losses
