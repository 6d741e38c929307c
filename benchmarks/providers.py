"""The providers of the benchmarks: each creates a step (forward, then backward) of a case."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners
from torch import Tensor

from pml_supcon import losses
from pml_supcon.targets import LabelSets, SoftLabels

TEMPERATURE = 0.1
LABEL_FREE = "no labels"
DISTILLATION = "relation distillation"
MEMORY_ROWS = 1024  # of `QueueLoss` and `CrossBatchMemory`: the default of pytorch-metric-learning

#: The variants of the loss as options of our losses; the other libraries have only the first.
OPTIONS: dict[str, dict[str, Any]] = {
    "L_out": {},
    "L_in": {},
    "cap 4": {"positives_cap": 4, "num_views": 2},
    "one_positive": {"denominator": "one_positive"},
    "negatives": {"denominator": "negatives"},
    "first view": {"contrast_mode": "one", "num_views": 2},
    "temperature 0.01": {"temperature": 0.01},
    "ref_emb": {},
    LABEL_FREE: {"num_views": 2},
    "soft labels": {"target": SoftLabels()},
    "label sets": {"target": LabelSets()},
    DISTILLATION: {},
}

#: The miners, from the shortest list of pairs to the longest.
MINERS: dict[str, Callable[[], Any]] = {
    "batch hard": miners.BatchHardMiner,
    "hardest 1%": partial(miners.HDCMiner, filter_percentage=0.01),
    "hardest 10%": partial(miners.HDCMiner, filter_percentage=0.1),
}


#: Our losses with past rows; their counterpart is `CrossBatchMemory` of pytorch-metric-learning.
PAST_ROWS: dict[str, Callable[..., Any]] = {"queue": losses.QueueLoss, "memory": losses.CrossBatchMemory}


@dataclass(frozen=True)
class Case:
    """The input of a measurement; see `records.Record` for the fields."""

    N: int
    D: int = 128
    classes: int = 100
    views: int = 2
    dtype: str = "float32"
    option: str = "L_out"
    device: str = "cpu"

    def rows(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return embeddings `(N, D)` and labels `(N,)`, view-major, classes of equal size in random order."""
        generator = torch.Generator().manual_seed(seed)
        samples = self.N // self.views
        order = torch.randperm(samples, generator=generator)
        labels = (torch.arange(samples) % self.classes)[order].repeat(self.views)
        embeddings = torch.randn(len(labels), self.D, generator=generator)
        return embeddings.to(self.device, getattr(torch, self.dtype)), labels.to(self.device)

    def label_rows(self) -> Tensor:
        """Return rows of labels `(N, classes)`: shares of all classes, or sets of the class and 2% of the others."""
        _, labels = self.rows()
        own = F.one_hot(labels, self.classes)
        draw = torch.rand(own.shape, generator=torch.Generator().manual_seed(1)).to(self.device)
        return (draw + 9 * own) / 10 if self.option == "soft labels" else (draw < 0.02) | (own == 1)


class Step(NamedTuple):
    """A training step in two halves; where `backward` is None, `forward` does the whole work."""

    forward: Callable[[], Tensor]
    backward: Callable[[Tensor], object] | None


class SkippedError(Exception):
    """A provider that is not installed or lacks the option."""


def make_step(name: str, case: Case) -> Step:
    """Create the step of a provider, named "provider" or "provider/backend".

    Raises:
        SkippedError: If the provider is not installed or lacks the option.
        KeyError: If there is no such provider.
    """
    provider, _, backend = name.partition("/")
    return MAKERS[provider](case, backend)


def ours(case: Case, backend: str) -> Step:
    """Create a step of the losses of this package."""
    loss_class = losses.SupConLossIn if case.option == "L_in" else losses.SupConLossOut
    loss: Any = loss_class(**{"temperature": TEMPERATURE, "backend": backend or "auto", **OPTIONS.get(case.option, {})})
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    if case.option == LABEL_FREE:
        return of_loss(partial(loss, embeddings), [embeddings])
    if case.option == DISTILLATION:
        loss = losses.RelationDistillation()
        return of_loss(partial(loss, embeddings, case.rows(seed=1)[0]), [embeddings])
    if case.option in ("soft labels", "label sets"):
        return of_loss(partial(loss, embeddings, case.label_rows()), [embeddings])
    if case.option in PAST_ROWS:
        return with_past_rows(case, PAST_ROWS[case.option](loss, case.D, MEMORY_ROWS))
    if case.option == "ref_emb":  # like a memory of past embeddings: without a gradient
        references, reference_labels = case.rows(seed=1)
        return of_loss(partial(loss, embeddings, labels, None, references, reference_labels), [embeddings])
    return of_loss(partial(loss, embeddings, labels, mined_pairs(case, embeddings, labels)), [embeddings])


def pml(case: Case, backend: str) -> Step:
    """Create a step of `SupConLoss` of pytorch-metric-learning."""
    if case.option not in ("L_out", *MINERS, *PAST_ROWS):
        raise SkippedError(f"pytorch-metric-learning's SupConLoss has no option {case.option!r}")
    loss = pml_losses.SupConLoss(temperature=TEMPERATURE)
    if case.option in PAST_ROWS:
        return with_past_rows(case, pml_losses.CrossBatchMemory(loss, case.D, MEMORY_ROWS))
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    return of_loss(partial(loss, embeddings, labels, mined_pairs(case, embeddings, labels)), [embeddings])


def with_past_rows(case: Case, loss: Any) -> Step:
    """Create a step of a loss that keeps rows of past batches, and fill its memory."""
    past, past_labels = replace(case, N=MEMORY_ROWS).rows(seed=1)
    loss.to(case.device)(past, past_labels)
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    return of_loss(partial(loss, embeddings, labels), [embeddings])


