"""Synthetic evaluations for the tests of the report, with all sections."""

from dataclasses import replace

import numpy as np

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.evaluation.results import DataSummary, Evaluation
from pml_supcon.evaluation.sections import Sections
from pml_supcon.evaluation.sections.calibration import CalibrationSection
from pml_supcon.evaluation.sections.corruption import CorruptionSection
from pml_supcon.evaluation.sections.embedding_map import MapSection
from pml_supcon.evaluation.sections.gallery import GalleryQuery, Neighbour
from pml_supcon.evaluation.sections.hard_mining import HardMiningSection
from pml_supcon.evaluation.sections.linear_probe import AugmentedProbe, LinearProbeSection
from pml_supcon.evaluation.sections.projection_head import ProjectionHeadSection
from pml_supcon.evaluation.sections.retrieval import RetrievalSection
from pml_supcon.evaluation.sections.transfer import TransferResult

ANIMALS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOSTILE = "<script>window.broken = 1</script>"
OTHER = {"title": "cross_entropy", "shift": 0.03, "seed": 1}
ODD_NAMES = ("", HOSTILE, "🦆 mallard", "x" * 200, "$a_1$ & 'b' \"c\"", "ordinary")
MANY_NAMES = [f"n{number:08d} synset" for number in range(1000)]
SIZE = {"train": 50_000, "test": 10_000}


def reliability(rng, over):
    bins = []
    for low in (np.arange(15) / 15).tolist():
        count = int(1000 * low**3) + (int(rng.integers(5)) if low > 0.2 else 0)
        middle = low + 1 / 30
        mean = {"confidence": middle, "accuracy": max(0.0, middle - over * middle * (1 - middle))}
        bins.append({"low": low, "high": low + 1 / 15, "count": count} | (mean if count else dict.fromkeys(mean)))
    return bins


def severities(start, drop):
    return [{"severity": s, "accuracy": start - drop * s, "ece": 0.02 + drop * s / 2} for s in range(1, 6)]


def hard_mining_section():
    hardness = (np.arange(20) + 0.5) / 20
    pairs, losses = np.exp(-8 * hardness), {}
    for name, power in (("supcon_out", 1.0), ("supcon_in", 0.5), ("triplet", 0.1)):
        weight = pairs * hardness**power / (pairs * hardness**power).sum()
        rows = zip(hardness.tolist(), weight.tolist(), pairs, strict=True)
        bins = [{"hardness": h, "share": share, "count": int(1e6 * count)} for h, share, count in rows]
        summary = {"anchors": 2560, "mean_hardness": 0.21, "gradient_hardness": 0.2 + 0.1 * power}
        losses[name] = {"positives": bins, "negatives": bins, "summary": {"positives": summary, "negatives": summary}}
    return HardMiningSection(losses=losses, of="head", temperature=0.1, margin=0.05, batches=10, batch_size=256)


def gallery_section(rng, classes, queries, images):
    rows = []
    for row in range(min(queries, images)):
        label, near = int(rng.integers(len(classes))), []
        for place in range(8):
            other = int(rng.integers(len(classes))) if rng.random() < 0.8 else label
            options = {"label": classes[other], "right": other == label, "similarity": 0.95 - 0.02 * place}
            near.append(Neighbour(reference=int(rng.integers(images)), **options))
        rows.append(GalleryQuery(query=row * 3 % images, label=classes[label], score=row / 100, neighbours=near))
    return rows


def map_section(rng, classes, points, images):
    labels = np.sort(rng.integers(len(classes), size=points))
    angle = 2 * np.pi * labels / len(classes)
    centres = 4 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    flat = {name: (centres + rng.normal(size=(points, 2))).round(4).tolist() for name in ("pca", "tsne")}
    return MapSection(methods=flat, indices=(np.arange(points) % images).tolist(), labels=labels.tolist())


