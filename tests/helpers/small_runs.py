"""Flags that cut a reader's recipe to a second or a few, after a check of the flags as the reader typed them.

A run keeps its method, loss, miner, optimizer, schedule, augmentation, sections and data folder. It has one epoch, few
images, small batches and a small encoder. `my/encoder` and `my/images` replace what would be downloaded: the weights
and data of the hub, of timm and of torchvision. The replaced encoder is built on the meta device first, and the batches
are planned.
"""

import json
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
from pml_supcon.training.continual import settings as continual
from pml_supcon.training.dataloaders import build_stage1_sampler, check_batch_sizes

TRAIN_IMAGES, TEST_IMAGES, SIDE, BATCH = 160, 40, 32, 40
LOCAL_IMAGES, LOCAL_ENCODER = "imagefolder:my/images", "my/encoder"
CLASSES = {"digits": 10, LOCAL_IMAGES: 4}  # of data that are not replaced
ENCODER_ARGS = {"channels": [8, 8, 16, 16]}  # of resnet10t
#: Flags of a run on the digits that takes a second.
TINY = ["--max-train", "120", "--max-test", "60", "--batch-size", "30", "--encoder-args.channels", "[8, 8, 8, 8]"]
TINY += ["--head-dim", "16"]


class RefusedError(Exception):
    """The error of a command that would fail for a reader."""


def train_flags(arguments, processes):
    """Return flags to append for `train.py`; raise as it would for the reader's flags and processes."""
    asked = parse_settings(arguments)
    check_batch_sizes(asked, SimpleNamespace(num_processes=processes))
    if asked.data in CLASSES:  # batches that the classes cannot fill
        labels = torch.arange(CLASSES[asked.data]).repeat(asked.batch_size)
        build_stage1_sampler(asked, labels, SimpleNamespace(num_processes=1, process_index=0))
    check_encoder_name(asked.encoder)
    with torch.device("meta"):
        create_encoder(asked.encoder, image_size=asked.image_size, small_stem=asked.small_stem, **asked.encoder_args)
    flags = small(asked)
    return as_arguments(flags)


def continual_flags(arguments):
    """Return flags to append for `continual.py`; raise as it would for the reader's flags."""
    asked = continual.parse_settings(arguments)
    flags = {"epochs": 1, "warmup_epochs": 0, "max_train": TRAIN_IMAGES, "max_test": 2 * TEST_IMAGES, "batch_size": 16}
    flags |= {"data": local_data(asked.data), "encoder": "resnet10t", "encoder_args": json.dumps(ENCODER_ARGS)}
    if flags["data"] != asked.data:
        flags["num_tasks"] = CLASSES[LOCAL_IMAGES] // 2
    if asked.first_epochs is not None:
        flags["first_epochs"] = 1
    if asked.head_width is not None:
        flags["head_width"] = 32
    return as_arguments(flags)


def reproduce_arguments(arguments):
    """Return arguments for `reproduce.py`: one experiment of few trainings, one seed, no search for learning rates."""
    asked = reproducing.parse(arguments, prog="reproduce.py", description="")
    others = [argument for argument in arguments if argument not in (*EXPERIMENTS, "all")]
    flags = small(settings_of(asked.scale.settings, {})) | {"learning_rate": 0.1, "seeds": 0}
    return ["losses", *others, *as_arguments(flags)]


def small(asked):
    """Return small values for the settings of a training."""
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
    if asked.stage2_optimizer is not None:
        flags |= {"stage2_optimizer": asked.stage2_optimizer, "stage2_epochs": 1, "stage2_batch_size": BATCH}
        flags["stage2_warmup_epochs"] = 0
    for stage in ("", "stage2_"):
        if getattr(asked, f"{stage}decay_epochs"):
            flags |= {f"{stage}decay_epochs": "[0.5]", f"{stage}schedule": getattr(asked, f"{stage}schedule")}
    if asked.mixed_precision == "fp16":  # only GPUs have it
        flags["mixed_precision"] = "bf16"
    return flags


def evaluate_flags(arguments):
    """Return the arguments of `evaluate.py` with small values; raise as it would for the reader's."""
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
    """Return the data as named, or `my/images` in place of data that would be downloaded."""
    scheme, _, rest = spec.partition(":")
    place = rest.partition("?")[0]
    if scheme == "torchvision":
        find_class(place, {})
    return LOCAL_IMAGES if scheme == "torchvision" or (scheme == "hf" and not Path(place).exists()) else spec


def local_encoder(name):
    """Return the folder of an encoder as named, or `my/encoder` in place of weights of timm."""
    if Path(name).is_dir():
        return name
    if not timm.models.is_model_pretrained(name):
        raise RefusedError(f"Expected a folder or a pretrained model of timm, but got {name!r}")
    return LOCAL_ENCODER


def as_arguments(flags):
    """Return flags with a value each."""
    return [f"--{name}={value}" for name, value in flags.items()]
