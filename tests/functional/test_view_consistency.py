"""`view_consistency_loss` against plain loops, which reject wrong versions; invariants, gradient, errors."""

import itertools
import math

import pytest
import torch

from pml_supcon.functional import view_consistency_loss
from pml_supcon.views import map_points

B, V, K = 4, 3, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def maps(angles, scale=1.0, mirrored=False):
    """Return maps ``(..., 2, 3)`` that turn by angles in degrees, with random shifts."""
    turn = angles.deg2rad()
    rows = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], dim=-1).unflatten(-1, (2, 2)) * scale
    rows = rows * torch.tensor([-1.0, 1], dtype=rows.dtype) if mirrored else rows
    return torch.cat([rows, draw(*angles.shape, 2, 1, seed=9)], dim=-1)


ANGLES = 40 * draw(B, V, seed=3)
GENERAL = torch.cat([torch.eye(2, dtype=torch.float64) + 0.3 * draw(B, V, 2, 2, seed=4), draw(B, V, 2, 1)], dim=-1)
FLAT, SOLID = 10 * draw(B, V, K, 2, seed=1), 10 * draw(B, V, K, 3, seed=2)
WEIGHTS = draw(B, V, K, seed=5).abs()

MISTAKES = ("T in place of its inverse", "R transposed", "summed coordinates", "squared", "views not undone")
MISTAKES += ("pairs of the first view", "weights of one view")


def undone(map_, point, mistake):
    """Return ``A^-1 (u - t)``."""
    (a, b, x), (c, d, y) = map_
    u, v = point
    if mistake == "T in place of its inverse":
        return [a * u + b * v + x, c * u + d * v + y]
    if mistake == "views not undone":
        return [u, v]
    determinant = a * d - b * c
    return [(d * (u - x) - b * (v - y)) / determinant, (a * (v - y) - c * (u - x)) / determinant]


def turned(angle, point, mistake):
    """Turn ``(x, y)`` by an angle, and keep z."""
    x, y, z = point
    angle = 0 if mistake == "views not undone" else -angle if mistake == "R transposed" else angle
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [cos * x - sin * y, sin * x + cos * y, z]


def oracle(points, geometry, weights=None, mistake=None):
    """Compute the loss of every sample by plain loops; points in space take angles."""
    found = []
    for sample, known in zip(points.tolist(), geometry.tolist(), strict=True):
        terms = []
        for a, b in itertools.combinations(range(len(sample)), 2):
            if mistake == "pairs of the first view" and a:
                continue
            for k, (one, two) in enumerate(zip(sample[a], sample[b], strict=True)):
                if len(one) == 2:
                    one, two = undone(known[a], one, mistake), undone(known[b], two, mistake)
                else:
                    one = turned(known[b] - known[a], one, mistake)
                sizes = [abs(x - y) ** (2 if mistake == "squared" else 1) for x, y in zip(one, two, strict=True)]
                weight = 1.0
                if weights is not None:
                    w = weights[len(found)].tolist()
                    weight = w[a][k] * (1 if mistake == "weights of one view" else w[b][k])
                terms.append((sum(sizes) / (1 if mistake == "summed coordinates" else len(sizes)), weight))
        total = sum(weight for _, weight in terms)
        found.append(sum(size * weight for size, weight in terms) / total if total else 0.0)
    return torch.tensor(found, dtype=torch.float64)


CASES = {
    "in the image": (FLAT, GENERAL, None),
    "in the image, weighted": (FLAT, GENERAL, WEIGHTS),
    "in space": (SOLID, ANGLES, None),
    "in space, weighted": (SOLID, ANGLES, WEIGHTS),
    "two views": (FLAT[:, :2], GENERAL[:, :2], None),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_loops(case):
    points, geometry, weights = CASES[case]
    losses, valid = view_consistency_loss(points, geometry, weights=weights)
    torch.testing.assert_close(losses, oracle(points, geometry, weights), rtol=1e-10, atol=0)
    assert valid.all()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_version_differs(mistake):
    cases = ("in space, weighted",) if mistake == "R transposed" else ("in the image, weighted",)
    cases += ("in space, weighted",) if mistake not in ("T in place of its inverse", "R transposed") else ()
    for case in cases:
        points, geometry, weights = CASES[case]
        ours = view_consistency_loss(points, geometry, weights=weights).losses
        assert (oracle(points, geometry, weights, mistake) - ours).abs().max() > 0.1, case


def test_the_value_of_a_case_by_hand():
    # the second view shows the image shifted by (2, 1) and then doubled: u = 2 p + (4, 2)
    geometry = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]], [[2, 0, 4], [0, 2, 2]]]])
    points = torch.tensor([[[[3.0, 5]], [[12.0, 8]]]])  # undone (3, 5) and (4, 3): |(-1, 2)|, mean 1.5
    assert view_consistency_loss(points, geometry).losses.tolist() == [1.5]
    quarter, angles = torch.tensor([[[[1.0, 0, 7]], [[0.0, 4, 7]]]]), torch.tensor([[10.0, 100]])
    torch.testing.assert_close(view_consistency_loss(quarter, angles).losses, torch.tensor([1.0]))  # R (1, 0) = (0, 1)


