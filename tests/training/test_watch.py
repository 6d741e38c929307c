"""What is watched: alignment and uniformity against loops, and the stopwatch."""

import math

import pytest
import torch

from pml_supcon.training import monitoring as watch
from pml_supcon.training.monitoring import EpochTimer, alignment, alignment_and_uniformity, uniformity


def unit_rows(embeddings):
    return [[x / math.hypot(*row) for x in row] for row in embeddings.tolist()]


def squared_distances(embeddings, labels=None):
    """Of all pairs, or of those with one label, by loops."""
    rows = unit_rows(embeddings)
    return [
        sum((x - y) ** 2 for x, y in zip(rows[i], rows[j], strict=True))
        for i in range(len(rows))
        for j in range(i)
        if labels is None or labels[i] == labels[j]
    ]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(("number", "width", "classes"), [(2, 1, 1), (7, 3, 2), (24, 16, 5), (40, 2, 3)])
def test_against_loops(number, width, classes):
    embeddings, labels = torch.randn(number, width) * 5, torch.arange(number) % classes
    wanted = mean(squared_distances(embeddings, labels.tolist()))
    assert float(alignment(embeddings, labels)) == pytest.approx(wanted, abs=1e-5)
    wanted = math.log(mean([math.exp(-2 * distance) for distance in squared_distances(embeddings)]))
    assert float(uniformity(embeddings)) == pytest.approx(wanted, abs=1e-5)


def test_bounds():
    same, opposite = torch.ones(4, 3), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    assert float(alignment(same, torch.zeros(4))) == pytest.approx(0, abs=1e-6)
    assert float(uniformity(same)) == pytest.approx(0, abs=1e-6)
    assert float(alignment(opposite, torch.zeros(2))) == pytest.approx(4)
    assert float(uniformity(opposite)) == pytest.approx(-8)


def test_half_precision_is_computed_in_full():
    embeddings, labels = torch.randn(16, 8).bfloat16(), torch.arange(16) % 4
    assert float(alignment(embeddings, labels)) == pytest.approx(float(alignment(embeddings.float(), labels)))
    assert uniformity(embeddings).dtype == torch.float32


def test_what_does_not_exist_is_left_out():
    assert alignment_and_uniformity(None, torch.arange(3)) == {}
    assert alignment_and_uniformity(torch.randn(1, 1, 4), torch.zeros(1)) == {}
    assert set(alignment_and_uniformity(torch.randn(3, 1, 4), torch.arange(3))) == {"uniformity"}
    assert alignment(torch.randn(3, 4), torch.arange(3)).isnan()
    assert uniformity(torch.randn(1, 4)).isnan()


def test_views_of_a_sample_share_its_label():
    outputs, labels = torch.randn(5, 3, 4, requires_grad=True), torch.tensor([0, 1, 0, 2, 2])
    seen = alignment_and_uniformity(outputs, labels)
    rows = outputs.detach().transpose(0, 1).flatten(0, 1)  # view by view: the order does not matter
    names = labels.repeat(3).tolist()
    assert seen["alignment"] == pytest.approx(mean(squared_distances(rows, names)), abs=1e-5)
    logarithm = math.log(mean([math.exp(-2 * distance) for distance in squared_distances(rows)]))
    assert seen["uniformity"] == pytest.approx(logarithm, abs=1e-5)


def test_of_a_large_batch_some_whole_samples_are_seen(monkeypatch):
    monkeypatch.setattr(watch, "ROWS", 7)
    outputs, labels = torch.randn(9, 2, 4), torch.arange(9) % 2
    assert alignment_and_uniformity(outputs, labels) == alignment_and_uniformity(outputs[:3], labels[:3])
    assert set(alignment_and_uniformity(torch.randn(4, 8, 4), torch.arange(4))) == {
        "alignment",
        "uniformity",
    }


class Clock:
    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now


def test_stopwatch_tells_waiting_from_working(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(watch, "time", clock)

    def slow():
        for batch in "abc":
            clock.now += 2
            yield batch
        clock.now += 1  # the end is waited for too

    stopwatch, came = EpochTimer(), []
    for batch in stopwatch.timed(slow()):
        came.append(batch)
        clock.now += 5
    assert came == ["a", "b", "c"]
    assert stopwatch.throughput(44) == {"images_per_second": pytest.approx(2), "data_wait": pytest.approx(7 / 22)}
