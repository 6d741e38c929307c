"""Targets in `group_supcon_loss`, in real processes (gloo), one without rows: equal to one process."""

import pytest
import torch
import torch.distributed as dist
from helpers.process_groups import run_processes
from helpers.supcon_batches import random_rows

from pml_supcon.functional import group_supcon_loss, supcon_loss
from pml_supcon.functional.supcon.tiled import layout
from pml_supcon.targets import Hierarchy, Kernel, LabelSets, SoftLabels, Target

SHARDS = {2: [4, 7], 3: [5, 0, 6]}
SAMPLES, VIEWS, WIDTH = 11, 2, 4


class Signed(Target):
    """A user's own target, with an attribute whose `repr` differs between processes."""

    def __init__(self):
        self.scale, self.other = 2.0, object()

    def weights(self, anchors, rows):
        return (self.scale * anchors[:, None] - rows).clamp(min=0)


def batch():
    """Return embeddings `(B, V, D)`, references `(M, D)`, and labels of both by target."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    embeddings = random_rows(VIEWS * SAMPLES, WIDTH).view(VIEWS, SAMPLES, WIDTH).transpose(0, 1)
    references = random_rows(9, WIDTH)

    def sides(draw):
        return draw(SAMPLES), draw(9)

    sets = sides(lambda n: torch.rand(n, 5, generator=generator) < 0.4)
    soft = sides(lambda n: torch.rand(n, 5, generator=generator) * (torch.rand(n, 5, generator=generator) < 0.5) + 0.01)
    tree = sides(lambda n: torch.randint(0, 6, (n, 1), generator=generator))
    numbers = sides(lambda n: torch.randn(n, generator=generator, dtype=torch.float64))
    labels = {
        LabelSets(): sets,
        LabelSets("overlap", 0.5, "count"): sets,
        LabelSets("any"): tuple(part.to(torch.uint8) for part in sets),
        SoftLabels(): soft,
        SoftLabels("count"): soft,
        Hierarchy([0.5, 2]): tuple(torch.cat([part // 3, part], dim=1) for part in tree),
        Kernel(0.7): numbers,
        Signed(): numbers,
    }
    return embeddings, references, labels


OPTIONS = [
    {},
    {"summation": "in"},
    {"denominator": "one_positive", "margin": 0.25},
    {"summation": "in", "denominator": "negatives"},
    {"contrast_mode": "one"},
    {"temperature": 0.001, "contrast_mode": "one", "summation": "in"},
    {"backend": "reference"},
]
FORMS = ("sharded", "replicated", "references")


def cases():
    """Yield the target, its labels and the options of each case."""
    embeddings, references, labels = batch()
    for target, (own, theirs) in labels.items():
        for options in OPTIONS:
            if target.refusal(options.get("denominator", "all")) is not None:
                continue
            for form in FORMS if options in OPTIONS[:2] else FORMS[:1]:
                if form == "references":
                    options = {**options, "ref_emb": references, "ref_labels": theirs}
                yield form, embeddings, own, {"temperature": 0.3, "target": target, **options}


def upstream(number):
    """Return an upstream gradient of each anchor."""
    return torch.linspace(-1, 2, number, dtype=torch.float64)


def work(rank, sizes):
    layout.TILE = 3
    mine = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    results = []
    for form, embeddings, labels, options in cases():
        if form != "replicated":
            embeddings, labels = embeddings[mine], labels[mine]
        if form == "references":
            # references of uneven numbers: 3, and the others on the last process
            last = rank == len(sizes) - 1
            others = slice(0, 3) if rank == 0 else slice(3, None) if last else slice(0, 0)
            options |= {name: options[name][others] for name in ("ref_emb", "ref_labels")}
        rows = embeddings.detach().requires_grad_()
        terms = group_supcon_loss(rows, labels, group=dist.group.WORLD, replicated=form == "replicated", **options)
        terms.losses.backward(upstream(len(terms.losses)))
        results.append((terms.losses.detach(), terms.valid, rows.grad))
    return results


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_equals_one_process(processes, tmp_path):
    sizes = SHARDS[processes]
    results = run_processes(work, processes, tmp_path, sizes)
    for number, (form, embeddings, labels, options) in enumerate(cases()):
        rows = embeddings.detach().requires_grad_()
        right = supcon_loss(rows, labels, **options | {"backend": "reference"})
        right.losses.backward(upstream(len(right.losses)))
        parts = [result[number] for result in results]
        for losses, valid, _ in parts:
            torch.testing.assert_close(losses, right.losses.detach(), rtol=1e-9, atol=1e-9)
            assert torch.equal(valid, right.valid)
        # the gradients are those of the sum over processes, of which each has its own rows, or its part of all rows
        gradients = [gradient for _, _, gradient in parts]
        whole = sum(gradients) if form == "replicated" else torch.cat(gradients)
        torch.testing.assert_close(whole / processes, rows.grad, rtol=1e-9, atol=1e-9)


def disagree(rank):
    sets = torch.rand(4, 5) < 0.5
    messages = {}
    for name, labels, target in [
        ("width", sets[:, : 5 - rank], LabelSets()),
        ("dtype", sets if rank else sets.double(), LabelSets()),
        ("settings", sets, LabelSets(threshold=0.5 * rank)),
        ("class", sets, LabelSets() if rank else LabelSets("any")),
        ("one wrong", sets if rank else 2 * sets.int(), LabelSets()),
        ("not nested together", torch.tensor([[rank, 7]]).repeat(4, 1), Hierarchy([1, 1])),
    ]:
        with pytest.raises(ValueError) as caught:
            group_supcon_loss(torch.randn(4, 3), labels, group=dist.group.WORLD, target=target)
        messages[name] = str(caught.value)
    return messages


def test_processes_that_disagree_raise_on_all(tmp_path):
    first, second = run_processes(disagree, 2, tmp_path)
    assert first == second
    assert "labels: rows (5,) torch.int64 on rank 0, rows (4,) torch.int64 on rank 1" in first["width"]
    assert "labels: rows (5,) torch.float64 on rank 0, rows (5,) torch.int64 on rank 1" in first["dtype"]
    assert "threshold=0.0, normalization='sum') on rank 0" in first["settings"]
    assert "similarity='any'" in first["class"]
    assert "rank 0: Expected argument `labels` to hold 0 and 1 with LabelSets" in first["one wrong"]
    assert "label 7 has 0 and 1" in first["not nested together"]
