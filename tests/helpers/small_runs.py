"""The flags that make a user's recipe a matter of a second or a few; what the user typed is checked first.

A run keeps its method, loss, miner, optimizer, schedule, augmentation, sections and data folder. It is cut to one
epoch, few images, small batches and a small encoder. Weights and data of the hub and of torchvision, which would be
downloaded, are replaced by a small encoder and by `my/images`; their names have to exist, as far as that is known
without a network. What is replaced is tried beforehand as the user has it: the encoder is built, without memory for its
weights, and the batches are planned.
"""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import timm
import torch

from pml_supcon.data.torchvision_source import find_class
from pml_supcon.evaluation import settings as evaluation
from pml_supcon.experiments import settings as reproducing
from pml_supcon.experiments.registry import EXPERIMENTS
from pml_supcon.experiments.tuning import settings_of
from pml_supcon.models import create_encoder
from pml_supcon.models.encoders import check_encoder_name
from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.dataloaders import build_stage1_sampler, check_shares

TRAIN_IMAGES, TEST_IMAGES, SIDE, BATCH = 160, 40, 32, 40
LOCAL_IMAGES, LOCAL_ENCODER = "imagefolder:my/images", "my/encoder"
CLASSES = {"digits": 10, LOCAL_IMAGES: 4}  # of data that a reader has as it is in the tests
ENCODER_ARGS = {"channels": [8, 8, 16, 16]}  # of resnet10t
FEW_TRAININGS = "losses"  # the experiment that stands for all


class RefusedError(Exception):
    """A command that would not do for a user what the page says."""


def train_flags(arguments, processes=1):
    """Flags to append for `train.py`; ends with its own error where it would refuse the user's on so many processes."""
    asked = parse_settings(arguments)
    check_shares(asked, SimpleNamespace(num_processes=processes))
    check_batches(asked)
    check_encoder(asked)
    return as_arguments(small(asked))


def check_batches(asked):
    """Refuse batches that the classes cannot fill, however many images each has."""
    if asked.data in CLASSES:
        labels = torch.arange(CLASSES[asked.data]).repeat(asked.batch_size)
        build_stage1_sampler(asked, labels, SimpleNamespace(num_processes=1, process_index=0))


def check_encoder(asked):
    """Refuse an encoder that cannot be built with its arguments, for images of the size asked for."""
    name = asked.encoder
    check_encoder_name(name)
    if asked.pretrained and not timm.models.is_model_pretrained(name):
        raise RefusedError(f"Expected --pretrained with a model that timm has weights of, but got {name!r}")
    with torch.device("meta"):
        create_encoder(name, image_size=asked.image_size, small_stem=asked.small_stem, **asked.encoder_args)


def reproduce_arguments(arguments):
    """Arguments for `reproduce.py`: one experiment of few trainings, with one seed and without a choice of rates."""
    asked = reproducing.parse(arguments, prog="reproduce.py", description="")
    others = [argument for argument in arguments if argument not in (*EXPERIMENTS, "all")]
    flags = small(settings_of(asked.scale.settings, {})) | {"learning_rate": 0.1, "seeds": 0}
    return [FEW_TRAININGS, *others, *as_arguments(flags)]


def small(asked):
    """The values of a training's settings that make it small, by name."""
    flags = {"epochs": 1, "warmup_epochs": 0, "workers": 0, "max_test": TEST_IMAGES, "data": local_data(asked.data)}
    flags |= {"batch_size": min(asked.batch_size, BATCH), "encoder": "resnet10t", "pretrained": "false"}
    flags |= {"encoder_args": json.dumps(ENCODER_ARGS), "compile": "false", "sync_batch_norm": "false"}
    if asked.train_fraction == 1:
        flags["max_train"] = round(TRAIN_IMAGES / (1 - asked.held_out))
    for name, most in (("chunk_size", 8), ("queue_size", 2 * BATCH), ("image_size", SIDE), ("head_width", 32)):
        if getattr(asked, name) is not None:
            flags[name] = min(getattr(asked, name), most)
    if asked.max_per_class is not None:
        flags["max_per_class"] = max(asked.max_per_class, BATCH // CLASSES[LOCAL_IMAGES])
    if asked.samples_per_class is not None:
        flags["samples_per_class"] = min(asked.samples_per_class, BATCH // CLASSES[LOCAL_IMAGES])
        flags["batch_size"] = flags["samples_per_class"] * CLASSES[LOCAL_IMAGES]
    if asked.stage2_optimizer is not None:
        flags |= {"stage2_optimizer": asked.stage2_optimizer, "stage2_epochs": 1, "stage2_batch_size": BATCH}
        flags["stage2_warmup_epochs"] = 0
    for stage in ("", "stage2_"):
        if getattr(asked, f"{stage}decay_epochs"):
            flags |= {f"{stage}decay_epochs": "[0.5]", f"{stage}schedule": getattr(asked, f"{stage}schedule")}
    if asked.mixed_precision == "fp16":  # which is the GPU's
        flags["mixed_precision"] = "bf16"
    return flags


def evaluate_flags(arguments):
    """The arguments of `evaluate.py` with small values; ends with its own error where it would refuse the user's."""
    asked = evaluation.parse_settings(arguments)
    flags = {"workers": 0, "max_train": TRAIN_IMAGES, "max_test": TEST_IMAGES, "draws": 2, "mining_batches": 1}
    flags |= {"mining_batch_size": 16, "corruption_images": 8, "severities": asked.severities[0], "probe_epochs": 1}
    flags |= {"corruptions": ",".join((asked.corruptions or ("brightness", "gaussian_noise"))[:2])}
    if asked.data is not None:
        flags["data"] = local_data(asked.data)
    if asked.image_size is not None:
        flags["image_size"] = min(asked.image_size, SIDE)
    if asked.transfer:
        flags["transfer"] = ",".join(map(local_data, asked.transfer))
    names = {name: local_encoder(name) for name in (asked.encoder, asked.compare) if name is not None}
    return [*(names.get(argument, argument) for argument in arguments), *as_arguments(flags)]


def local_data(spec):
    """Data that is here: as named, or `my/images` in the place of what would be downloaded."""
    scheme, _, rest = spec.partition(":")
    place, _, query = rest.partition("?")
    if scheme == "torchvision":
        options = dict(part.split("=", 1) for part in query.split("&") if part)
        options.pop("classes", None)  # of the recipes, for all data
        find_class(place, options)
    if scheme == "hf" and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", place) and not Path(place).exists():
        raise RefusedError(f"Expected a folder that is there or a name on the hub, but got {spec!r}")
    elsewhere = scheme == "torchvision" or (scheme == "hf" and not Path(place).exists())
    return LOCAL_IMAGES if elsewhere else spec


def local_encoder(name):
    """An encoder that is here: the folder as named, or `my/encoder` in the place of weights of timm's."""
    if Path(name).is_dir():
        return name
    if name.partition(".")[0] not in timm.list_models() or not timm.models.is_model_pretrained(name):
        raise RefusedError(f"Expected a folder that is there or a pretrained model of timm, but got {name!r}")
    return LOCAL_ENCODER


def as_arguments(flags):
    """Flags with a value each."""
    return [f"--{name}={value}" for name, value in flags.items()]
