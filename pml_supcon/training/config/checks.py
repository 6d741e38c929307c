"""The checks of settings, alone and in combination, before data is read. Errors name the flag."""

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from pml_supcon.training.config import label_checks
from pml_supcon.training.config.settings import CLASSIFIER, LEARNT_RANGE, MARGIN, MINED, SUPCON, WITHOUT_LABELS

if TYPE_CHECKING:
    from pml_supcon.training.config import TrainSettings

#: Settings of some methods only.
ONLY_WITH_METHOD = {
    **dict.fromkeys(("temperature", "learn_temperature", "backend", "queue_size"), (*SUPCON, "nnclr")),
    **dict.fromkeys(("denominator", "contrast_mode", "positives_cap"), SUPCON),
    **dict.fromkeys(("scale_by_temperature", "momentum"), SUPCON),
    **dict.fromkeys(("neighbours", "predictor_width"), ("nnclr",)),
    **label_checks.ONLY_WITH_METHOD,
    "margin": MARGIN,
    "triplets_per_anchor": ("triplet",),
    "label_smoothing": CLASSIFIER,
    **dict.fromkeys(("supcon_weight", "classifier_weight", "classifier_alone"), ("joint",)),
    "miner": MINED,
    **dict.fromkeys(("head_layers", "head_width", "head_dim", "head_batch_norm"), (*MINED, *WITHOUT_LABELS)),
}
#: Settings that require another setting, with its allowed values (None: any).
ONLY_WITH: dict[str, tuple[str, tuple[str, ...] | None]] = {
    **label_checks.ONLY_WITH,
    "momentum": ("queue_size", None),
    **dict.fromkeys(("knn_every", "scored"), ("held_out", None)),
    "miner_share": ("miner", ("ohem",)),
    "miner_cap": ("miner", ("capped_positives",)),
    "miner_choice": ("miner", ("capped_positives",)),
    "decay_epochs": ("schedule", ("steps", "exponential")),
    "decay_rate": ("schedule", ("steps", "exponential")),
    "stage2_decay_epochs": ("stage2_schedule", ("steps", "exponential")),
    "stage2_decay_rate": ("stage2_schedule", ("steps", "exponential")),
}
#: Settings that exclude each other, with the reason.
NEVER_TOGETHER = (
    ("positives_cap", "queue_size", "it counts the samples of a batch"),
    ("positives_cap", "miner", "the miner chooses the positives"),
    ("miner", "queue_size", "a miner takes its pairs from the batch alone"),
    ("miner", "triplets_per_anchor", "the miner chooses the triplets"),
    ("miner", "contrast_mode", "the miner chooses the anchors"),
    ("max_per_class", "samples_per_class", "they are two ways to fill a batch"),
    ("max_train", "train_fraction", "both say how many images there are"),
    ("pretrained", "encoder_weights", "the encoder starts from one of them"),
    *label_checks.NEVER_TOGETHER,
)
#: Lowest allowed values.
LEAST = {
    **dict.fromkeys(("views", "batch_size", "epochs", "head_dim", "head_layers", "head_width"), 1),
    "predictor_width": 1,
    **dict.fromkeys(("max_train", "max_test", "image_size", "chunk_size", "triplets_per_anchor", "miner_cap"), 1),
    **dict.fromkeys(("stage2_epochs", "stage2_batch_size", "save_every", "keep", "knn_every"), 1),
    **dict.fromkeys(("workers", "seed", "weight_decay", "warmup_epochs", "supcon_weight", "classifier_weight"), 0),
    **dict.fromkeys(("stage2_weight_decay", "stage2_warmup_epochs"), 0),
}
ABOVE_ZERO = ("learning_rate", "stage2_learning_rate", "temperature", "margin", "clip_gradient_norm", "sigma")
FRACTIONS = {
    **dict.fromkeys(("train_fraction", "miner_share", "decay_rate", "stage2_decay_rate"), "(0, 1]"),
    "label_noise": "[0, 1]",
    "draw_beta": "(0, 1)",
    **dict.fromkeys(("held_out", "label_smoothing", "stage2_label_smoothing", "momentum", "ema"), "[0, 1)"),
}


def check(settings: "TrainSettings") -> None:
    """Raise for settings out of range or in contradiction.

    Raises:
        ValueError: If a setting is invalid; the error names the flag, the expected value and the given one.
    """
    _check_text(settings)
    _check_ranges(settings)
    given = {field.name for field in fields(settings) if getattr(settings, field.name) != default_of(field)}
    _check_together(settings, given)
    label_checks.check_labels(settings, given)
    _check_stage2(settings, given)
    _check_rows(settings)
    low, high = LEARNT_RANGE
    if settings.learn_temperature and not low <= settings.temperature <= high:
        raise ValueError(
            f"Expected --temperature to be in [{low:g}, {high:g}] with --learn_temperature, the range of a learnt one, "
            f"but got {settings.temperature}"
        )
    if settings.supcon_weight == settings.classifier_weight == 0:
        raise ValueError("Expected --supcon_weight or --classifier_weight to be > 0, but got 0 for both")
    if settings.resume and settings.output is None:
        raise ValueError("Expected --output with --resume (the folder of the run to resume), but got none")


