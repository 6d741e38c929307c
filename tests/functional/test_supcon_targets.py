"""Targets in `supcon_loss`: the specification's values, an oracle of plain loops, and mistakes that it rejects."""

import copy
import gc
import itertools
import pickle
from math import exp, fsum, log

import pytest
import torch
from helpers.supcon_batches import (
    OPTION_NAMES,
    OPTIONS,
    SPEC_LABELS,
    SPEC_ROWS,
    SPEC_TEMPERATURE,
    assert_equals_oracle,
    loss_and_gradient,
    random_rows,
)
from helpers.supcon_oracle import unit_rows

from pml_supcon import losses
from pml_supcon.functional import supcon_loss
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels, Target, target_of

SETS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0]])
SHARES = torch.tensor([[1, 0, 0], [0.7, 0.3, 0], [0.2, 0.5, 0.3], [0, 0.1, 0.9]], dtype=torch.float64)
TREE = torch.tensor([[0, 0], [0, 1], [1, 2], [0, 0]])

SPEC_TABLE = [
    (LabelSets(), SETS, 1.248442224),
    (LabelSets(normalization="count"), SETS, 0.787367607),
    (LabelSets(threshold=0.5), SETS, 1.178926517),
    (LabelSets(threshold=0.5, normalization="count"), SETS, 0.942266860),
    (LabelSets("overlap"), SETS, 1.501123969),
    (LabelSets("overlap", normalization="count"), SETS, 1.115786213),
    (LabelSets("any"), SETS, 1.537858220),
    (SoftLabels(), SHARES, 1.605441660),
    (SoftLabels(normalization="count"), SHARES, 0.602927273),
    (Hierarchy([1, 1]), TREE, 4.600215183),
    (Hierarchy([0.25, 0.75]), TREE, 2.270391614),
]


class Averaged(Target):
    """A user's own target with a normalization that does not exist."""

    normalization = "mean"


class Signed(Target):
    """A user's own target: not symmetric, with zeros."""

    def weights(self, anchors, rows):
        return (2 * anchors[:, None] - rows).clamp(min=0)


def set_weight(similarity, threshold):
    def weight(a, b):
        shared, union = sum(x and y for x, y in zip(a, b, strict=True)), sum(x or y for x, y in zip(a, b, strict=True))
        if similarity == "any":
            return float(shared > 0)
        alone = 1.0 if similarity == "jaccard" and not union else 0.0
        divisor = union if similarity == "jaccard" else sum(a)
        w = shared / divisor if divisor else alone
        return w if w >= threshold else 0.0

    return weight


#: Targets, labels of a number of samples, and the weight of a pair of labels in plain Python.
CASES = {
    **{
        f"{similarity}-{threshold}-{normalization}": (
            LabelSets(similarity, threshold, normalization),
            lambda n: torch.rand(n, 4) < 0.4,
            set_weight(similarity, threshold),
        )
        for similarity, threshold, normalization in itertools.product(
            ("jaccard", "overlap", "any"), (0.0, 0.5), ("sum", "count")
        )
    },
    **{
        f"soft-{normalization}": (
            SoftLabels(normalization),
            lambda n: torch.rand(n, 4) * (torch.rand(n, 4) < 0.5) + 0.1 * torch.eye(4)[torch.arange(n) % 4],
            lambda a, b: fsum(x * y for x, y in zip(a, b, strict=True)),
        )
        for normalization in ("sum", "count")
    },
    "kernel": (Kernel(0.7), lambda n: torch.randn(n), lambda a, b: exp(-((a - b) ** 2) / (2 * 0.7**2))),
    "kernel of two numbers": (
        Kernel(0.7, normalization="count"),
        lambda n: torch.randn(n, 2, dtype=torch.float64),
        lambda a, b: exp(-fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / (2 * 0.7**2)),
    ),
    "own": (Signed(), lambda n: torch.randn(n, dtype=torch.float64), lambda a, b: max(2 * a - b, 0.0)),
}
BACKENDS = ("dense", "tiled", "tiled in tiles of 3", "reference")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    if request.param == "tiled in tiles of 3":
        monkeypatch.setattr(layout, "TILE", 3)
    return request.param.split()[0]


