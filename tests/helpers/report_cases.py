"""Synthetic evaluations for the tests of the report, with all sections."""

from dataclasses import replace

import numpy as np

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.evaluation.report import write_report
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


def reliability(rng, over):
    bins = []
    for low in (np.arange(15) / 15).tolist():
        count = int(1000 * low**3) + (int(rng.integers(5)) if low > 0.2 else 0)
        middle = low + 1 / 30
        mean = {"confidence": middle, "accuracy": float(np.clip(middle - over * middle * (1 - middle), 0, 1))}
        bins.append({"low": low, "high": low + 1 / 15, "count": count} | (mean if count else dict.fromkeys(mean)))
    return bins


def severities(start, drop, levels=(1, 2, 3, 4, 5)):
    return [{"severity": s, "accuracy": start - drop * s, "ece": 0.02 + drop * s / 2} for s in levels]


def hard_mining_section():
    hardness = (np.arange(20) + 0.5) / 20
    pairs = np.exp(-8 * hardness)
    losses = {}
    for name, power in (("supcon_out", 1.0), ("supcon_in", 0.5), ("triplet", 0.1)):
        weight = pairs * hardness**power / (pairs * hardness**power).sum()
        bins = [
            {"hardness": float(h), "share": float(s), "count": int(1e6 * c)}
            for h, s, c in zip(hardness, weight, pairs, strict=True)
        ]
        summary = {"anchors": 2560, "mean_hardness": 0.21, "gradient_hardness": 0.2 + 0.1 * power}
        losses[name] = {"positives": bins, "negatives": bins, "summary": {"positives": summary, "negatives": summary}}
    return HardMiningSection(losses=losses, of="head", temperature=0.1, margin=0.05, batches=10, batch_size=256)


def gallery_section(rng, classes, queries, neighbours, images):
    rows = []
    for row in range(min(queries, images)):
        label, near = int(rng.integers(len(classes))), []
        for place in range(neighbours):
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


def retrieval_section(per_class, shift):
    metrics = {"precision_at_1": 0.9512 - shift, "recall_at_1": 0.9512 - shift, "recall_at_8": 0.98 - shift}
    metrics |= {"r_precision": 0.81 - shift, "mean_average_precision_at_r": 0.7834 - shift, "knn_accuracy": 0.953}
    return RetrievalSection(
        metrics=metrics,
        index={"name": "HNSW32", "recall_at_k": {"1": 0.998, "10": 0.995}, "queries": 1000},
        queries=9_998,
        references=50_000,
        lone_queries=2,
        zero_rows=0,
        per_class={
            name: {"precision_at_1": value, "mean_average_precision_at_r": value * 0.9, "queries": 1000}
            for name, value in per_class.items()
        },
    )


def linear_probe_section(per_class, shift):
    curve = [
        {"share": share, "images": int(50_000 * share), "top1": top1 - shift, "top5": 0.99}
        for share, top1 in ((0.01, 0.89), (0.1, 0.93), (1.0, 0.955))
    ]
    few = [
        {"shots": k, "draws": 100, "accuracy": mean - shift, "low": mean - shift - 0.02, "high": mean + 0.02 - shift}
        for k, mean in ((1, 0.71), (5, 0.88))
    ]
    scores = {"top1": 0.957, "top5": 0.999}
    return LinearProbeSection(
        metrics={"top1": 0.9551 - shift, "top5": 0.998},
        inverse_l2=0.01,
        tried={"0.001": 0.951, "0.01": 0.956, "0.1": 0.955},
        per_class={name: value + 0.01 - shift for name, value in per_class.items()},
        augmented=AugmentedProbe(optimizer="rmsprop", epochs=100, metrics=scores, learning_curve=curve[:1]),
        learning_curve=curve,
        few_shot=few,
    )


