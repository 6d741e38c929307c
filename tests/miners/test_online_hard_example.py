"""OnlineHardExampleMiner against loops over all pairs and triplets."""

import pytest
import torch
from helpers import miner_oracle as oracle
from helpers.float32_products import FULL, lower_precision, settings_at_products
from pytorch_metric_learning import distances
from pytorch_metric_learning import losses as pml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pml_supcon.losses import CrossBatchMemory, SupConLossOut
from pml_supcon.miners import MeasuredMiner, OnlineHardExampleMiner, _ranking, online_hard_example

SHARES = [0.001, 0.25, 1]


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(online_hard_example, "SMALLEST_PART", 1)


def distances_of(rows, similarity):
    """Return the oracle's `d[i][j]`, the negative of a similarity."""
    matrix = oracle.far(rows[0], rows[2] if len(rows) == 4 else None, oracle.cosine if similarity else oracle.euclidean)
    return [[-x for x in row] for row in matrix] if similarity else matrix


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize(("similarity", "most"), [(False, None), (True, 3)], ids=["distance", "similarity, most"])
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", oracle.SHAPES)
def test_the_hardest_pairs_and_triplets(shape, share, similarity, most):
    rows = oracle.batch(*shape)
    d, options = distances_of(rows, similarity), {"distance": distances.CosineSimilarity() if similarity else None}
    # the farthest positives and the nearest negatives
    chosen = oracle.as_lists(OnlineHardExampleMiner(share, most=most, **options)(*rows))
    for ours, items, sign in zip(chosen, oracle.pairs(*rows[1::2]), (1, -1), strict=True):
        scores = [sign * d[i][j] for i, j in items]
        oracle.assert_hardest(ours, items, scores, oracle.number_of(share, len(items), most))
    # the triplets with the largest d(a, p) - d(a, n)
    chosen = oracle.as_lists(OnlineHardExampleMiner(share, kind="triplets", most=most, **options)(*rows))
    items = oracle.triplets(*rows[1::2])
    scores = [d[a][p] - d[a][n] for a, p, n in items]
    oracle.assert_hardest(chosen, items, scores, oracle.number_of(share, len(items), most))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("references", [None, 9])
def test_equally_hard_pairs_and_triplets_are_chosen_by_index(references, share):
    # small whole numbers: distances are exact, and mostly equal
    embeddings, labels = torch.randint(-1, 2, (14, 2)).double(), torch.randint(2, (14,))
    more = () if references is None else (torch.randint(-1, 2, (references, 2)).double(), torch.arange(references) % 2)
    rows = (embeddings, labels, *more)
    options = {"distance": distances.DotProductSimilarity(normalize_embeddings=False)}
    near = (embeddings @ (more[0] if more else embeddings).T).tolist()
    positive, negative = oracle.pairs(*rows[1::2])
    triplets = oracle.triplets(*rows[1::2])
    assert oracle.as_lists(OnlineHardExampleMiner(share, **options)(*rows)) == (
        oracle.hardest(positive, [-near[i][j] for i, j in positive], oracle.number_of(share, len(positive))),
        oracle.hardest(negative, [near[i][j] for i, j in negative], oracle.number_of(share, len(negative))),
    )
    scores = [near[a][n] - near[a][p] for a, p, n in triplets]
    assert oracle.as_lists(OnlineHardExampleMiner(share, kind="triplets", **options)(*rows)) == oracle.hardest(
        triplets, scores, oracle.number_of(share, len(triplets))
    )


def test_pairs_are_ranked_by_the_terms_of_a_loss_and_those_of_0_are_equally_hard():
    rows = oracle.batch(20, 2, 2, 13)
    d = distances_of(rows, similarity=False)
    loss = pml.ContrastiveLoss(pos_margin=0.3, neg_margin=0.3)
    chosen = oracle.as_lists(OnlineHardExampleMiner(0.9, loss=loss)(*rows))
    for ours, items, sign in zip(chosen, oracle.pairs(*rows[1::2]), (1, -1), strict=True):
        scores = [max(sign * (d[i][j] - 0.3), 0) for i, j in items]
        zeros = [pair for pair, score in zip(items, scores, strict=True) if score == 0]
        number = oracle.number_of(0.9, len(items))
        assert len(items) - number < len(zeros)  # some with a term of 0 are chosen, the first ones
        assert ours[len(items) - len(zeros) :] == zeros[: number - len(items)]
        oracle.assert_hardest(ours, items, scores, number)


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_triplets_are_ranked_by_the_terms_of_a_loss(share):
    embeddings, labels = oracle.batch(15, 3, 3, None)
    d, items = oracle.far(embeddings), oracle.triplets(labels)
    swapped, margin = pml.TripletMarginLoss(margin=0.1, swap=True), pml.MarginLoss(beta=0.7, learn_beta=True)
    for loss, term in (
        (swapped, lambda a, p, n: max(d[a][p] - min(d[a][n], d[p][n]) + 0.1, 0)),
        (margin, lambda a, p, n: max(d[a][p] - 0.7 + 0.2, 0) + max(0.7 - d[a][n] + 0.2, 0)),
    ):
        chosen = OnlineHardExampleMiner(share, kind="triplets", loss=loss)(embeddings, labels)
        scores = [term(*item) for item in items]
        oracle.assert_hardest(oracle.as_lists(chosen), items, scores, oracle.number_of(share, len(items)))


