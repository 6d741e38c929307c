"""The settings of an evaluation, typed: flags and YAML alike (`--help` lists them)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Literal, get_origin, get_type_hints

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.training.config.parser import OneLineParser, normalised
from pml_supcon.training.optimization import check_optimizer

Section = Literal[
    "retrieval",
    "linear_probe",
    "calibration",
    "corruption",
    "projection_head",
    "hard_mining",
    "transfer",
    "gallery",
    "map",
]
MapMethod = Literal["pca", "tsne", "umap"]


@dataclass(frozen=True, kw_only=True)
class SubjectSettings:
    """What is evaluated, on what, and where the results go.

    Attributes:
        encoder: a run's folder, a folder of `save_encoder` or of timm's, or a name of timm's with pretrained weights.
        data: as for `train.py`; default: the data of the run.
        image_size: side in pixels; default: what the encoder was built for.
        max_train: use at most this many training images.
        max_test: use at most this many test images.
        output: folder of `report.html` and `evaluation.json`; default: in the run's folder, else under `runs/`.
        compare: another run or encoder, evaluated in the same way on the same data: both in one report.
        sections: what is evaluated; default: all that apply (`transfer` where data is named for it).
        batch_size: images that pass the encoder at a time.
        workers: processes that load images; 0: none.
        cache: folder of the features that were computed before; default: `features` in the run's folder, or in `runs`.
        use_cache: read and write it.
        seed: of all draws.
    """

    encoder: str = ""
    data: str | None = None
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
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
        among: what test images are sought among: the training images, or the other test images.
        recall_at: the k of recall@k.
        at_r: R-precision and MAP@R too.
        knn_k: neighbours that vote.
        knn_temperature: of their votes.
        index: `exact`, or an approximate index of FAISS (ivf, hnsw, gpu_flat, gpu_sharded, gpu_ivf, a factory string).
        gallery_queries: queries shown, the worst first.
        gallery_neighbours: neighbours shown of each.
        map_methods: of the embedding map.
        map_points: test images shown in it.
    """

    among: Literal["train", "test"] = "train"
    recall_at: tuple[int, ...] = (1, 2, 4, 8)
    at_r: bool = True
    knn_k: int = 20
    knn_temperature: float = 0.07
    index: str = "exact"
    gallery_queries: int = 20
    gallery_neighbours: int = 8
    map_methods: tuple[MapMethod, ...] = ("pca", "tsne")
    map_points: int = 2000


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Linear probes and calibration.

    Attributes:
        inverse_l2: inverse of the L2 penalty; default: chosen on a held-out part of the training images.
        shares: of the labels, in the learning curve.
        shots: labelled images of each class, for few-shot accuracy.
        draws: of those images.
        probe_optimizer: train a probe on augmented images too, as the paper does, by this optimizer (lars, rmsprop,
            sgd, any of timm's).
        probe_epochs: its epochs.
        probe_learning_rate: its learning rate, for 256 images a batch; default: 10 of lars, 1 of sgd, else 0.01.
        probe_batch_size: images in its batch, over all processes.
        bins: of the calibration error.
    """

    inverse_l2: float | None = None
    shares: tuple[float, ...] = (0.01, 0.1, 1.0)
    shots: tuple[int, ...] = (1, 5)
    draws: int = 100
    probe_optimizer: str | None = None
    probe_epochs: int = 90
    probe_learning_rate: float | None = None
    probe_batch_size: int = 256
    bins: int = 15


@dataclass(frozen=True, kw_only=True)
class AnalysisSettings:
    """Corruptions, what the head throws away, hard mining, transfer.

    Attributes:
        corruptions: names of corruptions; default: all 15 of ImageNet-C.
        severities: of each, 1 to 5.
        corruption_images: test images that are corrupted, at most, evenly spread.
        corruption_baseline: the `evaluation.json` of the model that mCE is relative to.
        own_classifier: under corruption score the classifier of the run itself, where it has one, and no new probe.
        probe_images: training images, and test images, from which transformations are told apart, at most.
        mining_batches: batches over which the share of the gradient is measured.
        mining_batch_size: images in each.
        transfer: other data, by list, on which the encoder is probed.
    """

    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    corruption_images: int = 2000
    corruption_baseline: Path | None = None
    own_classifier: bool = False
    probe_images: int = 5000
    mining_batches: int = 10
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
    "severities": (1, 5),
}

GROUPS = (SubjectSettings, RetrievalSettings, ProbeSettings, AnalysisSettings)


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(AnalysisSettings, ProbeSettings, RetrievalSettings, SubjectSettings):
    """What to evaluate, on what, and how: all groups of settings in one.

    Raises:
        ValueError: a value outside its range; names the flag.
    """

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not low <= value <= high:
                    bounds = f"at least {low}" if high == inf else f"from {low} to {high}"
                    raise ValueError(f"Expected --{name} to be {bounds}, but got {value}")
        for name in ("inverse_l2", "knn_temperature", "probe_learning_rate", "shares"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and not value > 0:
                    raise ValueError(f"Expected --{name} to be above 0, but got {value}")
        for name in self.corruptions:
            if name not in CORRUPTIONS:
                near = get_close_matches(name, CORRUPTIONS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"Expected --corruptions to be among {', '.join(CORRUPTIONS)}, but got {name!r}{hint}")
        if self.probe_optimizer is not None:
            check_optimizer(self.probe_optimizer, "probe_optimizer")
        if "transfer" in self.sections and not self.transfer:
            raise ValueError("Expected --transfer to name data for the section transfer, but got none")


def parse_settings(arguments: Sequence[str] | None = None) -> EvaluateSettings:
    """Settings from the command line: the encoder, then flags; `--config` takes a YAML file of the same names.

    A flag may be spelt with dashes or underscores, a switch stands alone or with a value, and what has several values
    takes them with commas (`--recall_at 1,5,10`). An error is one line and exit status 2.
    """
    parser = OneLineParser(
        names=NAMES,
        prog="evaluate.py",
        description="Score a frozen encoder in all the ways of the paper; write a report.",
    )
    parser.add_argument("encoder", help="a run's folder, an encoder's folder, or a name of timm's")
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
    """`--recall_at 1,5` as `--recall_at [1,5]`, for settings that have several values."""
    made: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and name.removeprefix("--") in SEVERAL and not value.startswith("["):
            argument = f"{name}=[{value}]"
        elif made and made[-1].startswith("--") and made[-1][2:] in SEVERAL and not argument.startswith("["):
            argument = f"[{argument}]"
        made.append(argument)
    return made


NAMES = tuple(field.name for field in fields(EvaluateSettings))
SWITCHES = frozenset(name for name, kind in get_type_hints(EvaluateSettings).items() if kind is bool)
SEVERAL = frozenset(name for name, kind in get_type_hints(EvaluateSettings).items() if get_origin(kind) is tuple)
