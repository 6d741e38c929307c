"""The classifiers of the methods, and the accuracies among all classes so far and among the classes of a task."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from pml_supcon.data.streams import TaskStream
from pml_supcon.metrics import fit_linear_probe, probe_logits
from pml_supcon.training.continual.scores import accuracies, balanced_weights, class_means, linear_classifier
from pml_supcon.training.scoring import Embedded


def stream_of(tasks, classes=4, scenario="class"):
    stream = object.__new__(TaskStream)  # without images
    for name, value in {"data": SimpleNamespace(num_classes=classes), "tasks": tasks, "scenario": scenario}.items():
        object.__setattr__(stream, name, value)
    return stream


def embedded(features, labels):
    features = torch.as_tensor(features, dtype=torch.float32)
    return Embedded(features, F.normalize(features), torch.as_tensor(labels))


def corners(labels, spread=0.3, seed=0):
    """Return features (n, 4) around the unit vector of each label."""
    noise = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(seed))
    return torch.eye(4)[torch.as_tensor(labels)] + spread * noise


def test_weights_equal_copies_of_the_rows_of_rare_labels():
    labels = torch.tensor([4] * 6 + [0] * 3 + [9])
    weights = balanced_weights(labels)
    assert weights.tolist() == [1] * 6 + [2] * 3 + [6]
    features = corners((labels % 4).tolist(), spread=1.0)
    weighted = linear_classifier(embedded(features, labels), stream_of((tuple(range(10)),), classes=10))
    copied = fit_linear_probe(*(x.repeat_interleave(weights.long(), dim=0) for x in (features, labels)))
    assert torch.allclose(
        weighted(features)[:, [0, 4, 9]].float(), torch.from_numpy(probe_logits(copied, features)).float(), atol=1e-2
    )
    unweighted = torch.from_numpy(probe_logits(fit_linear_probe(features, labels), features)).double()
    assert (weighted(features)[:, [0, 4, 9]] - unweighted).abs().max() > 0.1


def test_accuracies_among_all_classes_and_those_of_the_task():
    stream = stream_of(((0, 1), (2, 3)))
    tests = [embedded(torch.eye(4)[[0, 1]], [0, 1]), embedded(torch.eye(4)[[2, 3]], [2, 3])]
    scores = torch.tensor([[3.0, 0, 4, 0], [0, 3, 0, 0], [0, 5, 1, 0], [0, 0, 1, 0]])  # 2 for 0, 1, 1 for 2, 2 for 3
    classify = lambda features: scores[features.argmax(1)]  # noqa: E731
    assert accuracies(tests, classify, stream, [0, 1]) == ([0.5, 0.0], [1.0, 0.5])
    assert accuracies(tests[:1], classify, stream, [0]) == ([1.0, None], [1.0, None])  # class 2 does not compete yet
    assert accuracies(tests[1:], classify, stream, [1]) == ([None, 0.5], [None, 0.5])


@pytest.mark.parametrize("build", [linear_classifier, class_means])
def test_classifiers_of_frozen_features_find_the_classes(build):
    labels = [0] * 50 + [1] * 3 + [3] * 50  # of which one has few samples, and another none
    classify = build(embedded(corners(labels), labels), stream_of(((0, 1), (2, 3))))
    wanted = torch.tensor([0, 1, 3] * 20)
    scores = classify(corners(wanted.tolist(), seed=1))
    assert scores.shape == (60, 4)
    assert scores.isfinite().all()
    assert (scores[:, [0, 1, 3]].argmax(1) == torch.tensor([0, 1, 2] * 20)).float().mean() > 0.9


def test_rare_classes_weigh_as_much_in_the_linear_classifier():
    """On overlapping classes an unbalanced classifier would nearly always predict the frequent one."""
    labels = [0] * 400 + [1] * 8
    classify = linear_classifier(embedded(corners(labels, spread=1.5), labels), stream_of(((0, 1),)))
    predicted = classify(corners([0, 1] * 200, spread=1.5, seed=1))[:, :2].argmax(1)
    assert 0.25 < predicted.float().mean() < 0.75


def test_class_means_are_the_nearest_of_normalised_means():
    labels = torch.tensor([0, 0, 1, 1, 1])
    features = corners(labels.tolist(), spread=1.0)
    scores = class_means(embedded(features, labels), stream_of(((0, 1),)))(features)
    for label in (0, 1):
        mean = sum(F.normalize(row, dim=0) for row in features[labels == label])
        for row, score in zip(features, scores, strict=True):
            assert score[label].item() == pytest.approx(F.cosine_similarity(row, mean, dim=0).item(), abs=1e-5)


def test_a_class_in_two_domains_has_its_nearest_mean():
    stream = stream_of(((0, 1), (0, 1)), classes=2, scenario="domain")
    train = embedded(torch.eye(4), [0, 1, 2, 3])  # 2 and 3 are the classes 0 and 1 of the second domain
    assert class_means(train, stream)(torch.eye(4)).argmax(1).tolist() == [0, 1, 0, 1]
    assert linear_classifier(train, stream)(torch.eye(4)).argmax(1).tolist() == [0, 1, 0, 1]
