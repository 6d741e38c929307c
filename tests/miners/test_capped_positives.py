"""CappedPositivesMiner against loops over the anchors."""

from collections import Counter

import pytest
import torch
from helpers import miner_oracle as oracle
from pytorch_metric_learning import distances

from pml_supcon.miners import CappedPositivesMiner

CHOICES = ("random", "hardest", "easiest")


def by_anchor(pairs):
    return {a: [other for b, other in pairs if a == b] for a, _ in pairs}


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("similarity", [False, True], ids=["distance", "similarity"])
@pytest.mark.parametrize("cap", [1, 3, 1000])
@pytest.mark.parametrize("shape", oracle.SHAPES)
def test_all_negatives_and_of_each_anchor_up_to_the_cap_any_or_the_farthest_or_the_nearest(
    shape, cap, similarity, choose
):
    rows = oracle.batch(*shape)
    miner = CappedPositivesMiner(cap, choose=choose, distance=distances.CosineSimilarity() if similarity else None)
    ours, negatives = oracle.as_lists(miner(*rows))
    all_positives, all_negatives = oracle.pairs(*rows[1::2])
    assert negatives == all_negatives
    assert ours == sorted(set(ours))
    chosen, d = by_anchor(ours), oracle.far(rows[0], rows[2] if len(rows) == 4 else None)
    assert chosen.keys() == by_anchor(all_positives).keys()
    for anchor, positives in by_anchor(all_positives).items():
        ranked = sorted(positives, key=lambda j, i=anchor: d[i][j], reverse=choose == "hardest")
        assert len(chosen[anchor]) == min(cap, len(positives))
        assert set(chosen[anchor]) <= set(positives if choose == "random" else ranked[:cap])


@pytest.mark.parametrize("choose", ["hardest", "easiest"])
def test_of_equally_far_positives_the_first(choose):
    embeddings, labels = torch.tensor([[1.0, 0.0]] * 6), torch.zeros(6, dtype=torch.int64)  # no product rounds
    ours, _ = oracle.as_lists(CappedPositivesMiner(2, choose=choose)(embeddings, labels))
    assert by_anchor(ours) == {0: [1, 2], 1: [0, 2], **{a: [0, 1] for a in range(2, 6)}}


def test_random_choices_are_uniform_and_drawn_anew():
    embeddings, labels = torch.randn(7, 2), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    miner, calls = CappedPositivesMiner(2), 2000
    choices = Counter(
        (a, *chosen)
        for _ in range(calls)
        for a, chosen in by_anchor(oracle.as_lists(miner(embeddings, labels))[0]).items()
    )
    assert len(choices) == 5 * 6 + 2  # any two of four
    for (a, *_), number in choices.items():
        assert abs(number / calls - (1 / 6 if labels[a] == 0 else 1)) < 0.05, a  # six standard deviations


def test_random_choices_follow_the_generator():
    rows = oracle.batch(20, 3, 2, None)
    seeded = CappedPositivesMiner(2, generator=torch.Generator().manual_seed(5))
    state = torch.get_rng_state()
    first, second = (oracle.as_lists(seeded(*rows)) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert first != second
    again = CappedPositivesMiner(2, generator=torch.Generator().manual_seed(5))
    assert oracle.as_lists(again(*rows)) == first
    torch.manual_seed(5)
    assert oracle.as_lists(CappedPositivesMiner(2)(*rows)) == first


@pytest.mark.parametrize("choose", ["hardest", "easiest"])
@pytest.mark.parametrize("references", [None, 9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_ranked_in_float32(dtype, references, choose):
    rows = oracle.batch(14, 4, 2, references, dtype=dtype)
    miner = CappedPositivesMiner(2, choose=choose)
    right = miner(*(x.float() if x.is_floating_point() else x for x in rows))
    assert oracle.as_lists(miner(*rows)) == oracle.as_lists(right)


@pytest.mark.parametrize("choose", CHOICES)
def test_batches_without_positives_or_negatives(choose):
    miner = CappedPositivesMiner(9, choose=choose)
    for labels in ([], [0], [0] * 4, [0, 1, 2, 3]):
        rows = torch.randn(len(labels), 3), torch.tensor(labels, dtype=torch.int64)
        assert oracle.as_lists(miner(*rows)) == oracle.pairs(rows[1]), labels
    assert oracle.as_lists(miner(*oracle.batch(3, 2, 2, 0))) == ([], [])  # no references


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cap": 0}, ValueError, "`cap` to be at least 1, but got 0"),
        ({"cap": 1, "choose": "hard"}, ValueError, "`choose` to be one of .*, but got 'hard'; did you mean 'hardest'"),
        ({"cap": 1, "generator": 3}, TypeError, "`generator` to be a torch.Generator or None, but got int"),
    ],
)
def test_options_that_do_not_fit(options, error, message):
    with pytest.raises(error, match=message):
        CappedPositivesMiner(**options)