def default_of(field: Any) -> Any:
    """Return the default of a dataclass field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _check_text(settings: "TrainSettings") -> None:
    """Raise for names that are not UTF-8, because YAML cannot read them again; ``check_folder`` checks the output."""
    for name in ("data", "encoder_weights"):
        value = str(getattr(settings, name))
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Expected --{name} to be text in UTF-8, but got {value!a}: rename it, or make a link to it"
            ) from error


def _check_ranges(settings: "TrainSettings") -> None:
    least = LEAST | {"batch_size": 2 if settings.contrastive else 1}  # one image alone has no negatives
    least |= {"views": 2 if settings.method == "simclr" else 1}  # the other views are its positives
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            reason = f" for {settings.method}" if name in ("batch_size", "views") else ""
            raise ValueError(f"Expected --{name} to be at least {bound}{reason}, but got {value}")
    for name in ABOVE_ZERO:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ValueError(f"Expected --{name} to be > 0, but got {value}")
    for name, interval in FRACTIONS.items():
        value = getattr(settings, name)
        ends = (value == 0 and interval[0] == "[") or (value == 1 and interval[-1] == "]")
        if value is not None and not (0 < value < 1 or ends):
            raise ValueError(f"Expected --{name} to be in {interval}, but got {value}")
    for stage in ("", "stage2_"):
        epochs, warmup = getattr(settings, f"{stage}epochs"), getattr(settings, f"{stage}warmup_epochs")
        if warmup > epochs:
            raise ValueError(
                f"Expected --{stage}warmup_epochs to be at most --{stage}epochs={epochs}, but got {warmup}"
            )


def _check_together(settings: "TrainSettings", given: set[str]) -> None:
    for name, methods in ONLY_WITH_METHOD.items():
        if name in given and settings.method not in methods:
            raise ValueError(
                f"Expected no --{name} with {settings.method}: it belongs to {', '.join(methods)}, "
                f"but got {getattr(settings, name)}"
            )
    for name, (other, values) in ONLY_WITH.items():
        came = getattr(settings, other)
        if name in given and (not came if values is None else came not in values):
            wanted = f"--{other}" + ("" if values is None else f" {' or '.join(values)}")
            raise ValueError(f"Expected {wanted} with --{name}, but got {came or 'none'}")
    for one, other, reason in NEVER_TOGETHER:
        if one in given and other in given:
            raise ValueError(f"Expected no --{one} with --{other}: {reason}, but got both")
    for name in ("head_width", "head_batch_norm"):
        if name in given and settings.head_layers == 1:
            raise ValueError(f"Expected --head_layers to be at least 2 with --{name}, of hidden layers, but got 1")
    for stage in ("", "stage2_"):
        schedule, epochs = getattr(settings, f"{stage}schedule"), getattr(settings, f"{stage}decay_epochs")
        if schedule in ("steps", "exponential") and (not epochs or min(epochs) <= 0):
            raise ValueError(
                f"Expected --{stage}decay_epochs to hold epochs > 0 for {schedule}, but got {epochs or 'none'}"
            )
        if schedule == "steps" and max(epochs) > getattr(settings, f"{stage}epochs"):
            raise ValueError(
                f"Expected --{stage}decay_epochs within the {getattr(settings, f'{stage}epochs')} epochs of the stage, "
                f"but got {epochs}"
            )
        if schedule == "exponential" and len(epochs) > 1:
            raise ValueError(f"Expected one of --{stage}decay_epochs for exponential, the period, but got {epochs}")


def _check_stage2(settings: "TrainSettings", given: set[str]) -> None:
    flags = sorted(name for name in given if name.startswith("stage2_"))
    if settings.has_classifier and flags:
        raise ValueError(
            f"Expected no --{flags[0]} with {settings.method}, which has one stage: its classifier is trained with the "
            f"encoder, but got {getattr(settings, flags[0])}"
        )
    if settings.stage2_optimizer is None and flags:
        raise ValueError(
            f"Expected --stage2_optimizer with --{flags[0]}: without one stage 2 is logistic regression by L-BFGS, "
            "but got none"
        )


def _check_rows(settings: "TrainSettings") -> None:
    """Check the settings that depend on the number of rows in a batch."""
    if settings.positives_cap is not None and (settings.positives_cap < 0 or settings.positives_cap % settings.views):
        raise ValueError(
            f"Expected --positives_cap to be a multiple >= 0 of the number of views, {settings.views}, "
            f"but got {settings.positives_cap}"
        )
    nnclr, images = settings.method == "nnclr", settings.batch_size
    if nnclr and settings.views != 2:
        raise ValueError(
            f"Expected --views to be 2 for nnclr, where each view looks up a neighbour, but got {settings.views}"
        )
    rows = images if nnclr else images * settings.views
    batch = f"{images} images{', whose first views enter it' if nnclr else f' in {settings.views} views = {rows} rows'}"
    if settings.queue_size is not None and settings.queue_size < rows:
        raise ValueError(f"Expected --queue_size to be at least a batch, {batch}, but got {settings.queue_size}")