def oracle(
    rows, labels, weight, normalization="sum", *, ref_emb=None, ref_labels=None, temperature=0.3, summation="out",
    denominator="all", num_anchors=None, mistake=None,
):  # fmt: skip
    """Return the loss of each anchor in plain loops, with one of `MISTAKES`; None for an anchor without a loss."""
    anchors = unit_rows(rows.tolist())
    others = anchors if ref_emb is None else unit_rows(ref_emb.tolist())
    own, their = labels.tolist(), labels.tolist() if ref_emb is None else ref_labels.tolist()
    found = []
    for i in range(num_anchors or len(rows)):
        pairs = [j for j in range(len(others)) if ref_emb is not None or j != i or mistake == "own row kept"]
        w = {j: weight(own[i], their[j]) for j in pairs}
        s = {j: fsum(a * b for a, b in zip(anchors[i], others[j], strict=True)) / temperature for j in pairs}
        positives, negatives = [j for j in pairs if w[j] > 0], [j for j in pairs if not w[j] > 0]
        if not positives or (denominator == "negatives" and not negatives):
            found.append(None)
            continue

        def log_d(p, s=s, positives=positives, negatives=negatives):
            members = {"all": [*positives, *negatives], "one_positive": [p, *negatives], "negatives": negatives}
            return log(fsum(exp(s[j]) for j in members[denominator]))

        counted = (normalization == "count") != (mistake == "count for sum")
        total = len(positives) if counted else fsum(w.values())
        if summation == "out":
            found.append(-fsum(w[p] * (s[p] - log_d(p)) for p in positives) / total)
        else:
            found.append(-log(fsum(w[p] * exp(s[p] - log_d(p)) for p in positives) / total))
    return found


@pytest.mark.parametrize(("target", "labels", "value"), SPEC_TABLE)
def test_table_of_the_specification(backend, target, labels, value):
    loss = losses.SupConLossOut(SPEC_TEMPERATURE, target=target, backend=backend)
    assert loss(SPEC_ROWS, labels.repeat(2, 1)).item() == pytest.approx(value, abs=1e-9)
    assert loss(SPEC_ROWS.view(2, 4, 2).transpose(0, 1), labels).item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize(
    ("name", *OPTION_NAMES),
    [(name, *options) for name, options in itertools.product(CASES, OPTIONS) if not CASES[name][0].refusal(options[1])],
)
def test_oracle_for_rows_contrasted_with_themselves(backend, name, summation, denominator):
    target, draw, weight = CASES[name]
    options = {"summation": summation, "denominator": denominator, "temperature": 0.3}
    for samples, views, mode in ((1, 2, "all"), (7, 1, "all"), (4, 2, "one")):
        rows = random_rows(samples * views, 3)
        labels = draw(samples).to(torch.float64) if name != "own" else draw(samples)
        labels = labels.repeat(views, *[1] * (labels.ndim - 1))
        count = samples if mode == "one" else None
        expected = oracle(rows, labels, weight, target.normalization, num_anchors=count, **options)
        ours = supcon_loss(rows, labels, target=target, backend=backend, num_views=views, contrast_mode=mode, **options)
        assert_equals_oracle(ours, expected, f"{name}, {samples} samples, {views} views")


@pytest.mark.parametrize("name", ["jaccard-0.5-count", "overlap-0.0-sum", "soft-sum", "kernel", "own"])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_oracle_for_references(backend, summation, name):
    target, draw, weight = CASES[name]
    rows, others = random_rows(5, 3), random_rows(8, 3)
    labels, ref_labels = draw(5), draw(8)
    given = {"ref_emb": others, "ref_labels": ref_labels, "summation": summation, "temperature": 0.3}
    wide = {"ref_labels": ref_labels.double()} if labels.is_floating_point() else {}
    labels = labels.double() if wide else labels
    expected = oracle(rows, labels, weight, target.normalization, **given | wide)
    assert_equals_oracle(supcon_loss(rows, labels, target=target, backend=backend, **given | wide), expected, name)


