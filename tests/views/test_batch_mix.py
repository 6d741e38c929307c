"""BatchMix: torchvision's mixup and CutMix for views, one share and partner a sample, seeded by the batch."""

import pytest
import torch
from helpers.pretend_gpu import GPU, pretend_gpu
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from pml_supcon.losses import SupConLossOut
from pml_supcon.samplers import MultiViewBatchSampler
from pml_supcon.targets import SoftLabels
from pml_supcon.views import BatchMix, MultiViewDataset, MultiViewTensorDataset, SeededDataset, split_views

KINDS = ("mixup", "cutmix", "both")
LABELS = torch.tensor([2, 0, 1, 2, 2])
VIEWS = torch.rand(5, 3, 2, 6, 9, generator=torch.Generator().manual_seed(0))
SETS = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]])


def mixed(kind, images=VIEWS, labels=LABELS, *, seed=0, num_classes=3, **options):
    torch.manual_seed(seed)
    return BatchMix(kind, num_classes=num_classes, **options)(images, labels)


def close(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def share_of(soft):
    """Return the share of the sample itself, from the labels of different classes."""
    return soft[1, LABELS[1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("kind", "theirs"), [("mixup", v2.MixUp), ("cutmix", v2.CutMix)])
def test_each_view_is_mixed_as_torchvision_mixes_it(kind, theirs, seed):
    images, soft = mixed(kind, seed=seed, alpha=0.7)
    assert (images.shape, images.dtype) == (VIEWS.shape, VIEWS.dtype)
    for view in range(3):
        torch.manual_seed(seed)
        expected = theirs(alpha=0.7, num_classes=3)(VIEWS[:, view], LABELS)
        close((images[:, view], soft), expected)
    close(mixed(kind, VIEWS[:, 0], seed=seed, alpha=0.7), (images[:, 0], soft))  # (B, C, H, W)


def test_mixup_by_its_formula():
    shares = set()
    for seed in range(8):
        images, soft = mixed("mixup", seed=seed)
        share = share_of(soft)
        partner = [4, 0, 1, 2, 3]
        close(images, share * VIEWS + (1 - share) * VIEWS[partner])
        one_hot = torch.nn.functional.one_hot(LABELS, 3)
        close(soft, share * one_hot + (1 - share) * one_hot[partner])
        shares.add(round(float(share), 6))
    assert len(shares) == 8
    assert all(0 < share < 1 for share in shares)


def test_shares_of_cutmix_are_the_areas_pasted_also_at_the_border():
    # every pixel of sample i is 10 i + v in view v: the sample and view that it comes from
    source = (10 * torch.arange(5).view(5, 1) + torch.arange(3)).view(5, 3, 1, 1, 1).expand(5, 3, 2, 16, 24)
    at_border = inside = 0
    for seed in range(40):
        images, soft = mixed("cutmix", source.to(torch.uint8), torch.arange(5), seed=seed, num_classes=5)
        own = images == source
        pasted = images == source.roll(1, 0)
        assert (own | pasted).all()
        assert (pasted == pasted[0, 0, 0]).all()  # one box for all samples, views and channels
        area = pasted[0, 0, 0].float().mean()
        for i in range(5):
            close(soft[i, i], 1 - area)
            close(soft[i, i - 1], area)
        close(soft.sum(1), torch.ones(5))
        box = pasted[0, 0, 0]
        touches = bool(box[0].any() | box[-1].any() | box[:, 0].any() | box[:, -1].any())
        at_border, inside = at_border + touches, inside + (not touches and area > 0)
    assert min(at_border, inside) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_classes_sum_to_one(kind):
    for dtype in (torch.int64, torch.uint8):
        _, soft = mixed(kind, labels=LABELS.to(dtype))
        assert (soft.dtype, soft.shape) == (torch.float32, (5, 3))
        close(soft.sum(1), torch.ones(5))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.float64])
def test_label_sets_and_soft_labels_are_weighted_rows(kind, dtype):
    rows = SETS.to(dtype) if not dtype.is_floating_point else (SETS + 0.5).to(dtype) / 3
    _, by_class = mixed(kind)
    _, soft = mixed(kind, labels=rows, num_classes=3 if dtype == torch.int32 else None)
    share = share_of(by_class)
    assert soft.dtype == (dtype if dtype.is_floating_point else torch.float32)
    close(soft, (share * rows + (1 - share) * rows.roll(1, 0)).to(soft.dtype))