def test_equivariant_predictions_have_no_loss():
    truth = 10 * draw(B, 1, K, 2, seed=6)
    assert view_consistency_loss(map_points(truth, GENERAL), GENERAL).losses.max() < 1e-12
    solid = torch.cat([truth, draw(B, 1, K, 1, seed=7)], dim=-1).expand(-1, V, -1, -1)
    for geometry, mirrored in ((ANGLES, False), (maps(ANGLES, 1.7), False), (maps(ANGLES, 0.4, True), True)):
        flat = maps(ANGLES, mirrored=mirrored)
        seen = map_points(solid[..., :2], torch.cat([flat[..., :2], 0 * flat[..., 2:]], dim=-1))
        seen = torch.cat([seen, solid[..., 2:]], dim=-1)
        assert view_consistency_loss(seen, geometry).losses.max() < 1e-12
    assert view_consistency_loss(FLAT, GENERAL).losses.min() > 1


def test_symmetric_in_the_views_and_unchanged_by_a_change_of_the_image():
    expected = view_consistency_loss(FLAT, GENERAL).losses
    order = [2, 0, 1]
    torch.testing.assert_close(view_consistency_loss(FLAT[:, order], GENERAL[:, order]).losses, expected)
    # a shift of all views moves their maps alike, and the undone points not at all
    shift = torch.tensor([[0.0, 0, 3], [0, 0, -8]], dtype=torch.float64)
    moved = view_consistency_loss(FLAT + shift[:, 2], GENERAL + shift).losses
    torch.testing.assert_close(moved, expected)
    # a shift of the image's origin moves all undone points alike
    origin = GENERAL + torch.cat([0 * GENERAL[..., :2], GENERAL[..., :2] @ shift[:, 2:]], dim=-1)
    torch.testing.assert_close(view_consistency_loss(FLAT, origin).losses, expected)
    # a turn common to all views is no rotation between them
    torch.testing.assert_close(
        view_consistency_loss(SOLID, ANGLES + 33).losses, view_consistency_loss(SOLID, ANGLES).losses
    )
    # in space the frame of the differences is the second view's
    half = view_consistency_loss(SOLID.flip(1)[:, :2], ANGLES.flip(1)[:, :2]).losses
    torch.testing.assert_close(half, oracle(SOLID.flip(1)[:, :2], ANGLES.flip(1)[:, :2]))


def test_maps_and_angles_give_one_rotation():
    expected = view_consistency_loss(SOLID, ANGLES).losses
    for scale in (1.0, 0.3):
        torch.testing.assert_close(view_consistency_loss(SOLID, maps(ANGLES, scale)).losses, expected)


def test_the_rotation_of_a_map_is_the_nearest_orthogonal_matrix():
    from pml_supcon.functional.view_consistency import rotations

    geometry = draw(50, 2, 2, 3, seed=8)
    u, _, v = torch.linalg.svd(geometry[..., :2])
    torch.testing.assert_close(rotations(geometry), u @ v)
    assert {1, -1} == set(torch.linalg.det(rotations(geometry)).round().int().flatten().tolist())


def test_weights_leave_out_points():
    seen = WEIGHTS > 0.5
    torch.testing.assert_close(
        view_consistency_loss(FLAT, GENERAL, weights=seen).losses, oracle(FLAT, GENERAL, seen.double())
    )
    hidden = torch.where(seen[..., None], FLAT, 1e3)
    torch.testing.assert_close(
        view_consistency_loss(hidden, GENERAL, weights=seen).losses,
        view_consistency_loss(FLAT, GENERAL, weights=seen).losses,
    )
    ones = view_consistency_loss(FLAT, GENERAL, weights=3 * torch.ones(B, V, K)).losses
    torch.testing.assert_close(ones, view_consistency_loss(FLAT, GENERAL).losses)


