"""The losses of the paper in plain Python loops, from its equations 2 and 3, without code of the package."""

from math import exp, fsum, log, sqrt


def anchor_losses(
    rows,
    labels=None,
    *,
    ref_emb=None,
    ref_labels=None,
    indices_tuple=None,
    num_views=1,
    temperature=0.1,
    summation="out",
    denominator="all",
    contrast_mode="all",
    positives_cap=None,
    normalize=True,
    margin=0.0,
    class_balanced=False,
    anchors=None,
    ignore_label=None,
):
    """Return the loss of every anchor of view-major rows `(N, D)`, or None for an anchor without a loss."""
    num_samples = len(rows) // num_views
    labels = [i % num_samples for i in range(len(rows))] if labels is None else labels.tolist()
    labels = [("sample", i % num_samples) if label == ignore_label else label for i, label in enumerate(labels)]
    others = labels if ref_emb is None or ref_labels is None else ref_labels.tolist()
    if others is not labels:
        others = [("reference", j) if label == ignore_label else label for j, label in enumerate(others)]
    prepare = unit_rows if normalize else list
    own = prepare(rows.tolist())
    contrasted = own if ref_emb is None else prepare(ref_emb.tolist())
    losses = []
    for i in range(num_samples if contrast_mode == "one" else len(rows)):
        if indices_tuple is not None:
            positives, negatives = listed_sets(i, indices_tuple)
        elif ref_emb is not None:
            positives = {j for j, label in enumerate(others) if label == labels[i]}
            negatives = set(range(len(contrasted))) - positives
        else:
            positives, negatives = batch_sets(i, labels, num_samples, num_views, positives_cap)
        s = {
            j: fsum(a * b for a, b in zip(own[i], contrasted[j], strict=True)) / temperature
            for j in positives | negatives
        }
        weights = balanced_weights(positives, negatives, others) if class_balanced else None
        losses.append(one_loss(s, positives, negatives, summation, denominator, margin, weights))
        if anchors is not None and not anchors[i % len(anchors)]:
            losses[-1] = None
    return losses


def balanced_weights(positives, negatives, labels):
    """Return the weight of each row in a denominator: 1 over the number of contrasted rows of its class."""
    sizes = {j: sum(labels[k] == labels[j] for k in negatives) for j in negatives}
    return {j: 1 / len(positives) for j in positives} | {j: 1 / size for j, size in sizes.items()}


def mean(losses):
    """Return the batch loss: the mean over the anchors with a loss, or 0."""
    terms = [loss for loss in losses if loss is not None]
    return fsum(terms) / max(len(terms), 1)


def unit_rows(rows):
    norms = [sqrt(fsum(x * x for x in row)) for row in rows]
    return [[x / norm for x in row] for row, norm in zip(rows, norms, strict=True)]


def batch_sets(i, labels, num_samples, num_views, cap):
    """Return `P(i)` and `N(i)` of a batch contrasted with itself."""
    sample = i % num_samples  # view-major rows: sample b is in rows b, b + B, b + 2 B, ...
    positives = {j for j in range(len(labels)) if j != i and labels[j] == labels[i]}
    negatives = {j for j in range(len(labels)) if labels[j] != labels[i]}
    if cap is not None:
        others = [b for b in range(num_samples) if b != sample and labels[b] == labels[i]]
        kept = [sample, *others[: cap // num_views]]
        positives = {j for j in positives if j % num_samples in kept}
    return positives, negatives


def listed_sets(i, indices_tuple):
    """Return `P(i)` and `N(i)` of listed pairs `(a1, p, a2, n)` or triplets `(a, p, n)`."""
    lists = [indices.tolist() for indices in indices_tuple]
    a1, p, a2, n = lists if len(lists) == 4 else (lists[0], lists[1], lists[0], lists[2])
    positives = {other for anchor, other in zip(a1, p, strict=True) if anchor == i}
    negatives = {other for anchor, other in zip(a2, n, strict=True) if anchor == i}
    return positives, negatives


def one_loss(s, positives, negatives, summation, denominator, margin=0.0, weights=None):
    """Return equation 2 or 3 for one anchor, with similarities `s` divided by the temperature."""

    def denominator_of(p):
        members = {"all": positives | negatives, "one_positive": {p} | negatives, "negatives": negatives}[denominator]
        if weights is not None:
            return fsum(weights[a] * exp(s[a]) for a in members)
        return fsum(exp(s[a] - margin if a == p and a not in negatives else s[a]) for a in members)

    if not positives or (denominator == "negatives" and not negatives):
        return None
    if summation == "out":
        return -fsum(s[p] - log(denominator_of(p)) for p in positives) / len(positives)
    return -log(fsum(exp(s[p]) / denominator_of(p) for p in positives) / len(positives))