def test_both_draws_one_of_the_two():
    found = {"mixup": 0, "cutmix": 0}
    for seed in range(20):
        images, _ = mixed("both", seed=seed)
        from_one = (images == VIEWS) | (images == VIEWS.roll(1, 0))
        found["cutmix" if from_one.all() else "mixup"] += 1
    assert min(found.values()) > 2


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_layouts_are_kept(kind):
    rows = VIEWS.transpose(0, 1).flatten(0, 1).clone()
    before, labels = rows.clone(), LABELS.clone()
    images = mixed(kind, split_views(rows, 3), labels)[0]  # not contiguous
    assert torch.equal(rows, before)
    assert torch.equal(labels, LABELS)
    close(images, mixed(kind)[0])
    half = mixed(kind, VIEWS.half())[0]
    assert half.dtype == torch.float16


def loader(kind, sampler, workers=0, *, in_memory=True):
    images, labels = torch.rand(22, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(22) % 3

    def noisy(image):
        return image + torch.rand(1)

    views = MultiViewTensorDataset(images, labels, noisy)
    if not in_memory:
        views = MultiViewDataset(list(zip(images, labels.tolist(), strict=True)), noisy)
    data = SeededDataset(views, batch_transform=BatchMix(kind, num_classes=3))
    context = {"multiprocessing_context": "fork"} if workers else {}
    return DataLoader(data, batch_sampler=sampler, num_workers=workers, collate_fn=data.collate, **context)


def sampler(**options):
    return MultiViewBatchSampler(torch.arange(22) % 3, batch_size=6, seed=5, **options)


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_depend_on_their_seed_alone(in_memory):
    whole = list(loader("both", sampler(), in_memory=in_memory))
    assert [(tuple(views.shape), tuple(soft.shape)) for views, soft in whole[::3]] == [
        ((6, 2, 1, 8, 8), (6, 3)),
        ((4, 2, 1, 8, 8), (4, 3)),
    ]
    assert len({float(soft.max(1).values.min()) for _, soft in whole}) > 2  # each batch draws its own share
    for workers in (0, 2):
        torch.manual_seed(workers)  # earlier draws do not matter
        again = list(loader("both", sampler(), workers, in_memory=in_memory))
        torch.testing.assert_close(again, whole, rtol=0, atol=0)
    later, broken = sampler(), sampler()
    taken = next(iter(loader("both", broken, in_memory=in_memory)))
    later.load_state_dict(broken.state_dict(batches_done=1))
    resumed = [taken, *loader("both", later, in_memory=in_memory)]
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def test_ranks_draw_apart():
    first, second = (next(iter(loader("mixup", sampler(num_replicas=2, rank=rank)))) for rank in (0, 1))
    assert first[0].shape == second[0].shape == (3, 2, 1, 8, 8)
    shares = [set(soft.flatten().tolist()) - {0.0, 1.0} for _, soft in (first, second)]
    assert all(shares)
    assert not shares[0] & shares[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_takes_the_soft_labels(kind):
    images, soft = mixed(kind)
    rows = torch.nn.functional.normalize(images.transpose(0, 1).flatten(0, 1).flatten(1).double(), dim=1)
    # out: l_i = -1/W_i sum_j w_ij [s_ij - log sum_(k != i) exp(s_ik)], w = <y_i, y_j>, view-major rows (15,)
    similarities = (rows @ rows.T / 0.5).fill_diagonal_(-torch.inf)
    shares = soft.double().repeat(3, 1)
    weights = (shares @ shares.T).fill_diagonal_(0)
    logs = similarities.log_softmax(1).fill_diagonal_(0)
    expected = -((weights * logs).sum(1) / weights.sum(1)).mean()
    loss = SupConLossOut(temperature=0.5, target=SoftLabels())
    torch.testing.assert_close(loss(images.flatten(2).double(), soft), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", [LABELS, SETS, SETS > 0, SETS.float()], ids=["classes", "int sets", "sets", "soft"])
def test_no_wait_for_a_gpu(monkeypatch, kind, form):
    mix = BatchMix(kind, num_classes=3)
    with pretend_gpu(monkeypatch):
        images = torch.empty(VIEWS.shape, device=GPU)
        labels = torch.empty(form.shape, dtype=form.dtype, device=GPU)
        for _ in range(4):
            views, soft = mix(images, labels)
            assert (views.shape, soft.shape) == (VIEWS.shape, (5, 3))
            assert {views.device, soft.device} == {GPU}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "mixups"}, ValueError, "`kind` to be one of .* but got 'mixups'; did you mean 'mixup'?"),
        ({"alpha": 0}, ValueError, "`alpha` to be between 0.01 and 1000.0, but got 0"),
        ({"alpha": "1"}, TypeError, "`alpha` to be a number, but got '1'"),
        ({"num_classes": 0}, ValueError, "`num_classes` to be at least 1, but got 0"),
        ({"num_classes": 2.0}, TypeError, "`num_classes` to be an integer, but got 2.0"),
    ],
)
def test_wrong_options(arguments, error, message):
    with pytest.raises(error, match=message):
        BatchMix(**{"kind": "mixup"} | arguments)


