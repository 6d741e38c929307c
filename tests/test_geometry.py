"""Affine maps: composition, inverse, points, against matrices of three rows; bad input."""

import pytest
import torch

from pml_supcon._geometry import compose_maps, invert_maps
from pml_supcon.views import map_points


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linear = torch.eye(2, dtype=torch.float64) + 0.4 * torch.randn(
        *shape, 2, 2, dtype=torch.float64, generator=generator
    )
    return torch.cat([linear, 5 * torch.randn(*shape, 2, 1, dtype=torch.float64, generator=generator)], dim=-1)


def points(*shape, seed=1):
    return 9 * torch.rand(*shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def square(map_):
    last = torch.tensor([0.0, 0, 1], dtype=torch.float64).expand(*map_.shape[:-2], 1, 3)
    return torch.cat([map_, last], dim=-2)


def test_points_go_through_the_matrix():
    p, T = points(4, 5), maps(4)
    expected = square(T) @ torch.cat([p, torch.ones(4, 5, 1, dtype=p.dtype)], dim=-1).mT
    torch.testing.assert_close(map_points(p, T), expected[:, :2].mT)


def test_the_inverse_leads_back():
    p, T = points(4, 3, 5), maps(4, 3)
    torch.testing.assert_close(map_points(map_points(p, T), T, inverse=True), p)
    torch.testing.assert_close(square(invert_maps(T)), torch.linalg.inv(square(T)))
    assert (map_points(p, T, inverse=True) - map_points(p, T)).abs().max() > 1  # the check can fail


def test_composition_is_the_product():
    one, two = maps(6), maps(6, seed=2)
    torch.testing.assert_close(square(compose_maps(two, one)), square(two) @ square(one))
    torch.testing.assert_close(
        map_points(points(6, 4), compose_maps(two, one)), map_points(map_points(points(6, 4), one), two)
    )
    torch.testing.assert_close(compose_maps(two[0], one), torch.stack([compose_maps(two[0], each) for each in one]))


def test_leading_dimensions_broadcast():
    p, T = points(4, 5), maps(4, 3)
    found = map_points(p[:, None], T)
    assert found.shape == (4, 3, 5, 2)
    torch.testing.assert_close(found[2, 1], map_points(p[2], T[2, 1]))
    assert map_points(p[:0, None], T[:0]).shape == (0, 3, 5, 2)


def test_gradients_reach_points_and_maps():
    T, p = maps(2).requires_grad_(), points(2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, T: map_points(p, T, inverse=True), (p, T))


SINGULAR = torch.tensor([[1.0, 2, 3], [2, 4, 5]])


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            (points(3, 5), maps(4)),
            ValueError,
            r"with leading dimensions that broadcast, but got \(4, 2, 3\) and \(3, 5, 2\)",
        ),
        ((points(4, 5), maps(3)), ValueError, r"with leading dimensions that broadcast, but got \("),
        ((points(5)[..., :1], maps()), ValueError, r"`points` to have shape \(..., K, 2\), but got \(5, 1\)"),
        ((points(5), maps()[:, :2]), ValueError, r"`geometry` to have shape \(..., 2, 3\), but got \(2, 2\)"),
        ((points(5), None), TypeError, "`geometry` to be a torch.Tensor, but got NoneType"),
        ((points(5).long(), maps()), TypeError, "`points` to be floating point of 16 to 64 bits, but got torch.int64"),
    ],
)
def test_bad_input_is_one_line(arguments, error, text):
    with pytest.raises(error, match=text) as caught:
        map_points(*arguments)
    assert "\n" not in str(caught.value)


def test_a_map_that_cannot_be_inverted_is_shown():
    assert map_points(torch.ones(1, 2), SINGULAR).tolist() == [[6, 11]]
    for bad in (SINGULAR, 1e-3 * SINGULAR, SINGULAR * torch.nan, torch.zeros(2, 3)):
        with pytest.raises(ValueError, match=r"`geometry` to hold maps that can be inverted, but got \[\["):
            map_points(torch.ones(1, 2), torch.stack([torch.eye(2, 3), bad])[1:], inverse=True)
    tiny = 1e-3 * torch.eye(2, 3)  # a small scale is no fault
    torch.testing.assert_close(map_points(torch.ones(1, 2), tiny, inverse=True), torch.full((1, 2), 1000.0))
