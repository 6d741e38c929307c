"""Every configuration builds its model and its data pipeline, on fake images of its size, and takes a step."""

from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers.image_folders import random_images

from pml_supcon.training.config.parser import parse_settings
from pml_supcon.training.loop import take_step
from pml_supcon.training.monitoring import History, StepLogger
from pml_supcon.training.run import build_context, open_run
from pml_supcon.training.stage import build_stage1, build_stage2

CONFIGS = Path(__file__).parent.parent.parent / "pml_supcon" / "configs"
SIZES = {"cifar10": (32, 10), "cifar100": (32, 100), "imagenet_resnet50": (256, 4), "imagenet_resnet200": (256, 4)}
SIZES |= {"folder": (300, 4), "digits": (8, 10), "cifar10_resnet18": (32, 10)}


def test_all_configurations_are_tested():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {*SIZES, "continual_cifar10"}  # its own test has the last


@pytest.mark.parametrize(
    "name", [*sorted(SIZES.keys() - {"imagenet_resnet200"}), pytest.param("imagenet_resnet200", marks=pytest.mark.slow)]
)
def test_configuration_takes_a_step(name, tmp_path):
    size, classes = SIZES[name]
    arguments = ["--config", str(CONFIGS / f"{name}.yaml"), "--output", str(tmp_path / "run"), "--batch-size", "4"]
    arguments += ["--workers", "0", "--mixed-precision", "no", "--warmup-epochs", "0"]
    if name != "digits":
        arguments += ["--data", f"imagefolder:{random_images(tmp_path / 'images', size, classes)}"]
    if name == "folder":  # no download, and nothing held out of two images a class
        arguments += ["--pretrained=false", "--held-out", "0", "--max-per-class", "2"]
    if "stage2_optimizer" in (CONFIGS / f"{name}.yaml").read_text():
        arguments += ["--stage2-batch-size", "4"]
    if "chunk_size" in (CONFIGS / f"{name}.yaml").read_text():
        arguments += ["--chunk-size", "2"]
    settings, accelerator = parse_settings(arguments), Accelerator(cpu=True)
    context = build_context(settings, open_run(settings, accelerator), accelerator)
    stage1 = build_stage1(context)
    for stage in filter(None, [stage1, build_stage2(context, stage1)]):
        stage.network.train()
        trained = [parameter for parameter in stage.model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in trained]
        views, labels = next(iter(stage.loader))
        side = settings.image_size or size
        assert views.shape == (4, settings.views if stage.number == 1 else 1, context.data.in_chans, side, side)
        recent = StepLogger(stage, History(tmp_path / "history.jsonl", accelerator), accelerator)
        take_step(stage, views, labels, stage.first_step, recent, accelerator)
        recent.flush(stage.first_step + 1)  # raises for a loss or gradient that is not finite
        assert any((old != new).any() for old, new in zip(before, trained, strict=True))