@pytest.mark.parametrize(
    ("kind", "images", "labels", "num_classes", "error", "message"),
    [
        ("mixup", VIEWS[0, 0], LABELS, 3, ValueError, r"`images` to have shape .* but got \(2, 6, 9\)"),
        ("mixup", VIEWS[:0], LABELS[:0], 3, ValueError, "not to be empty"),
        ("mixup", VIEWS.byte(), LABELS, 3, TypeError, "16 to 64 bits, as mixup needs, but got torch.uint8"),
        ("both", VIEWS.byte(), LABELS, 3, TypeError, "16 to 64 bits, as mixup needs, but got torch.uint8"),
        ("cutmix", VIEWS.int(), LABELS, 3, TypeError, "16 to 64 bits or uint8, but got torch.int32"),
        ("mixup", VIEWS.tolist(), LABELS, 3, TypeError, "`images` to be a torch.Tensor"),
        ("mixup", VIEWS, [0] * 5, 3, TypeError, "`labels` to be a torch.Tensor"),
        ("mixup", VIEWS, LABELS[:4], 3, ValueError, r"shape \(5,\) or \(5, 3\), .* but got \(4,\)"),
        ("mixup", VIEWS, LABELS.repeat(3), 3, ValueError, r"but got \(15,\)"),
        ("mixup", VIEWS, LABELS[0], 3, ValueError, r"but got \(\)"),
        ("mixup", VIEWS, SETS, 4, ValueError, r"shape \(5,\) or \(5, 4\), .* but got \(5, 3\)"),
        ("mixup", VIEWS, LABELS, None, ValueError, "`num_classes` for integer `labels`, but got None"),
        ("mixup", VIEWS, SETS, None, ValueError, "`num_classes` for integer `labels`, but got None"),
        ("mixup", VIEWS, LABELS, 2, ValueError, r"`labels` to be in \[0, 1\], but got 0 to 2"),
        ("cutmix", VIEWS, LABELS - 1, 3, ValueError, r"`labels` to be in \[0, 2\], but got -1 to 1"),
        ("cutmix", VIEWS, 2 * SETS, 3, ValueError, r"`labels` to be in \[0, 1\], but got 0 to 2"),
        ("mixup", VIEWS, LABELS.float(), 3, TypeError, r"`labels` to be .* but got torch.float32 \(5,\)"),
        ("mixup", VIEWS, LABELS > 0, 3, TypeError, r"`labels` to be .* but got torch.bool \(5,\)"),
        ("cutmix", VIEWS.to(torch.float8_e5m2), LABELS, 3, TypeError, "16 to 64 bits .* but got torch.float8_e5m2"),
        ("cutmix", VIEWS, SETS.to(torch.float8_e5m2), 3, TypeError, "16 to 64 bits .* but got torch.float8_e5m2"),
        ("mixup", VIEWS, SETS.cfloat(), 3, TypeError, r"`labels` to be .* but got torch.complex64 \(5, 3\)"),
    ],
)
def test_wrong_batches(kind, images, labels, num_classes, error, message):
    with pytest.raises(error, match=message) as caught:
        BatchMix(kind, num_classes=num_classes)(images, labels)
    assert "\n" not in str(caught.value)


def test_the_transform_of_batches_is_callable():
    with pytest.raises(TypeError, match="`batch_transform` to be callable, but got 3"):
        SeededDataset([(VIEWS[0], 0)], batch_transform=3)
