"""Relation distillation in plain loops from the paper, without code of the package, and with one mistake each."""

from math import exp, fsum, log, sqrt

MISTAKES = (
    "own row kept",
    "temperatures swapped",
    "divergence for cross entropy",
    "present and past swapped",
    "relations of the present to the past",
    "rows not normalised",
    "temperature forgotten",
    "mean over pairs",
)


def anchor_losses(rows, past, temperature, past_temperature, *, mistake=None):
    """Return the loss of every row of rows `(N, D)` and past rows `(N, D')`, lists of numbers."""
    if mistake == "temperatures swapped":
        temperature, past_temperature = past_temperature, temperature
    if mistake == "temperature forgotten":
        temperature = 1
    z, z_past = (given if mistake == "rows not normalised" else [unit(row) for row in given] for given in (rows, past))
    losses = []
    for i in range(len(rows)):
        others = [j for j in range(len(rows)) if mistake == "own row kept" or j != i]
        if not others:
            losses.append(0.0)
            continue
        columns = z_past if mistake == "relations of the present to the past" else z
        log_p = log_softmax([dot(z[i], columns[j]) / temperature for j in others])
        log_q = log_softmax([dot(z_past[i], z_past[j]) / past_temperature for j in others])
        if mistake == "present and past swapped":
            log_p, log_q = log_q, log_p
        entropy = -fsum(exp(q) * q for q in log_q)
        loss = -fsum(exp(q) * p for q, p in zip(log_q, log_p, strict=True))
        loss -= entropy if mistake == "divergence for cross entropy" else 0
        losses.append(loss / len(others) if mistake == "mean over pairs" else loss)
    return losses


def dot(a, b):
    """Return the inner product of two rows, of the columns that both have."""
    return fsum(x * y for x, y in zip(a, b, strict=False))


def unit(row):
    """Return a row divided by its length."""
    length = sqrt(fsum(x * x for x in row))
    return [x / length for x in row]


def log_softmax(values):
    """Return the logarithms of the softmax of some numbers."""
    largest = max(values)
    total = largest + log(fsum(exp(x - largest) for x in values))
    return [x - total for x in values]
