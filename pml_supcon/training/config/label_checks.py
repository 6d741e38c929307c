"""The checks of settings that depend on the kind of the labels, on mixing and on the draw of the batches."""

from itertools import product
from typing import TYPE_CHECKING

from pml_supcon.data.label_kinds import WITH_CLASSES
from pml_supcon.training.config.settings import WITHOUT_LABELS
from pml_supcon.views.batch_mix import LARGEST, LEAST

if TYPE_CHECKING:
    from pml_supcon.training.config import TrainSettings

#: The methods whose loss takes targets.
TARGETED = ("supcon_out", "supcon_in")
#: Methods that take labels other than classes: those with a target, and those without labels.
ANY_LABELS = (*TARGETED, *WITHOUT_LABELS)
#: Settings of some methods only.
ONLY_WITH_METHOD = {
    "class_balanced": (*TARGETED, "joint"),
    **dict.fromkeys(("mixup", "cutmix", "target_similarity", "level_weights", "sigma"), TARGETED),
}
#: Settings that require a kind of labels, or a draw.
ONLY_WITH: dict[str, tuple[str, tuple[str, ...] | None]] = {
    **dict.fromkeys(("positives_cap", "class_balanced", "miner"), ("labels", ("classes",))),
    **dict.fromkeys(("label_noise", "stage2_optimizer"), ("labels", ("classes",))),
    **dict.fromkeys(("max_per_class", "samples_per_class", "draw"), ("labels", ("classes", "sets", "hierarchy"))),
    **dict.fromkeys(("mixup", "cutmix"), ("labels", ("classes", "sets", "soft"))),
    **dict.fromkeys(("broken_images", "neighbours"), ("labels", WITH_CLASSES)),
    "target_similarity": ("labels", ("sets",)),
    "level_weights": ("labels", ("hierarchy",)),
    "sigma": ("labels", ("numbers",)),
    "draw_beta": ("draw", ("effective_number",)),
}
#: Settings that mixed images exclude, with the reason.
NEVER_TOGETHER = tuple(
    (mix, other, reason)
    for mix, (other, reason) in product(
        ("mixup", "cutmix"),
        (
            ("positives_cap", "mixed images have shares of classes"),
            ("class_balanced", "mixed images have shares of classes"),
            ("miner", "mixed images have shares of classes"),
            ("target_similarity", "mixed sets are shares, which are compared by their dot product"),
        ),
    )
)


def check_labels(settings: "TrainSettings", given: set[str]) -> None:
    """Raise ValueError for settings that contradict the kind of the labels, among them the ``given`` ones."""
    kind, method = settings.labels, settings.method
    if kind != "classes" and method not in ANY_LABELS:
        raise ValueError(f"Expected --method {', '.join(ANY_LABELS)} with --labels {kind}, but got {method}")
    if "knn_every" in given and kind not in WITH_CLASSES:
        raise ValueError(f"Expected --labels {' or '.join(WITH_CLASSES)} with --knn_every, but got {kind}")
    if kind == "numbers" and method in TARGETED:
        if settings.sigma is None:
            raise ValueError(
                "Expected --sigma with --labels numbers: the distance, in the unit of the labels, at which two images "
                "are positives of weight 0.61 (labels are not standardised), but got none"
            )
        if settings.denominator != "all":
            raise ValueError(
                "Expected --denominator all with --labels numbers: every image is a positive of every anchor, but got "
                f"{settings.denominator}"
            )
    if settings.class_balanced and settings.denominator != "all":
        raise ValueError(
            "Expected --denominator all with --class_balanced, which weights all classes in one denominator, but got "
            f"{settings.denominator}"
        )
    weights = settings.level_weights
    if weights and (min(weights) < 0 or max(weights) == 0):
        raise ValueError(f"Expected --level_weights to be numbers >= 0, one of them above 0, but got {weights}")
    if (settings.draw == "effective_number") != (settings.draw_beta is not None):
        raise ValueError("Expected --draw_beta, in (0, 1), with --draw effective_number, but got none")
    _check_mixing(settings)


def _check_mixing(settings: "TrainSettings") -> None:
    for name in ("mixup", "cutmix"):
        alpha = getattr(settings, name)
        if alpha is not None and not LEAST <= alpha <= LARGEST:
            raise ValueError(f"Expected --{name} to be in [{LEAST:g}, {LARGEST:g}], but got {alpha}")
    if None not in (settings.mixup, settings.cutmix) and settings.mixup != settings.cutmix:
        raise ValueError(
            "Expected one alpha for --mixup and --cutmix together, which draw one of them for each batch, but got "
            f"{settings.mixup} and {settings.cutmix}"
        )