def dense(case: Case, backend: str) -> Step:
    """Create a step of the dense cross entropy, "eager", or "compiled" by `torch.compile`."""
    if case.option != "L_out":
        raise SkippedError(f"the dense form has no option {case.option!r}")
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    loss: Any = dense_cross_entropy
    if backend == "compiled":
        loss = torch.compile(loss, fullgraph=True, dynamic=False)
    return of_loss(partial(loss, embeddings, labels), [embeddings])


def dense_cross_entropy(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Return L_out as a cross entropy over the `(N, N)` matrix, the mean over anchors with a positive."""
    z = F.normalize(embeddings, dim=1)
    s = z @ z.T / TEMPERATURE
    self_pairs = torch.eye(len(s), dtype=torch.bool, device=s.device)
    positives = (labels[:, None] == labels) & ~self_pairs
    number = positives.sum(dim=1)
    log_denominator = s.masked_fill(self_pairs, -math.inf).logsumexp(dim=1)
    terms = log_denominator - (s * positives).sum(dim=1) / number.clamp(min=1)
    return torch.where(number > 0, terms, 0).sum() / (number > 0).sum().clamp(min=1)


def lightly(case: Case, backend: str) -> Step:
    """Create a step of lightly's NT-Xent: two views, no labels."""
    if case.option != LABEL_FREE:
        raise SkippedError("lightly's NT-Xent takes no labels")
    nt_xent = installed("lightly", "lightly.loss").NTXentLoss
    one, other = (view.detach().requires_grad_() for view in case.rows()[0].chunk(2))
    return of_loss(partial(nt_xent(temperature=TEMPERATURE), one, other), [one, other])


def siglip_kernel(case: Case, backend: str) -> Step:
    """Create a step of siglip-kernel's multi-positive sigmoid loss: group ids are the labels, a row has itself too."""
    library = cuda_library("siglip-kernel", "siglip_kernel", case, "L_out")
    embeddings, labels = case.rows()
    embeddings.requires_grad_()
    scale = torch.tensor(1 / TEMPERATURE, device=case.device).log().requires_grad_()
    bias = torch.zeros((), device=case.device, requires_grad=True)

    def loss() -> Tensor:
        z = F.normalize(embeddings, dim=1)
        value: Tensor = library.fused_siglip_plus_loss(z, z, scale, bias, labels, labels, num_groups=case.classes)
        return value

    return of_loss(loss, [embeddings])


def memeff(case: Case, backend: str) -> Step:
    """Create a step of memeff's InfoNCE on N pairs without labels: as many similarities as L_out of N rows."""
    library = cuda_library("memeff", "memeff", case, LABEL_FREE)
    one, other = (case.rows(seed)[0].requires_grad_() for seed in range(2))
    loss = library.MemoryEfficientCLIPLoss(temperature=TEMPERATURE, stable=False)
    return of_loss(partial(loss, one, other), [one, other])


def cuda_library(name: str, module: str, case: Case, option: str) -> Any:
    """Import a library of CUDA kernels that has one option.

    Raises:
        SkippedError: If the device is another, the library has not the option, or it is not installed.
    """
    if case.device != "cuda":
        raise SkippedError(f"{name} needs a CUDA device")
    if case.option != option:
        raise SkippedError(f"{name} has no option {case.option!r}")
    return installed(name, module)


def installed(name: str, module: str) -> Any:
    """Import a module of another library; raise SkippedError where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise SkippedError(f"{name} is not installed ({error})") from error


def product(case: Case, side: str) -> Step:
    """Create a step of one product of square matrices in the dtype of the case: the rate of `torch.mm`."""
    one, other = (replace(case, N=int(side), D=int(side)).rows(seed)[0] for seed in range(2))
    out = torch.empty_like(one)
    return Step(partial(torch.mm, one, other, out=out), None)


def floor(case: Case, tile: str) -> Step:
    """Create a step of only the operations that the method cannot avoid, in square tiles.

    One `Z Z^T`, one `exp` per pair, one `W Z`, into preallocated buffers; no labels, sums, normalisation or loss.
    """
    z = F.normalize(case.rows()[0], dim=1) / math.sqrt(TEMPERATURE)
    size = min(int(tile), len(z))
    buffer, out = z.new_empty(size * size), torch.empty_like(z)

    @torch.no_grad()
    def run() -> Tensor:
        out.zero_()
        for anchors, sums in zip(z.split(size), out.split(size), strict=True):
            for rows in z.split(size):
                w = buffer[: len(anchors) * len(rows)].view(len(anchors), len(rows))
                torch.mm(anchors, rows.T, out=w)
                w.exp_()
                sums.addmm_(w, rows)
        return out

    return Step(run, None)


def of_loss(loss: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Step:
    """Create a step from a function that returns a scalar loss, and the tensors that need a gradient."""
    return Step(loss, lambda value: torch.autograd.grad(value, leaves))


def mined_pairs(case: Case, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, ...] | None:
    """Return the pairs of the case's miner, None where it has no miner."""
    if case.option not in MINERS:
        return None
    pairs: tuple[Tensor, ...] = MINERS[case.option]()(embeddings.detach(), labels)
    return pairs


MAKERS: dict[str, Callable[[Case, str], Step]] = {
    "pml_supcon": ours,
    "pml": pml,
    "dense": dense,
    "lightly": lightly,
    "siglip-kernel": siglip_kernel,
    "memeff": memeff,
    "floor": floor,
    "mm": product,
}