@pytest.mark.parametrize(
    ("loss", "kind", "came"),
    [
        (SupConLossOut(), "pairs", r"SupConLossOut with already_reduced \(\)"),
        (pml.NTXentLoss(), "pairs", r"NTXentLoss with pos_pair"),
        (pml.ContrastiveLoss(), "triplets", r"ContrastiveLoss with pos_pair \(\d+,\), neg_pair"),
        (pml.MultiSimilarityLoss(), "triplets", r"MultiSimilarityLoss with element \(12, 1\)"),
    ],
)
def test_a_loss_without_a_term_for_each_pair_or_triplet_raises(loss, kind, came):
    rows = torch.randn(12, 3), torch.arange(12) % 3
    with pytest.raises(TypeError, match=rf"Expected argument `loss` to have a term for each.*, but got {came}"):
        OnlineHardExampleMiner(kind=kind, loss=loss)(*rows)


def test_a_plain_zero_as_loss_makes_all_equally_hard():
    rows = torch.randn(1, 2), torch.tensor([0]), torch.randn(2, 2), torch.tensor([0, 1])
    loss = pml.ContrastiveLoss()
    assert loss(*rows[:2], None, *rows[2:]) == 0  # one pair of each: PML computes nothing
    assert oracle.as_lists(OnlineHardExampleMiner(0.5, loss=loss)(*rows)) == ([(0, 0)], [(0, 1)])


class LargestTensor(TorchDispatchMode):
    """A recorder of the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.largest = max(self.largest, leaf.numel())
        return result


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("loss", [None, pml.TripletMarginLoss()])
def test_memory_never_holds_all_triplets(loss):
    rows, number = 96, 500
    embeddings, labels = torch.randn(rows, 3), torch.arange(rows) % 2
    triplets = rows * (rows // 2 - 1) * (rows // 2)
    with LargestTensor() as recorder:
        chosen = OnlineHardExampleMiner(1, kind="triplets", most=number, loss=loss)(embeddings, labels)
    assert len(chosen[0]) == number
    assert 6 * rows**2 <= triplets / 3
    assert recorder.largest <= 6 * rows**2


def test_running_highest_keeps_the_first_of_equal_scores():
    scores = torch.tensor([1.0, 3, 3, 2, 3, 1, 3, 2])
    for room in (1, 3, 100):
        running = _ranking.RunningHighest(3, room)
        for part in torch.arange(8).split(2):
            running.add(scores[part], part[None])
        assert running.items().tolist() == [[1, 2, 4]], room


@pytest.mark.parametrize(
    ("share", "number", "most", "right"),
    [(0.07, 100, None, 7), (0.1, 3, None, 1), (1e-9, 5, None, 1), (0.3, 0, None, 0), (1.0, 7, None, 7), (0.5, 9, 2, 2)],
)
def test_a_share_is_rounded_up(share, number, most, right):
    assert _ranking.number_of(share, number, most) == right


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("references", [None, 7])
@pytest.mark.parametrize(("kind", "loss"), [("pairs", pml.ContrastiveLoss()), ("triplets", pml.TripletMarginLoss())])
def test_half_precision_is_ranked_in_float32(dtype, kind, references, loss):
    rows = oracle.batch(12, 4, 3, references, dtype=dtype)
    wide = [x.float() if x.is_floating_point() else x for x in rows]
    for options in ({"loss": loss}, {}, {"distance": distances.CosineSimilarity()}):
        miner = OnlineHardExampleMiner(kind=kind, **options)
        right = oracle.as_lists(miner(*wide))
        assert oracle.as_lists(miner(*rows)) == right
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert oracle.as_lists(miner(*wide)) == right


def test_products_are_float32_where_the_user_allows_less(monkeypatch):
    settings = settings_at_products(monkeypatch)
    with lower_precision():
        for options in (
            {"distance": distances.CosineSimilarity()},
            {"loss": pml.ContrastiveLoss(distance=distances.CosineSimilarity())},
        ):
            MeasuredMiner(OnlineHardExampleMiner(**options))(*oracle.batch(12, 4, 3, None))
    assert set(settings) == {FULL}


@pytest.mark.parametrize("loss", [False, True])
@pytest.mark.parametrize("labels", [[], [0], [0] * 4, [0, 1, 2, 3]], ids=["empty", "row", "one class", "singletons"])
def test_batches_without_positives_or_negatives(labels, loss):
    rows = torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.int64)
    pair_loss, triplet_loss = (pml.ContrastiveLoss(), pml.TripletMarginLoss()) if loss else (None, None)
    positive, negative = oracle.as_lists(OnlineHardExampleMiner(1, loss=pair_loss)(*rows))
    assert (sorted(positive), sorted(negative)) == oracle.pairs(rows[1])
    assert oracle.as_lists(OnlineHardExampleMiner(1, kind="triplets", loss=triplet_loss)(*rows)) == []


@pytest.mark.parametrize(("kind", "nothing"), [("pairs", ([], [])), ("triplets", [])])
def test_no_references(kind, nothing):
    assert oracle.as_lists(OnlineHardExampleMiner(kind=kind)(*oracle.batch(3, 2, 2, 0))) == nothing


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"share": 1.1}, ValueError, r"`share` to be in \(0, 1\], but got 1.1"),
        ({"kind": "pair"}, ValueError, r"`kind` to be one of .*, but got 'pair'; did you mean 'pairs'\?"),
        ({"most": 0}, ValueError, "`most` to be at least 1, but got 0"),
        ({"loss": CrossBatchMemory(SupConLossOut(), 2)}, TypeError, "`loss` to be a loss of .*got CrossBatchMemory"),
        (
            {"loss": pml.ContrastiveLoss(), "distance": distances.LpDistance()},
            ValueError,
            "no `distance` with a `loss`",
        ),
    ],
)
def test_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        OnlineHardExampleMiner(**options)
