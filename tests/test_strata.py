import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from pml_supcon._strata import draw_rows, hold_out


def test_held_out_part_has_its_share_of_every_label():
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 8], [200, 100, 40]))
    fitted, held = hold_out(labels, 0.25, 0)
    assert sorted([*fitted, *held]) == list(range(340))
    _, wanted = next(StratifiedShuffleSplit(1, test_size=0.25, random_state=0).split(labels, labels))
    assert np.bincount(labels[held]).tolist() == np.bincount(labels[wanted]).tolist()
    assert (hold_out(labels, 0.25, 0)[1] == held).all()
    assert (hold_out(labels, 0.25, 1)[1] != held).any()


def test_every_label_keeps_a_fitted_row():
    labels = np.array([0] * 2 + [1] + [2] * 17)
    for seed in range(20):
        fitted, held = hold_out(labels, 0.85, seed)
        assert len(held) == 17
        assert np.bincount(labels[held], minlength=3).tolist() == [1, 0, 16]
        assert set(labels[fitted]) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"0.9 of 20 rows are 18, of 17 that can be held out \(3 labels\)"):
        hold_out(labels, 0.9, 0)


def test_drawn_rows_are_any_of_a_label():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [10, 30]))
    seen = np.concatenate([draw_rows(labels, 8, np.random.default_rng(seed), at_least=1) for seed in range(400)])
    counts = np.bincount(seen, minlength=40)
    assert (abs(counts - 80) < 40).all()  # each of 40 rows in a fifth of 400 draws
