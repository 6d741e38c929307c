"""The settings of a continual run, from flags and YAML (``--help`` lists them)."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from pml_supcon.data.streams import Domain, Scenario
from pml_supcon.training.config import TrainSettings
from pml_supcon.training.config.checks import default_of
from pml_supcon.training.config.parser import parse_groups
from pml_supcon.training.config.settings import (
    DEFAULT_ENCODER,
    DEFAULT_ENCODER_ARGS,
    Augment,
    ModelSettings,
    RunSettings,
    Stage1Settings,
)

Method = Literal["co2l", "supcon_replay", "er", "finetune", "joint"]
CONTRASTIVE = ("co2l", "supcon_replay")
REPLAYED = (*CONTRASTIVE, "er")
SEED_OF_TASK = 10_000  # the tasks of a run draw from seeds that are this far apart


@dataclass(frozen=True, kw_only=True)
class ContinualMethodSettings:
    """The method.

    Attributes:
        method: `co2l` (asymmetric supcon loss and distillation), `supcon_replay` (supcon loss, nearest class mean),
            `er` (cross entropy with a buffer), `finetune` (cross entropy, no protection), `joint` (cross entropy on all
            tasks at once).
        buffer_size: samples of past tasks to keep, at least one of each class.
        first_epochs: epochs of the first task; default: as for the others. `joint` has one training, of `epochs`.
        temperature: temperature of the supcon loss.
        anchors: rows that are anchors of `co2l`'s supcon loss: the rows of the `present` task's classes, or `all`.
        contrastive_weight: weight of `co2l`'s supcon loss from the second task on; 0: distillation alone.
        distill_weight: weight of `co2l`'s distillation; 0: none.
        distill_temperature: temperature kappa of the model's similarities in the distillation.
        past_temperature: temperature kappa* of the similarities of the model of the task before.
        replay: train `co2l`'s encoder on the buffer too; without, only its classifier has the buffer.
    """

    method: Method = "co2l"
    buffer_size: int = 200
    first_epochs: int | None = None
    temperature: float = 0.5
    anchors: Literal["present", "all"] = "present"
    contrastive_weight: float = 1.0
    distill_weight: float = 1.0
    distill_temperature: float = 0.2
    past_temperature: float = 0.01
    replay: bool = True


@dataclass(frozen=True, kw_only=True)
class StreamSettings:
    """The tasks, their images, and batches.

    Attributes:
        scenario: `class` and `task`: new classes in each task, and the summary shows the accuracy among all classes, or
            among the classes of the task; `domain`: the same classes in other images.
        num_tasks: number of tasks, of equal size.
        tasks: the classes of each task instead, as names or positions, such as `[[0, 1], [2, 3]]`.
        shuffle_classes: draw the order of the classes with the seed.
        domain: the change of the images from one task to the next, with `domain`.
        data: `digits`, `torchvision:NAME`, `imagefolder:PATH` or `hf:PATH_OR_ID`.
        image_size: side in pixels; default: the largest shorter side of the images, at most 224.
        max_train: maximum number of training images.
        max_test: maximum number of test images.
        held_out: share of the training images to score in place of the test images, to choose settings; 0: none.
        augment: augmentation of the views; auto: `digits` for small symbols, else `simclr`.
        views: number of views of each image in a batch.
        batch_size: images in the global batch, over all processes, each in `views` views.
        broken_images: an image that cannot be read: `raise` ends the run and lists all of them; `replace` decodes all
            images first, and reads the next one of the class in place of each.
        workers: number of loader processes; does not affect the batches.
        data_on_device: keep images and compute views on the GPU; auto: if there is one and the images fit into memory.
    """

    scenario: Scenario = "class"
    num_tasks: int = 5
    tasks: list[list[int | str]] = field(default_factory=list)
    shuffle_classes: bool = False
    domain: Domain = "permutation"
    data: str = "digits"
    image_size: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    held_out: float = 0.0
    augment: Augment = "auto"
    views: int = 2
    batch_size: int = 64
    broken_images: Literal["raise", "replace"] = "raise"
    workers: int = 0
    data_on_device: Literal["auto"] | bool = "auto"


#: The groups, in the order of `--help`.
GROUPS = (ContinualMethodSettings, StreamSettings, ModelSettings, Stage1Settings, RunSettings)

#: Settings of some methods only.
ONLY_WITH_METHOD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("temperature", "head_layers", "head_width", "head_dim", "head_batch_norm"), CONTRASTIVE),
    **dict.fromkeys(("anchors", "contrastive_weight", "distill_weight", "replay"), ("co2l",)),
    **dict.fromkeys(("distill_temperature", "past_temperature"), ("co2l",)),
    "buffer_size": REPLAYED,
    "first_epochs": (*REPLAYED, "finetune"),
}
#: Settings without effect where a weight is 0.
ONLY_WITH_WEIGHT = {
    **dict.fromkeys(("distill_temperature", "past_temperature"), "distill_weight"),
    "anchors": "contrastive_weight",
}
#: Settings that exclude each other, with the reason.
NEVER_TOGETHER = (
    ("tasks", "num_tasks", "both set the number of tasks"),
    ("tasks", "shuffle_classes", "both set the order of the classes"),
)
LEAST = {"num_tasks": 2, "buffer_size": 1, "first_epochs": 1, "contrastive_weight": 0, "distill_weight": 0}
ABOVE_ZERO = ("distill_temperature", "past_temperature")
FINITE = (*ABOVE_ZERO, "contrastive_weight", "distill_weight")


@dataclass(frozen=True, kw_only=True)
class ContinualSettings(RunSettings, Stage1Settings, ModelSettings, StreamSettings, ContinualMethodSettings):
    """All groups of settings of a continual run; ``epochs`` is the number of epochs of each task.

    Raises:
        ValueError: If a value is out of range, or settings contradict each other; the error names the flag.
    """

    epochs: int = 10
    learning_rate: float = 0.03
    clip_gradient_norm: float | None = 1.0  # cross entropy of new classes is large at first, see the page

    def __post_init__(self) -> None:
        if self.encoder is None:
            object.__setattr__(self, "encoder", DEFAULT_ENCODER)
            object.__setattr__(self, "encoder_args", DEFAULT_ENCODER_ARGS | self.encoder_args)
        _check(self)
        for number in (1, 2):  # all other checks
            self.of_task(number)

    @property
    def contrastive(self) -> bool:
        """True if the encoder is trained under a projection head."""
        return self.method in CONTRASTIVE

    @property
    def distilled(self) -> bool:
        """True if the loss has the distillation, from the second task on."""
        return self.method == "co2l" and self.distill_weight > 0

    @property
    def replayed(self) -> bool:
        """True if there is a buffer."""
        return self.method in REPLAYED

    def of_task(self, number: int) -> TrainSettings:
        """Return the settings of the engine for the training of a task, from 1: its epochs, seed, loss and weights."""
        known = {each.name for each in fields(TrainSettings)}
        shared = {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if each.name in known and self.method in ONLY_WITH_METHOD.get(each.name, (self.method,))
        }
        shared["method"] = "supcon_out" if self.contrastive else "cross_entropy"
        shared["seed"] = self.seed + SEED_OF_TASK * (number - 1)
        if number == 1 and self.first_epochs is not None:
            shared["epochs"] = self.first_epochs
        if number > 1:  # it starts from the model of the task before
            shared |= {"pretrained": False, "encoder_weights": None}
        return TrainSettings(**shared)


def parse_settings(arguments: Sequence[str] | None = None) -> ContinualSettings:
    """Parse the settings of a continual run, in the way of ``training.config.parser.parse_settings``."""
    return parse_groups(
        ContinualSettings,
        GROUPS,
        arguments,
        prog="continual.py",
        description="Train on tasks that come one after another, and score all of them after each.",
        does_not_apply=_does_not_apply,
    )


def _does_not_apply(name: str, values: Mapping[str, Any], flags: Set[str]) -> bool:
    """Return True if the method or the encoder does not have this setting."""
    if name == "encoder_args":  # arguments of the file's encoder
        return "encoder" in flags
    return values["method"] not in ONLY_WITH_METHOD.get(name, (values["method"],))


def _check(settings: ContinualSettings) -> None:
    """Raise ValueError for settings out of range or in contradiction; ``of_task`` checks every training."""
    given = {each.name for each in fields(settings) if getattr(settings, each.name) != default_of(each)}
    for name, methods in ONLY_WITH_METHOD.items():
        if name in given and settings.method not in methods:
            raise ValueError(
                f"Expected no --{name} with {settings.method}: it belongs to {', '.join(methods)}, but got "
                f"{getattr(settings, name)}"
            )
    for name, weight in ONLY_WITH_WEIGHT.items():
        if name in given and getattr(settings, weight) == 0:
            raise ValueError(f"Expected --{weight} to be > 0 with --{name}, which has no effect otherwise, but got 0")
    for one, other, reason in NEVER_TOGETHER:
        if one in given and other in given:
            raise ValueError(f"Expected no --{one} with --{other}: {reason}, but got both")
    domain = settings.scenario == "domain"
    for name in ("tasks", "shuffle_classes"):
        if domain and name in given:
            raise ValueError(f"Expected no --{name} with --scenario domain: every task has all classes, but got one")
    if "domain" in given and not domain:
        raise ValueError(f"Expected --scenario domain with --domain, but got {settings.scenario}")
    for name, bound in LEAST.items():
        value = getattr(settings, name)
        if value is not None and not value >= bound:
            raise ValueError(f"Expected --{name} to be at least {bound}, but got {value}")
    for name in ABOVE_ZERO:
        if not getattr(settings, name) > 0:
            raise ValueError(f"Expected --{name} to be > 0, but got {getattr(settings, name)}")
    for name in FINITE:
        if not math.isfinite(getattr(settings, name)):
            raise ValueError(f"Expected --{name} to be finite, but got {getattr(settings, name)}")
    if settings.first_epochs is not None and settings.warmup_epochs > settings.first_epochs:
        raise ValueError(
            f"Expected --warmup_epochs to be at most --first_epochs={settings.first_epochs}, but got "
            f"{settings.warmup_epochs}"
        )
    if len(settings.tasks) == 1:
        raise ValueError(f"Expected at least 2 tasks in --tasks, but got {settings.tasks}")
    if settings.contrastive_weight == settings.distill_weight == 0:
        raise ValueError("Expected --contrastive_weight or --distill_weight to be > 0, but got 0 for both")