@pytest.mark.parametrize("mistake", ["own row kept", "count for sum"])
def test_oracle_rejects_mistakes(mistake):
    target, draw, weight = CASES["jaccard-0.5-sum"]
    rows, labels = random_rows(7, 3), draw(7)
    ours = supcon_loss(rows, labels, target=target, temperature=0.3)
    assert_equals_oracle(ours, oracle(rows, labels, weight), "right")
    with pytest.raises(AssertionError):
        assert_equals_oracle(ours, oracle(rows, labels, weight, mistake=mistake), mistake)


def test_numbers_and_their_references_may_have_two_dtypes(backend):
    rows, others, numbers = random_rows(4, 3), random_rows(5, 3), torch.tensor([0, 1, 2, 4])
    given = {"ref_emb": others, "target": Kernel(2.0), "backend": backend}
    ages = torch.tensor([0.0, 1, 3, 2, 8])
    expected = supcon_loss(rows, numbers.double(), ref_labels=ages.double(), **given)
    torch.testing.assert_close(supcon_loss(rows, numbers, ref_labels=ages, **given), expected)


def test_the_threshold_is_inclusive():
    for number in (3, 7, 9):  # shares that are no binary fractions
        sets = (torch.arange(10) < number).float()[None].repeat(2, 1)
        sets[0] = 1
        rows = LabelSets("overlap", threshold=number / 10).prepare(sets, torch.float32)
        assert LabelSets("overlap", threshold=number / 10).weights(rows[:1], rows[1:]).item() > 0
        assert LabelSets("overlap", threshold=number / 10 + 1e-6).weights(rows[:1], rows[1:]).item() == 0


