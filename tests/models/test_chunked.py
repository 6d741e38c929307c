"""Cached gradients beside the gradient of the whole batch, in one process and in two."""

import copy

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import run_processes
from timm.layers import BatchNormAct2d, DropPath, SyncBatchNormAct
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from pml_supcon.losses import GlobalBatchLoss, SupConLossOut
from pml_supcon.models import ChunkedEncoder

B, V, SIDE = 11, 2, 6
LABELS = torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 2, 2, 1])
SUPCON = SupConLossOut()


class ViewEncoder(nn.Module):
    """An encoder of images with views (B, V, 3, H, W) to embeddings (B, V, 5)."""

    def __init__(self, norm=None, dropout=0.0):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4) if norm is None else norm
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), self.norm, nn.ReLU(), nn.Dropout(dropout), DropPath(dropout), nn.Flatten()
        )
        self.last = nn.Linear(4 * (SIDE - 2) ** 2, 5)
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return self.last(self.layers(images.flatten(0, 1))).unflatten(0, images.shape[:2])


def images(dtype=torch.float32):
    return torch.randn(B, V, 3, SIDE, SIDE, dtype=dtype, generator=torch.Generator().manual_seed(1))


def step(model, x, loss=SUPCON, *, seed=3, labels=LABELS):
    """Return the loss and the gradient of all parameters, and of `x` where it requires one, in one row."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    value = loss(model(x), labels)
    value.backward()
    leaves = [*model.parameters(), *([x] if x.requires_grad else [])]
    return value.detach(), torch.cat([leaf.grad.flatten() for leaf in leaves])


class KeptChunks(ChunkedEncoder):
    """An encoder of the same chunks that keeps all their activations."""

    def forward(self, x):
        return torch.cat([self.encoder(chunk) for chunk in x.tensor_split(-(-len(x) // self.chunk_size))])


def error(found, expected):
    assert expected.norm() > 1e-3
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("chunk_size", [1, 4, 99])
def test_equals_the_whole_batch(chunk_size, dtype, tolerance):
    encoder = ViewEncoder().to(dtype)
    value, gradient = step(encoder, images(dtype).requires_grad_())
    chunked = ChunkedEncoder(encoder, chunk_size)
    ours, our_gradient = step(chunked, images(dtype).requires_grad_())
    torch.testing.assert_close(ours, value, rtol=tolerance, atol=0)
    assert error(our_gradient, gradient) < tolerance


@pytest.mark.parametrize(("chunk_size", "sizes"), [(5, [4, 4, 3]), (10, [6, 5]), (11, [11])])
def test_chunks_are_few_and_nearly_equal(chunk_size, sizes):
    chunked = ChunkedEncoder(ViewEncoder(), chunk_size)
    step(chunked, images())
    assert chunked.encoder.sizes == sizes + sizes[::-1]  # in the backward pass the last comes first


def test_dropout_and_stochastic_depth_draw_the_same_masks_again():
    encoder, x = ViewEncoder(dropout=0.4).double(), images(torch.float64)
    value, gradient = step(KeptChunks(encoder, 4), x)
    after = torch.rand(3)
    chunked = ChunkedEncoder(encoder, 4)
    ours, our_gradient = step(chunked, x)
    assert torch.equal(torch.rand(3), after)  # the second pass drew nothing from the global generator
    assert torch.equal(ours, value)
    assert error(our_gradient, gradient) < 1e-12
    assert error(step(chunked, x, seed=4)[1], gradient) > 0.1  # the masks matter


NORMS = {
    "batch": lambda: nn.BatchNorm2d(4),
    "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
    "timm": lambda: BatchNormAct2d(4),
    "timm sync": lambda: SyncBatchNormAct(4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "not tracked": lambda: nn.BatchNorm2d(4, track_running_stats=False),
    "frozen": lambda: nn.BatchNorm2d(4).eval(),
}


@pytest.mark.parametrize("name", NORMS)
def test_running_statistics_count_each_chunk_once(name):
    encoder, x = ViewEncoder(NORMS[name](), dropout=0.2).double(), images(torch.float64)
    plain = copy.deepcopy(encoder)
    buffers = dict(encoder.named_buffers())
    before = copy.deepcopy(buffers)
    for seed in range(2):
        value, gradient = step(KeptChunks(plain, 4), x, seed=seed)
        ours, our_gradient = step(ChunkedEncoder(encoder, 4), x, seed=seed)
        assert torch.equal(ours, value)
        assert error(our_gradient, gradient) < 1e-12
    expected = dict(plain.named_buffers())
    assert all(buffer is buffers[key] for key, buffer in encoder.named_buffers())  # DDP and compilers hold them
    assert buffers.keys() == expected.keys()
    assert all(torch.equal(buffers[key], expected[key]) for key in buffers)
    moved = {key.rpartition(".")[2] for key in buffers if not torch.equal(buffers[key], before[key])}
    tracked = {"running_mean", "running_var", "num_batches_tracked"}
    quiet = {"not tracked": tracked, "frozen": tracked, "instance": {"num_batches_tracked"}}
    assert moved == tracked - quiet.get(name, set())


def test_buffers_are_back_after_an_error_in_the_second_pass():
    encoder = ViewEncoder(nn.BatchNorm2d(4))
    buffers = dict(encoder.named_buffers())
    loss = SUPCON(ChunkedEncoder(encoder, 4)(images()), LABELS)

    def fails(*_):
        assert encoder.norm.running_mean is not buffers["norm.running_mean"]
        raise RuntimeError("failed hook")

    encoder.norm.register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="failed hook"):
        loss.backward()
    assert all(buffer is buffers[key] for key, buffer in encoder.named_buffers())


def test_autocast_is_replayed_and_gradients_are_not_summed_in_half_precision():
    encoder = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 8))
    dtypes = []
    encoder[0].register_forward_hook(lambda _module, _inputs, output: dtypes.append(output.dtype))
    x, target = torch.randn(1024, 16), torch.randn(1024, 8)

    def loss(embeddings, labels):
        return (embeddings.float() - labels).square().mean()

    def mixed(model):
        def forward(rows):
            with torch.autocast("cpu", torch.bfloat16):
                return model(rows)

        forward.zero_grad, forward.parameters = model.zero_grad, model.parameters
        return step(forward, x, loss, labels=target)

    exact = step(KeptChunks(encoder, 8), x, loss, labels=target)[1]
    dtypes.clear()
    ours = mixed(ChunkedEncoder(encoder, 8))[1]
    assert dtypes == [torch.bfloat16] * 256  # 128 chunks, twice
    assert torch.is_autocast_cache_enabled()
    plain = mixed(KeptChunks(encoder, 8))[1]  # all chunks share one cast of the weights
    assert error(ours, exact) < min(4e-3, error(plain, exact) / 2)


def test_without_gradients_or_in_evaluation_mode_each_chunk_passes_once():
    chunked = ChunkedEncoder(ViewEncoder(dropout=0.5), 4)
    with torch.no_grad():
        assert not chunked(images()).requires_grad
    gradient = step(chunked.eval(), images())[1]
    assert chunked.encoder.sizes == [4, 4, 3] * 2
    assert error(gradient, step(chunked.encoder, images())[1]) < 1e-6


def peak_bytes(model, x):
    """Return the largest number of bytes allocated during a step beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        model(x).square().sum().backward()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = peak = 0
    for event in events:
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def test_activations_of_one_chunk_are_held_at_a_time():
    deep = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.GELU())]
    encoder, x = nn.Sequential(nn.Linear(8, 64), *deep, nn.Linear(64, 4)), torch.randn(4096, 8)
    peak_bytes(encoder, x)  # allocates the gradients
    whole, chunked = peak_bytes(encoder, x), peak_bytes(ChunkedEncoder(encoder, 128), x)
    assert whole > 4096 * 64 * 12 * 4  # twelve layers' activations
    assert chunked < whole / 10