def evaluation(
    *, title="supcon_out, seed 0", classes=ANIMALS, points=400, images=400, queries=20, shift=0.0, seed=0, pictures=()
):
    """Return an evaluation; `shift` makes all its scores worse, and `pictures` are the images of both splits."""
    rng, classes = np.random.default_rng(seed), list(classes)
    per_class = {name: float(rng.uniform(0.5, 0.98 - shift)) for name in classes}
    curve = [(0.01, 0.89), (0.1, 0.93), (1.0, 0.955)]
    curve = [{"share": s, "images": int(50_000 * s), "top1": top1 - shift, "top5": 0.99} for s, top1 in curve]
    few = [{"shots": k, "draws": 100, "accuracy": mean - shift} for k, mean in ((1, 0.71), (5, 0.88))]
    tasks = {"label": (0.95, 0.94, 0.1), "colour": (0.97, 0.71, 0.5), "rotation": (0.72, 0.41, 0.25)}
    tasks |= {"corruption": (0.99, 0.8, 0.5), "sobel": (1.0, 0.9, 0.5)}
    sections = Sections(
        retrieval=RetrievalSection(
            metrics={"precision_at_1": 0.9512 - shift, "recall_at_1": 0.9512 - shift, "recall_at_8": 0.98 - shift}
            | {"r_precision": 0.81 - shift, "mean_average_precision_at_r": 0.7834 - shift, "knn_accuracy": 0.953},
            index={"name": "HNSW32", "recall_at_k": {"1": 0.998, "10": 0.995}, "queries": 1000},
            queries=9_998,
            references=50_000,
            lone_queries=2,
            zero_rows=0,
            per_class={
                name: {"precision_at_1": value, "mean_average_precision_at_r": value * 0.9, "queries": 1000}
                for name, value in per_class.items()
            },
        ),
        linear_probe=LinearProbeSection(
            metrics={"top1": 0.9551 - shift, "top5": 0.998},
            inverse_l2=0.01,
            tried={"0.001": 0.951, "0.01": 0.956, "0.1": 0.955},
            per_class={name: value + 0.01 - shift for name, value in per_class.items()},
            augmented=AugmentedProbe(
                optimizer="rmsprop", epochs=100, metrics={"top1": 0.957, "top5": 0.999}, learning_curve=curve[:1]
            ),
            learning_curve=curve,
            few_shot=[each | {"low": each["accuracy"] - 0.02, "high": each["accuracy"] + 0.02} for each in few],
        ),
        calibration=CalibrationSection(
            bins=15,
            temperature=1.42,
            before={"ece": 0.043 + shift, "classwise_ece": 0.011, "nll": 0.31 + shift, "brier": 0.12},
            after={"ece": 0.009, "classwise_ece": 0.008, "nll": 0.25 + shift, "brier": 0.1},
            reliability={"before": reliability(rng, 0.8 + shift), "after": reliability(rng, 0.1)},
        ),
        corruption=CorruptionSection(
            strengths="32",
            images=2000,
            clean={"accuracy": 0.9551 - shift, "ece": 0.02},
            corruptions={name: severities(0.94 - shift, 0.02 + 0.008 * k) for k, name in enumerate(CORRUPTIONS)},
            by_severity=severities(0.94 - shift, 0.07),
            mean_error=0.27 + shift,
            mean_corruption_error=0.81,
            baseline="cross_entropy, seed 0",
        ),
        projection_head=ProjectionHeadSection(
            tasks={name: {"encoder": e, "head": h - shift, "chance": chance} for name, (e, h, chance) in tasks.items()},
            images=5000,
            test_images=5000,
        ),
        hard_mining=hard_mining_section(),
        transfer=[
            TransferResult(
                data=name, linear_probe={"top1": 0.8 - shift, "top5": 0.97}, knn_accuracy=0.75, classes=100, **SIZE
            )
            for name in ("torchvision:CIFAR100", "torchvision:Flowers102")
        ],
        gallery=gallery_section(rng, classes, queries, images),
        map=map_section(rng, classes, points, images),
    )
    return Evaluation(
        title=title,
        encoder="runs/cifar10/encoder",
        data=DataSummary(spec="torchvision:CIFAR10", classes=classes, image_size=32, in_chans=3, **SIZE),
        about={"date": "2026-11-22", "device": "cpu", "commit": "0123456789ab", "seconds": {"map": 31.2, "gallery": 4}},
        notes=["3 test images of classes without a training image count as errors of the probe."],
        sections=sections,
        pictures={"test": pictures, "train": pictures},
    )


def photographs(count, side):
    """Return smooth images `(side, side, 3)` with noise, which compress about as much as photographs."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    pictures = {}
    for index in range(count):
        waves = rng.normal(size=(3, 6, 3))
        layers = [sum(a * np.sin(6 * (b * x + c * y) + a) for a, b, c in waves[channel]) for channel in range(3)]
        picture = 128 + 30 * np.stack(layers, axis=-1) + rng.normal(size=(side, side, 3)) * 6
        pictures[index] = picture.clip(0, 255).astype(np.uint8)
    return pictures


PICTURES = photographs(400, 32)


def odd():
    """Return an evaluation with odd names, a class without queries, None where possible, and few values."""
    content = evaluation(title=HOSTILE, classes=ODD_NAMES, points=7, queries=2, pictures=PICTURES)
    sections, fog = content.sections, [{"severity": 3, "accuracy": 0.0, "ece": 1.0}]
    per_class = sections.retrieval.per_class | {"ordinary": {"precision_at_1": None, "queries": 0}}
    del per_class[ODD_NAMES[2]]
    empty_bin = {"low": 0.0, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}
    probe = {"per_class": sections.linear_probe.per_class | {"ordinary": None}, "augmented": None}
    corruption = {"mean_corruption_error": None, "baseline": None, "corruptions": {"fog": fog}, "by_severity": fog}
    changes = {
        "retrieval": {"per_class": per_class, "index": {"name": "exact"}},
        "linear_probe": probe | {"few_shot": [], "learning_curve": [], "tried": {}},
        "calibration": {"reliability": {"before": [], "after": [empty_bin]}},
        "corruption": corruption,
        "projection_head": {"tasks": {"label": {"encoder": 1.0, "head": None, "chance": 0.0}}},
        "hard_mining": {"losses": {"triplet": {"positives": [], "negatives": []}}},
        "map": {"methods": {"pca": [[0.0, 0.0]] * 7}},
    }
    changed = {name: replace(getattr(sections, name), **change) for name, change in changes.items()}
    about = {"commit": None, "nothing": {}}
    return replace(content, about=about, notes=[HOSTILE], sections=replace(sections, **changed))


def only(names, **options):
    """Return an evaluation with some of the sections."""
    content = evaluation(pictures=PICTURES, **options)
    return replace(content, sections=Sections(**{name: getattr(content.sections, name) for name in names.split()}))


def on_digits():
    alone = only("retrieval", title="another")
    return replace(alone, data=replace(alone.data, spec="digits"))


#: Functions that return the evaluations of a report, by its name.
CASES = {
    "one": lambda: [evaluation(pictures=PICTURES)],
    "two": lambda: [evaluation(pictures=PICTURES), evaluation(**OTHER, pictures=PICTURES)],
    "odd": lambda: [odd()],
    "many": lambda: [
        only("retrieval linear_probe map", classes=[f"n{n:08d} synset" for n in range(1000)], points=2000)
    ],
    "alone": lambda: [only("retrieval")],
    "unlike": lambda: [odd(), on_digits()],
    "same": lambda: [only("calibration projection_head map gallery")] * 2,
}