@pytest.mark.parametrize("which", ["dense", "reference"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_one_hot_labels_equal_classes_to_the_last_bit(which, summation, denominator):
    options = {"summation": summation, "denominator": denominator, "backend": which}
    classes = torch.randint(0, 5, (24,))
    one_hot = torch.nn.functional.one_hot(classes)
    rows = torch.randn(24, 6, requires_grad=True)
    expected = supcon_loss(rows, classes, **options)
    (gradient,) = torch.autograd.grad(expected.losses.sum(), rows)
    for target, labels in ((SoftLabels(), one_hot.float()), (LabelSets("any"), one_hot), (LabelSets(), one_hot == 1)):
        ours = supcon_loss(rows, labels, target=target, **options)
        assert torch.equal(ours.losses, expected.losses), target
        assert torch.equal(ours.valid, expected.valid), target
        assert torch.equal(torch.autograd.grad(ours.losses.sum(), rows)[0], gradient), target


@pytest.mark.parametrize("name", ["jaccard-0.0-sum", "overlap-0.5-count", "soft-count", "own"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_gradients(backend, summation, denominator, name):
    target, draw, _ = CASES[name]
    rows, labels = random_rows(6, 3).requires_grad_(), draw(6)

    def values(rows):
        return supcon_loss(
            rows, labels, target=target, backend=backend, temperature=0.5, summation=summation, denominator=denominator
        ).losses

    assert torch.autograd.gradcheck(values, rows)


@pytest.mark.parametrize(
    ("target", "labels"),
    [
        (SoftLabels(), (90.5 * torch.eye(4)).softmax(1)),  # of a teacher that is sure: other shares are 5e-40
        (Kernel(1.0), torch.tensor([0, 13.5, 27, 40.5])),  # exp(-91) = 3e-40
    ],
)
@pytest.mark.parametrize("summation", ["out", "in"])
def test_weights_that_float32_can_hold_but_not_invert_are_0(backend, target, labels, summation):
    rows = torch.randn(4, 3, requires_grad=True)
    terms = supcon_loss(rows, labels, target=target, summation=summation, backend=backend)
    terms.losses.sum().backward()
    assert not terms.valid.any()
    assert torch.equal(rows.grad, torch.zeros_like(rows))


@pytest.mark.parametrize("temperature", [0.1, 0.02, 1 / 59])
@pytest.mark.parametrize("summation", ["out", "in"])
def test_a_small_weight_of_the_only_positive(backend, temperature, summation):
    """The last row has weights of 3e-18 only, and `w exp(s)` down to `3e-18 exp(-59)`, which float32 cannot hold."""
    labels = torch.tensor([0, 0.1, 9])
    options = {"target": Kernel(1.0), "summation": summation, "temperature": temperature}
    rows = torch.tensor([[1, 0], [1, 0.1], [-1, 0.05]])
    losses, gradient = loss_and_gradient(rows, labels, backend=backend, **options)
    expected = loss_and_gradient(rows.double(), labels.double(), backend="reference", **options)
    torch.testing.assert_close((losses.double(), gradient.double()), expected, rtol=1e-3, atol=1e-4)


def test_a_hierarchy_is_the_sum_of_the_means_of_its_levels(backend):
    """Row 4 has a positive at the coarse level only, so that the levels have means over different anchors."""
    rows, options = random_rows(6, 3), {"temperature": 0.3, "backend": backend}
    tree = torch.tensor([[0, 10], [0, 10], [1, 20], [1, 20], [1, 21], [2, 30]])
    terms = supcon_loss(rows, tree, target=Hierarchy([0.5, 2.0]), **options)
    coarse, fine = (supcon_loss(rows, level, **options) for level in tree.T)
    assert terms.valid.tolist() == [True] * 5 + [False]
    assert terms.mean().item() == pytest.approx((0.5 * coarse.mean() + 2 * fine.mean()).item(), rel=1e-12)
    alone = supcon_loss(rows, tree, target=Hierarchy([0, 2.0]), **options)
    assert torch.equal(alone.losses, 2 * fine.losses)


def test_the_classes_of_a_level_are_paths_from_the_root():
    tree = torch.tensor([[3, 0, 7], [1, 0, 7], [3, 0, 8], [3, 1, 7], [1, 0, 7]])
    _, (_, middle), (_, fine) = Hierarchy([1, 1, 1]).levels(tree)
    assert (middle[:, None] == middle).tolist() == [[(a == b) for b in "xyxzy"] for a in "xyxzy"]
    assert (fine[:, None] == fine).tolist() == [[(a == b) for b in "vwxyw"] for a in "vwxyw"]


def test_class_labels_with_a_target_of_classes():
    """`LabelSets("any")` of one-hot columns has the value of the classes, on every backend."""
    one_hot = torch.nn.functional.one_hot(SPEC_LABELS.repeat(2))
    loss = losses.SupConLossOut(SPEC_TEMPERATURE, target=LabelSets("any"))
    assert loss(SPEC_ROWS, one_hot).item() == pytest.approx(2.359539547, abs=1e-9)


WRONG = [
    (None, torch.rand(4, 3), {}, TypeError, "hold integers, but got torch.float32; .*SoftLabels"),
    (None, torch.rand(4), {}, TypeError, ".targets.SoftLabels. or .Kernel. takes floating point"),
    (None, SETS, {}, ValueError, r"shape \(4,\), one label for each embedding, but got \(4, 3\); .*LabelSets"),
    (None, SETS == 1, {}, TypeError, "torch.bool; .*LabelSets"),
    (LabelSets(), SETS[:, 0], {}, ValueError, r"shape \(4, C\), one column for each label, but got \(4,\)"),
    (LabelSets(), 2 * SETS, {}, ValueError, "hold 0 and 1 with LabelSets, but got other values; .*SoftLabels"),
    (LabelSets(), SETS[:3], {}, ValueError, r"4 entries, one for each embedding, but got shape \(3, 3\)"),
    (SoftLabels(), SETS, {}, TypeError, "floating point with SoftLabels, but got torch.int64; .*LabelSets"),
    (SoftLabels(), SHARES - 0.2, {}, ValueError, "finite shares in .* but got values from -0.2"),
    (SoftLabels(), SHARES * 1e20, {}, ValueError, r"finite shares in \[0, 1e12\] with SoftLabels, .* to 1e\+20"),
    (SoftLabels(), SHARES.to(torch.float8_e5m2), {}, TypeError, "floating point with SoftLabels, but got torch.float8"),
    (LabelSets(), SETS.to(torch.complex64), {}, TypeError, "bool, or 0 and 1, with LabelSets, but got torch.complex64"),
    (LabelSets(), SETS, {"ref_emb": torch.randn(2, 3), "ref_labels": SETS[:2, :2]}, ValueError,
     r"`ref_labels` to have shape \(2, 3\), with the columns of `labels`, but got \(2, 2\)"),
    (Kernel(1.0), torch.rand(4, 2), {"ref_emb": torch.randn(2, 3), "ref_labels": torch.rand(2)}, ValueError,
     r"`ref_labels` to have shape \(2, 2\), with the columns"),
    (SoftLabels(), SHARES * torch.nan, {}, ValueError, "finite shares"),
    (SoftLabels(), SHARES * torch.inf, {}, ValueError, "finite shares"),
    (SoftLabels(), SETS.double(), {}, ValueError, "share >= 1e-09 in every row .*, but the largest of row 3 is 0: it"),
    (SoftLabels(), SHARES * 1e-20, {}, ValueError, "but the largest of row 0 is 1e-20"),
    (Hierarchy([1, 1]), SETS, {}, ValueError, r"shape \(4, 2\) with 2 `level_weights`, but got \(4, 3\)"),
    (Hierarchy([1, 1]), SHARES[:, :2], {}, TypeError, "hold integers with Hierarchy, but got torch.float64"),
    (Hierarchy([1, 1]), torch.tensor([[0, 5], [1, 5], [0, 1], [0, 2]]), {}, ValueError,
     "each label in column 1 of `labels` to have one parent, but label 5 has 0 and 1"),
    (Kernel(1.0), torch.tensor([0.0, 1.0, torch.nan, 2.0]), {}, ValueError, "finite with Kernel"),
    (Kernel(1e-300), torch.tensor([0, 1e10]).repeat(2), {}, ValueError, "also divided by sigma=1e-300"),
    (Averaged(), SETS, {}, ValueError, r"`normalization` to be one of \['sum', 'count'\], but got 'mean'"),
    (Kernel(1.0), torch.ones(4) > 0, {}, TypeError, "hold numbers with Kernel, but got torch.bool"),
    (Kernel(1.0), torch.rand(4, 2, 2), {}, ValueError, r"shape \(4,\) or \(4, K\) with Kernel"),
    (Kernel(1.0), torch.rand(4), {"denominator": "negatives"}, ValueError, "every row is a positive of every anchor"),
    (LabelSets(), SETS, {"positives_cap": 2, "num_views": 2}, ValueError, "no `positives_cap` with `target`"),
    (LabelSets(), SETS, {"indices_tuple": (torch.tensor([0]),) * 4}, ValueError, "no `indices_tuple` with `target`"),
    (LabelSets(), None, {"num_views": 2}, ValueError, "Expected `labels` with target=LabelSets"),
    (LabelSets, SETS, {}, TypeError, r"did you mean LabelSets\(\)\?"),
    ("sets", SETS, {}, TypeError, "None or a target of `pml_supcon.targets`, but got 'sets'"),
    (Target(), SETS, {}, NotImplementedError, r"Target to define `weights\(anchors, rows\)`"),
]  # fmt: skip


@pytest.mark.parametrize(("target", "labels", "options", "error", "message"), WRONG)
def test_errors_say_what_was_expected_and_what_came(target, labels, options, error, message):
    with pytest.raises(error, match=message):
        supcon_loss(torch.randn(4, 3), labels, target=target, **options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelSets("jacard"), "did you mean 'jaccard'"),
        (lambda: LabelSets(threshold=1.5), r"`threshold` to be in \[0, 1\], but got 1.5"),
        (lambda: LabelSets(normalization="mean"), "`normalization` to be one of"),
        (lambda: Kernel(0), "`sigma` to be above 0"),
        (lambda: Hierarchy([]), "numbers >= 0, one above 0, for each level, but got"),
        (lambda: Hierarchy([1, -1]), "numbers >= 0"),
        (lambda: Hierarchy([0, 0]), "one above 0"),
    ],
)
def test_errors_of_the_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda a, b: torch.zeros(2, 2), r"a tensor \(anchors, rows\) = \((4, 4|3, 3)\), but got \(2, 2\)"),
        (lambda a, b: None, "but got NoneType"),
        (lambda a, b: torch.full((len(a), len(b)), -1.0), "finite weights >= 0, but got values from -1"),
        (lambda a, b: torch.full((len(a), len(b)), torch.nan), "finite weights >= 0, but got values from nan"),
    ],
)
def test_weights_of_a_users_target_are_checked(backend, weights, message):
    class Own(Target):
        def weights(self, anchors, rows):
            return weights(anchors, rows)

    with pytest.raises(ValueError, match=message):
        supcon_loss(torch.randn(4, 3), torch.arange(4), target=Own(), backend=backend)


