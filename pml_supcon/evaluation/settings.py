"""The settings of an evaluation, from flags and YAML (`--help` lists them)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from pml_supcon._checks import did_you_mean
from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.corruptions.corruption import SEVERITIES
from pml_supcon.data.label_kinds import LabelsAre
from pml_supcon.metrics.calibration import BINS
from pml_supcon.metrics.embedding_maps import MAX_ROWS, MapMethod
from pml_supcon.metrics.few_shot import DRAWS, SHOTS
from pml_supcon.metrics.gallery import NEIGHBOURS, QUERIES
from pml_supcon.metrics.hard_mining import BATCHES
from pml_supcon.metrics.learning_curves import SHARES
from pml_supcon.metrics.retrieval import KNN_K, KNN_TEMPERATURE, RECALL_AT
from pml_supcon.training.config.parser import OneLineParser, normalised
from pml_supcon.training.optimization import check_optimizer

Section = Literal[
    "retrieval", "linear_probe", "calibration", "corruption", "projection_head", "hard_mining", "transfer",
    "gallery", "map",
]  # fmt: skip
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """The encoder, the data, and the output.

    Attributes:
        encoder: the folder of a run, a folder of `save_encoder` or of timm, or the name of a pretrained timm model.
        data: the data, as for `train.py`; default: the data of the run.
        labels: the labels of the data, as for `train.py`; default: those of the run, `classes` for other data.
        image_size: side in pixels; default: the size of the encoder's input.
        max_train: use at most this many training images.
        max_test: use at most this many test images.
        broken_images: an image that cannot be read: `raise` ends the evaluation and lists all of them; `replace`
            decodes all images first, and reads the next one of the class in place of each.
        output: folder of `report.html` and `evaluation.json`; default: in the run's folder, else under `runs/`.
        compare: another run or encoder, evaluated with the same settings and shown in the same report.
        sections: sections to evaluate; default: all that apply (`transfer` only with `--transfer`).
        batch_size: images in a batch of the encoder.
        workers: processes that load images; 0: none.
        cache: folder of cached features; default: `features` in the run's folder, or in `runs`.
        use_cache: read and write the cache.
        seed: seed of all random choices.
    """

    encoder: str = ""
    data: str | None = None
    labels: LabelsAre | None = None
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    broken_images: Literal["raise", "replace"] = "raise"
    output: Path | None = None
    compare: str | None = None
    sections: tuple[Section, ...] = ()
    batch_size: int = 256
    workers: int = 0
    cache: Path | None = None
    use_cache: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RetrievalSettings:
    """Retrieval, the gallery, the map.

    Attributes:
        among: the references of the test images: the training images, or the other test images.
        recall_at: the values of k of recall@k.
        at_r: compute R-precision and MAP@R too.
        knn_k: neighbours that vote in k-NN classification.
        knn_temperature: temperature of their votes.
        index: `exact`, or an approximate index of FAISS (ivf, hnsw, gpu_flat, gpu_sharded, gpu_ivf, a factory string).
        gallery_queries: queries in the gallery, the worst first.
        gallery_neighbours: neighbours of each query in the gallery.
        map_methods: methods of the embedding map.
        map_points: test images in the map, at most.
    """

    among: Split = "train"
    recall_at: tuple[int, ...] = RECALL_AT
    at_r: bool = True
    knn_k: int = KNN_K
    knn_temperature: float = KNN_TEMPERATURE
    index: str = "exact"
    gallery_queries: int = QUERIES
    gallery_neighbours: int = NEIGHBOURS
    map_methods: tuple[MapMethod, ...] = ("pca", "tsne")
    map_points: int = MAX_ROWS


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Linear probes and calibration.

    Attributes:
        inverse_l2: inverse of the L2 penalty; default: chosen on a held-out part of the training images.
        shares: shares of the labels in the learning curve.
        shots: labelled images of each class, for few-shot accuracy.
        draws: random draws of these images.
        probe_optimizer: also train a probe on augmented images, as in the paper, with this optimizer (lars, rmsprop,
            sgd, any of timm).
        probe_epochs: epochs of this probe.
        probe_learning_rate: its learning rate for 256 images a batch; default: 10 for lars, 1 for sgd, else 0.01.
        probe_batch_size: images in its batch, over all processes.
        bins: bins of confidence of the calibration error.
    """

    inverse_l2: float | None = None
    shares: tuple[float, ...] = SHARES
    shots: tuple[int, ...] = SHOTS
    draws: int = DRAWS
    probe_optimizer: str | None = None
    probe_epochs: int = 90
    probe_learning_rate: float | None = None
    probe_batch_size: int = 256
    bins: int = BINS


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Corruptions, the projection head, hard mining, transfer.

    Attributes:
        corruptions: names of corruptions; default: all 15 of ImageNet-C.
        severities: severities of each corruption, from 1 to 5.
        corruption_images: test images to corrupt, at most, evenly spread.
        corruption_baseline: the `evaluation.json` of the model that mCE is relative to.
        own_classifier: under corruption, score the classifier of the run, if it has one, instead of a new probe.
        probe_images: training images and test images for the probes of the projection head, at most.
        mining_batches: batches for the shares of the gradient.
        mining_batch_size: images in each of these batches.
        transfer: other data sets for a linear probe and k-NN.
    """

    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = SEVERITIES
    corruption_images: int = 2000
    corruption_baseline: Path | None = None
    own_classifier: bool = False
    probe_images: int = 5000
    mining_batches: int = BATCHES
    mining_batch_size: int = 256
    transfer: tuple[str, ...] = ()


#: Lowest and highest values.
BOUNDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("image_size", "max_train", "max_test", "batch_size", "recall_at", "knn_k"), (1, inf)),
    **dict.fromkeys(("gallery_queries", "gallery_neighbours", "map_points", "shots", "bins"), (1, inf)),
    **dict.fromkeys(("probe_epochs", "probe_batch_size", "corruption_images", "probe_images"), (1, inf)),
    **dict.fromkeys(("mining_batches", "mining_batch_size"), (1, inf)),
    **dict.fromkeys(("workers", "seed"), (0, inf)),
    "draws": (2, inf),
    "shares": (0, 1),
    "severities": (SEVERITIES[0], SEVERITIES[-1]),
}

GROUPS = (InputSettings, RetrievalSettings, ProbeSettings, AnalysisSettings)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(AnalysisSettings, ProbeSettings, RetrievalSettings, InputSettings):
    """All settings of an evaluation.

    Raises:
        ValueError: If a value is outside its range; the error names the flag.
    """

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            for value in _values(getattr(self, name)):
                if not low <= value <= high:
                    bounds = f"at least {low}" if high == inf else f"from {low} to {high}"
                    raise ValueError(f"Expected --{name} to be {bounds}, but got {value}")
        for name in ("inverse_l2", "knn_temperature", "probe_learning_rate", "shares"):
            for value in _values(getattr(self, name)):
                if not value > 0:  # also NaN
                    raise ValueError(f"Expected --{name} to be above 0, but got {value}")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                hint = did_you_mean(name, CORRUPTIONS)
                raise ValueError(f"Expected --corruptions to be among {', '.join(CORRUPTIONS)}, but got {name!r}{hint}")
        if self.probe_optimizer is not None:
            check_optimizer(self.probe_optimizer, "probe_optimizer")
        if "transfer" in self.sections and not self.transfer:
            raise ValueError("Expected --transfer to name data for the section transfer, but got none")


def _values(setting: Any) -> tuple[float, ...]:
    return setting if isinstance(setting, tuple) else () if setting is None else (setting,)


def parse_settings(arguments: Sequence[str] | None = None) -> EvaluateSettings:
    """Parse the command line: the encoder, then flags; `--config` takes a YAML file with the same names.

    Flags may have dashes or underscores. A boolean flag needs no value. Several values are separated by commas
    (`--recall_at 1,5,10`). An error prints one line and exits with status 2.
    """
    parser = OneLineParser(
        names=NAMES,
        prog="evaluate.py",
        description="Score a frozen encoder by all metrics of the paper, and write a report.",
    )
    parser.add_argument("encoder", help="the folder of a run or of an encoder, or the name of a timm model")
    parser.add_argument("--config", action="config", help="a YAML file of settings; later flags override it")
    for group in GROUPS:
        parser.add_class_arguments(group, None, skip={"encoder"})
    given = normalised(sys.argv[1:] if arguments is None else arguments, SWITCHES)
    parsed = parser.parse_args(as_lists(given))
    try:
        return EvaluateSettings(**{name: parsed[name] for name in NAMES})
    except ValueError as error:
        parser.error(str(error))


def as_lists(arguments: Sequence[str]) -> list[str]:
    """Write `--recall_at 1,5` as `--recall_at [1,5]`, for settings with several values."""
    lists: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.removeprefix("--") in SEVERAL and not value.startswith("["):
            argument = f"{name}=[{value}]"
        elif lists and lists[-1].startswith("--") and lists[-1][2:] in SEVERAL and not argument.startswith("["):
            argument = f"[{argument}]"
        lists.append(argument)
    return lists


NAMES = tuple(field.name for field in fields(EvaluateSettings))
SWITCHES = frozenset(name for name, kind in get_type_hints(EvaluateSettings).items() if kind is bool)
SEVERAL = frozenset(name for name, kind in get_type_hints(EvaluateSettings).items() if get_origin(kind) is tuple)