def evaluation(
    *, title="supcon_out, seed 0", classes=ANIMALS, points=400, images=400, queries=20, shift=0.0, seed=0, pictures=()
):
    """An evaluation; `shift` makes it worse throughout; the pictures are those of both splits."""
    rng = np.random.default_rng(seed)
    classes = list(classes)
    per_class = {name: float(rng.uniform(0.5, 0.98 - shift)) for name in classes}
    tasks = {"label": (0.95, 0.94, 0.1), "colour": (0.97, 0.71, 0.5), "rotation": (0.72, 0.41, 0.25)}
    tasks |= {"corruption": (0.99, 0.8, 0.5), "sobel": (1.0, 0.9, 0.5)}
    size = {"train": 50_000, "test": 10_000}
    sections = Sections(
        retrieval=retrieval_section(per_class, shift),
        linear_probe=linear_probe_section(per_class, shift),
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
            corruptions={
                name: severities(0.94 - shift, 0.02 + 0.008 * place) for place, name in enumerate(CORRUPTIONS)
            },
            by_severity=severities(0.94 - shift, 0.07),
            mean_error=0.27 + shift,
            mean_corruption_error=0.81,
            baseline="cross_entropy, seed 0",
        ),
        projection_head=ProjectionHeadSection(
            tasks={
                name: {"encoder": encoder, "head": head - shift, "chance": chance}
                for name, (encoder, head, chance) in tasks.items()
            },
            images=5000,
            test_images=5000,
        ),
        hard_mining=hard_mining_section(),
        transfer=[
            TransferResult(
                data=name, linear_probe={"top1": 0.8 - shift, "top5": 0.97}, knn_accuracy=0.75, classes=100, **size
            )
            for name in ("torchvision:CIFAR100", "torchvision:Flowers102")
        ],
        gallery=gallery_section(rng, classes, queries, 8, images),
        map=map_section(rng, classes, points, images),
    )
    return Evaluation(
        title=title,
        encoder="runs/cifar10/encoder",
        data=DataSummary(spec="torchvision:CIFAR10", classes=classes, image_size=32, in_chans=3, **size),
        about={"date": "2026-11-22", "device": "cpu", "commit": "0123456789ab", "seconds": {"map": 31.2, "gallery": 4}}
        | {"versions": {"torch": "2.15.0", "scikit-learn": "1.9.1"}},
        notes=["3 test images of classes without a training image count as errors of the probe."],
        sections=sections,
        pictures={"test": pictures, "train": pictures},
    )


def photographs(count, side, seed=0):
    """Smooth pictures `(side, side, 3)`, which compress about as photographs do."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    pictures = {}
    for index in range(count):
        waves = rng.normal(size=(3, 6, 3))
        layers = [sum(a * np.sin(6 * (b * x + c * y) + a) for a, b, c in waves[channel]) for channel in range(3)]
        picture = 128 + 30 * np.stack(layers, axis=-1) + rng.normal(size=(side, side, 3)) * 6
        pictures[index] = picture.clip(0, 255).astype(np.uint8)
    return pictures


PICTURES = photographs(400, 32)
HOSTILE = "<script>window.broken = 1</script>"
OTHER = {"title": "cross_entropy", "shift": 0.03, "seed": 1}
ODD_NAMES = ("", HOSTILE, "🦆 mallard", "x" * 200, "$a_1$ & 'b' \"c\"", "ordinary")


def odd():
    """Names of all sorts, a class without queries, None wherever possible, and little of everything."""
    content = evaluation(title=HOSTILE, classes=ODD_NAMES, points=7, queries=2, pictures=PICTURES)
    sections, fog = content.sections, [{"severity": 3, "accuracy": 0.0, "ece": 1.0}]
    per_class = sections.retrieval.per_class | {"ordinary": {"precision_at_1": None, "queries": 0}}
    del per_class[ODD_NAMES[2]]
    empty_bin = {"low": 0.0, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}
    changes = {
        "retrieval": {"per_class": per_class, "index": {"name": "exact"}},
        "linear_probe": {"per_class": sections.linear_probe.per_class | {"ordinary": None}, "augmented": None}
        | {"few_shot": [], "learning_curve": [], "tried": {}},
        "calibration": {"reliability": {"before": [], "after": [empty_bin]}},
        "corruption": {"mean_corruption_error": None, "baseline": None, "corruptions": {"fog": fog}}
        | {"by_severity": fog},
        "projection_head": {"tasks": {"label": {"encoder": 1.0, "head": None, "chance": 0.0}}},
        "hard_mining": {"losses": {"triplet": {"positives": [], "negatives": []}}},
        "map": {"methods": {"pca": [[0.0, 0.0]] * 7}},
    }
    changed = {name: replace(getattr(sections, name), **change) for name, change in changes.items()}
    about = {"commit": None, "nothing": {}}
    return replace(content, about=about, notes=[HOSTILE], sections=replace(sections, **changed))


def only(content, *names):
    return replace(content, sections=Sections(**{name: getattr(content.sections, name) for name in names}))


def many_classes():
    classes = [f"n{number:08d} synset" for number in range(1000)]
    content = evaluation(title="many", classes=classes, points=2000, pictures=PICTURES)
    return only(content, "retrieval", "linear_probe", "map")


def write_reports(folder):
    """Write reports of one and of two evaluations, usual and odd, as NAME.html."""
    one, other = evaluation(pictures=PICTURES), evaluation(**OTHER, pictures=PICTURES)
    alone = only(one, "retrieval")
    written = {
        "one": [one],
        "two": [one, other],
        "odd": [odd()],
        "many": [many_classes()],
        "alone": [alone],
        "unlike": [odd(), replace(alone, title="another", data=replace(alone.data, spec="digits"))],
        "same": [only(one, "calibration", "projection_head", "map", "gallery")] * 2,
    }
    for name, evaluations in written.items():
        write_report(folder / f"{name}.html", evaluations)
    return folder