@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d(4)])
def test_an_empty_batch_has_all_parameters_in_its_graph(norm):
    chunked = ChunkedEncoder(ViewEncoder(norm), 4)
    buffers = copy.deepcopy(dict(chunked.named_buffers()))
    embeddings = chunked(images()[:0])
    assert embeddings.shape == (0, V, 5)
    embeddings.sum().backward()
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in chunked.parameters())
    assert chunked.encoder.sizes == [0]
    assert all(torch.equal(buffer, buffers[key]) for key, buffer in chunked.named_buffers())


def test_the_encoder_is_saved_by_itself():
    encoder = ViewEncoder()
    chunked = ChunkedEncoder(encoder, 4)
    assert chunked.encoder is encoder
    assert {f"encoder.{key}" for key in encoder.state_dict()} == set(chunked.state_dict())
    assert "chunk_size=4" in repr(chunked)


def test_bad_arguments():
    with pytest.raises(ValueError, match="`chunk_size` to be at least 1, but got 0"):
        ChunkedEncoder(ViewEncoder(), 0)
    with pytest.raises(TypeError, match=r"`encoder` to be a torch\.nn\.Module, but got function"):
        ChunkedEncoder(images, 4)
    with pytest.raises(ValueError, match=r"`x` to have shape \(B, \.\.\.\), but got a tensor without"):
        ChunkedEncoder(nn.Identity(), 4)(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"for each of the 4 of its input \(4, 2, 3\), but got \(8, 3\)"):
        ChunkedEncoder(nn.Flatten(0, 1), 4)(torch.zeros(8, 2, 3))
    with pytest.raises(TypeError, match="encoder to return a tensor, but got tuple"):
        ChunkedEncoder(nn.LSTM(2, 2), 4)(torch.zeros(8, 2))


def gradient_and_reductions(rank, cut):
    """Return the gradient of the batch split at `cut`, and the sizes of the reduced gradients in two steps."""
    own = slice(0, cut) if rank == 0 else slice(cut, B)
    torch.manual_seed(5)
    model = DistributedDataParallel(ChunkedEncoder(ViewEncoder().double(), 3))
    reductions = []

    def counted(group, bucket):
        reductions.append(bucket.buffer().numel())
        summed = dist.all_reduce(bucket.buffer() / 2, group=group, async_op=True).get_future()
        return summed.then(lambda future: future.value()[0])

    model.register_comm_hook(dist.group.WORLD, counted)
    for _ in range(2):  # DDP rebuilds its buckets after the first
        gradient = step(model, images(torch.float64)[own], GlobalBatchLoss(SUPCON), labels=LABELS[own])[1]
    return gradient, reductions


def results_of(rank):
    return {cut: gradient_and_reductions(rank, cut) for cut in (6, 2, 0)}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Return the results of two processes."""
    return run_processes(results_of, 2, tmp_path_factory.mktemp("gloo"))


@pytest.mark.parametrize("cut", [6, 2, 0])  # rows of the first process: as many chunks as the other, fewer, none
def test_two_processes_have_the_gradient_of_one_and_reduce_once(results, cut):
    torch.manual_seed(5)
    expected = step(ViewEncoder().double(), images(torch.float64))[1]
    for gradient, reductions in (result[cut] for result in results):
        assert error(gradient, expected) < 1e-12
        assert reductions == [len(expected)] * 2