@pytest.mark.parametrize(("points", "geometry"), [(FLAT, GENERAL), (SOLID, ANGLES), (SOLID, GENERAL)])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_points_without_weight_need_not_be_finite(points, geometry, value):
    seen = WEIGHTS > 0.5
    results = []
    for hidden in (0.0, value):
        leaf = torch.where(seen[..., None], points, hidden).requires_grad_()
        losses = view_consistency_loss(leaf, geometry, weights=seen).losses
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        results.append((losses, gradient))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert results[1][1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-4, 300.0])  # their squares are below and above the range of float16
def test_weights_in_half_precision_are_multiplied_in_float32(dtype, scale):
    weights = (scale * (1 + WEIGHTS)).to(dtype)
    losses, valid = view_consistency_loss(FLAT.float(), GENERAL.float(), weights=weights)
    assert valid.all()
    torch.testing.assert_close(losses, oracle(FLAT, GENERAL, weights.double()).float(), rtol=1e-4, atol=0)


def test_a_sample_without_a_pair_is_not_valid():
    weights = torch.ones(B, V, K)
    weights[1], weights[2, 1:] = 0, 0
    leaf = FLAT.clone().requires_grad_()
    terms = view_consistency_loss(leaf, GENERAL, weights=weights)
    assert terms.valid.tolist() == [True, False, False, True]
    assert terms.losses[1:3].tolist() == [0, 0]
    torch.testing.assert_close(terms.mean(), view_consistency_loss(FLAT, GENERAL).losses[[0, 3]].mean())
    terms.mean().backward()
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[1:3].any()
    empty = view_consistency_loss(leaf[:0], GENERAL[:0]).mean()
    assert empty == 0
    empty.backward()


@pytest.mark.parametrize("case", CASES)
def test_gradient(case):
    points, geometry, weights = CASES[case]
    leaf = points.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: view_consistency_loss(x, geometry, weights=weights).losses, leaf)


def test_half_precision_is_computed_in_float32():
    for dtype, wide in (
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ):
        points = FLAT.to(dtype)
        losses = view_consistency_loss(points, GENERAL.float()).losses
        assert losses.dtype == wide
        torch.testing.assert_close(losses, oracle(points.double(), GENERAL).to(wide), rtol=1e-4, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = view_consistency_loss(FLAT.float(), GENERAL.float()).losses
    torch.testing.assert_close(inside, oracle(FLAT, GENERAL).float(), rtol=1e-4, atol=0)


BAD = {
    "missing": (
        (FLAT, None),
        ValueError,
        r"`geometry` of shape \(4, 3, 2, 3\), a map .* geometry is missing: got None",
    ),
    "square maps": ((FLAT, GENERAL[..., :2]), ValueError, r"`geometry` to have shape \(4, 3, 2, 3\), a map for each"),
    "of one view": ((FLAT, GENERAL[:, :2]), ValueError, r"but got \(4, 2, 2, 3\)"),
    "angles in the image": ((FLAT, ANGLES), ValueError, r"to have shape \(4, 3, 2, 3\), .* view, but got \(4, 3\)"),
    "angles of others": ((SOLID, ANGLES[:1]), ValueError, r", or \(4, 3\), angles, but got \(1, 3\)"),
    "whole maps": (
        (FLAT, GENERAL.long()),
        TypeError,
        "`geometry` to be floating point of 16 to 64 bits, but got torch.int64",
    ),
    "singular": ((FLAT, 0 * GENERAL), ValueError, r"`geometry` to hold maps that can be inverted, but got \[\["),
    "one view": (
        (FLAT[:, :1], GENERAL[:, :1]),
        ValueError,
        r"`points` to have at least 2 views, but got \(4, 1, 5, 2\)",
    ),
    "rows": ((FLAT[:, :, 0], GENERAL), ValueError, r"`points` to have shape \(B, V, K, 2\) .* but got \(4, 3, 2\)"),
    "no points": ((FLAT[:, :, :0], GENERAL), ValueError, r"`points` to have shape"),
    "whole points": ((FLAT.long(), GENERAL), TypeError, "`points` to be floating point of 16 to 64 bits"),
    "no tensor": (([1], GENERAL), TypeError, "`points` to be a torch.Tensor, but got list"),
    "weights of views": (
        (FLAT, GENERAL, WEIGHTS[..., 0]),
        ValueError,
        r"`weights` to have shape \(4, 3, 5\), one for each",
    ),
    "negative": ((FLAT, GENERAL, WEIGHTS - 1), ValueError, "`weights` to be finite and at least 0, but got -"),
    "not finite": ((FLAT, GENERAL, WEIGHTS / 0), ValueError, "`weights` to be finite and at least 0"),
    "counts": (
        (FLAT, GENERAL, WEIGHTS.long()),
        TypeError,
        "`weights` to be bool or floating point, but got torch.int64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name):
    (points, geometry, *weights), error, text = BAD[name]
    with pytest.raises(error, match=text) as caught:
        view_consistency_loss(points, geometry, weights=weights[0] if weights else None)
    assert "\n" not in str(caught.value)