@pytest.mark.parametrize("name", ["jaccard-0.5-count", "overlap-0.0-sum", "soft-sum", "own"])
@pytest.mark.parametrize(OPTION_NAMES, OPTIONS)
def test_tiles_whose_exponentials_would_overflow(monkeypatch, summation, denominator, name):
    """Losses and gradients equal the reference's, also of anchors on both sides of a tile, and with references."""
    monkeypatch.setattr(layout, "TILE", 5)
    target, draw, _ = CASES[name]
    options = {"summation": summation, "denominator": denominator, "temperature": 0.001, "target": target}
    rows, labels, upstream = random_rows(12, 3), draw(12), torch.randn(12, dtype=torch.float64)
    for more in ({}, {"ref_emb": random_rows(14, 3), "ref_labels": torch.cat([labels, labels[:2]])}):
        ours, right = (
            loss_and_gradient(rows, labels, upstream, backend=backend, **options, **more)
            for backend in ("tiled", "reference")
        )
        torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("summation", ["out", "in"])
@pytest.mark.parametrize("target", [LabelSets(), LabelSets(normalization="count")])
def test_a_margin_lowers_the_positive_in_its_denominator(backend, target, summation):
    rows, sets = random_rows(9, 3), torch.rand(9, 4) < 0.4
    options = {"denominator": "one_positive", "margin": 0.25, "temperature": 0.5, "summation": summation}
    ours = loss_and_gradient(rows, sets, target=target, backend=backend, **options)
    right = loss_and_gradient(rows, sets, target=target, backend="reference", **options)
    torch.testing.assert_close(ours, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", ["dense", "tiled", "reference"])
def test_the_loss_keeps_its_target_for_the_backward_pass(backend):
    rows = random_rows(4, 3).requires_grad_()
    value = supcon_loss(rows, SETS, target=LabelSets(), backend=backend).mean()
    gc.collect()
    value.backward()
    assert rows.grad.abs().max() > 0


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda target: pickle.loads(pickle.dumps(target))])
@pytest.mark.parametrize("target", [LabelSets("any"), Hierarchy([1, 2]), Kernel(2.0), Signed()])
def test_a_copy_has_a_handle_of_its_own(target, make):
    copied = make(target)
    assert copied.handle != target.handle
    assert target_of(copied.handle) is copied
    assert target_of(target.handle) is target
    assert isinstance(target, Signed) or copied == target


def test_the_handle_of_a_deleted_target_is_an_error():
    handle = LabelSets().handle
    gc.collect()
    with pytest.raises(RuntimeError, match="target of a compiled loss to exist"):
        target_of(handle)


def test_two_targets_of_the_same_settings_are_equal():
    assert LabelSets("any") == LabelSets("any") != LabelSets()
    assert repr(Hierarchy([1, 2])) == "Hierarchy(level_weights=(1.0, 2.0))"
