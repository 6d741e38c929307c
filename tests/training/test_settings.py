"""Settings: contradictions and values out of range raise by flag before data is read; flags and YAML agree."""

import contextlib
import io
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from pml_supcon.functional.supcon.options import SupConOptions
from pml_supcon.training import app as train
from pml_supcon.training.config import TrainSettings, checks
from pml_supcon.training.config.parser import NAMES, SWITCHES, normalised, parse_settings
from pml_supcon.training.config.settings import FREE_TO_CHANGE, Method, MethodSettings
from pml_supcon.training.run import plain

NO_DATA = ["--data", "imagefolder:/no/such/folder"]
QUEUE = "--queue-size 512"
STAGE2 = {"stage2_optimizer": "sgd"}

# contradictions

SUPCON = {"supcon_out", "supcon_in", "simclr", "joint"}
TARGETED = {"supcon_out", "supcon_in"}
WITHOUT_LABELS = {"simclr", "nnclr"}
MINED = {"supcon_out", "supcon_in", "joint", "npairs", "triplet", "max_margin"}
#: Settings of some methods only: a value, and the methods.
ONLY_WITH_METHOD = {
    "temperature": (0.2, SUPCON | {"nnclr"}),
    "learn_temperature": (True, SUPCON | {"nnclr"}),
    "denominator": ("negatives", SUPCON),
    "contrast_mode": ("one", SUPCON),
    "positives_cap": (2, SUPCON),
    "backend": ("tiled", SUPCON | {"nnclr"}),
    "scale_by_temperature": (True, SUPCON),
    "queue_size": (512, SUPCON | {"nnclr"}),
    "momentum": (0.9, SUPCON),
    "neighbours": ("same_class", {"nnclr"}),
    "predictor_width": (64, {"nnclr"}),
    "margin": (0.2, {"triplet", "max_margin"}),
    "triplets_per_anchor": (3, {"triplet"}),
    "label_smoothing": (0.1, {"cross_entropy", "joint"}),
    **dict.fromkeys(("supcon_weight", "classifier_weight"), (2, {"joint"})),
    "classifier_alone": (True, {"joint"}),
    "miner": ("batch_hard", MINED),
    **dict.fromkeys(("head_layers", "head_width", "head_dim"), (3, MINED | WITHOUT_LABELS)),
    "head_batch_norm": (True, MINED | WITHOUT_LABELS),
    "class_balanced": (True, {*TARGETED, "joint"}),
    **dict.fromkeys(("mixup", "cutmix"), (0.4, TARGETED)),
    "target_similarity": ("any", TARGETED),
    "level_weights": ([1.0, 2.0], TARGETED),
    "sigma": (2.0, TARGETED),
}
#: Settings that these require.
REQUIRED = {"momentum": {"queue_size": 512}, "target_similarity": {"labels": "sets"}}
REQUIRED |= {"level_weights": {"labels": "hierarchy"}, "sigma": {"labels": "numbers"}}


@pytest.mark.parametrize("name", ONLY_WITH_METHOD)
def test_settings_of_some_methods_only(name):
    value, methods = ONLY_WITH_METHOD[name]
    for method in get_args(Method):
        if method in methods:
            options = REQUIRED.get(name, {})
            assert getattr(TrainSettings(method=method, **{name: value}, **options), name) == value
        else:
            with pytest.raises(
                ValueError,
                match=rf"Expected no --{name} with {method}: it belongs to .*, but got {re.escape(str(value))}$",
            ):
                TrainSettings(method=method, **{name: value})


#: Flags that contradict each other, and the flag and the reason in the error.
CONTRADICTIONS = {
    "--method triplet --temperature 0.2": "no --temperature with triplet: it belongs to supcon_out, supcon_in, simclr",
    # a setting without the one that it requires
    "--momentum 0.9": "--queue_size with --momentum, but got none",
    "--knn-every 2": "--held_out with --knn_every, but got none",
    "--scored held_out": "--held_out with --scored, but got none",
    "--miner-share 0.5": "--miner ohem with --miner_share, but got none",
    "--miner batch_hard --miner-share 0.5": "--miner ohem with --miner_share, but got batch_hard",
    "--miner ohem --miner-cap 2": "--miner capped_positives with --miner_cap, but got ohem",
    "--miner ohem --miner-choice hardest": "--miner capped_positives with --miner_choice, but got ohem",
    "--decay-epochs [3]": "--schedule steps or exponential with --decay_epochs, but got cosine",
    "--schedule constant --decay-rate 0.5": "--schedule steps or exponential with --decay_rate, but got constant",
    "--stage2-optimizer sgd --stage2-decay-epochs [3]": "--stage2_schedule steps or exponential with",
    "--stage2-optimizer sgd --stage2-decay-rate 0.5": "--stage2_schedule steps or exponential with --stage2_decay_rate",
    "--schedule steps": "--decay_epochs to hold epochs > 0 for steps, but got none",
    "--schedule exponential --decay-epochs [0]": "--decay_epochs to hold epochs > 0 for exponential, but got [0.0]",
    "--stage2-optimizer sgd --stage2-schedule steps": "--stage2_decay_epochs to hold epochs > 0 for steps",
    "--schedule exponential --decay-epochs [1,2]": "one of --decay_epochs for exponential, the period, but got [1.0, 2",
    "--stage2-epochs 3": "--stage2_optimizer with --stage2_epochs: without one stage 2 is logistic regression",
    "--method joint --stage2-optimizer sgd": "no --stage2_optimizer with joint, which has one stage",
    "--head-layers 1 --head-batch-norm": "--head_layers to be at least 2 with --head_batch_norm",
    "--resume": "--output with --resume",
    # settings that exclude each other
    f"--positives-cap 2 {QUEUE}": "no --positives_cap with --queue_size: it counts the samples of a batch",
    "--positives-cap 2 --miner ohem": "no --positives_cap with --miner: the miner chooses the positives",
    f"--miner ohem {QUEUE}": "no --miner with --queue_size: a miner takes its pairs",
    "--method triplet --miner ohem --triplets-per-anchor 3": "no --miner with --triplets_per_anchor: the miner chooses",
    "--miner ohem --contrast-mode one": "no --miner with --contrast_mode: the miner chooses the anchors",
    "--max-per-class 3 --samples-per-class 2": "no --max_per_class with --samples_per_class: they are two ways",
    "--max-train 100 --train-fraction 0.5": "no --max_train with --train_fraction: both say how many",
    "--pretrained --encoder-weights x.pt": "no --pretrained with --encoder_weights: the encoder starts from one",
    # rows of a batch
    "--positives-cap 3": "--positives_cap to be a multiple >= 0 of the number of views, 2, but got 3",
    "--positives-cap -2": "--positives_cap to be a multiple >= 0 of the number of views, 2, but got -2",
    "--batch-size 30 --views 3 --queue-size 89": "at least a batch, 30 images in 3 views = 90 rows, but got 89",
    "--method nnclr --batch-size 30 --queue-size 29": "a batch, 30 images, whose first views enter it, but got 29",
    "--method nnclr --views 3": "--views to be 2 for nnclr, where each view looks up a neighbour, but got 3",
    "--method nnclr --views 1": "--views to be 2 for nnclr, where each view looks up a neighbour, but got 1",
    "--method nnclr --neighbours same_clas": "did you mean 'same_class'",
    "--method nnclr --labels sets --neighbours same_class": "--labels classes or hierarchy with --neighbours",
    "--learn_temperature --temperature 2": "--temperature to be in [0.01, 1] with --learn_temperature",
    # labels other than classes
    "--labels sets --method triplet": "--method supcon_out, supcon_in, simclr, nnclr with --labels sets",
    "--labels soft --method joint": "nnclr with --labels soft, but got joint",
    "--labels numbers": "--sigma with --labels numbers: the distance, in the unit of the labels",
    "--labels sets --sigma 1": "--labels numbers with --sigma, but got sets",
    "--labels numbers --sigma 1 --denominator negatives": "--denominator all with --labels numbers",
    "--labels sets --label_noise 0.1": "--labels classes with --label_noise, but got sets",
    "--labels soft --positives_cap 4": "--labels classes with --positives_cap, but got soft",
    "--labels hierarchy --miner batch_hard": "--labels classes with --miner, but got hierarchy",
    "--labels sets --stage2_optimizer sgd": "--labels classes with --stage2_optimizer, but got sets",
    "--labels sets --class_balanced": "--labels classes with --class_balanced, but got sets",
    "--class_balanced --denominator negatives": "--denominator all with --class_balanced",
    "--labels soft --max_per_class 3": "--labels classes or sets or hierarchy with --max_per_class, but got soft",
    "--labels soft --samples_per_class 2": "--labels classes or sets or hierarchy with --samples_per_class",
    "--labels soft --draw class_balanced": "--labels classes or sets or hierarchy with --draw, but got soft",
    "--labels sets --broken_images replace": "--labels classes or hierarchy with --broken_images, but got sets",
    "--labels sets --held_out 0.1 --knn_every 1": "--labels classes or hierarchy with --knn_every, but got sets",
    "--target_similarity any": "--labels sets with --target_similarity, but got classes",
    "--level_weights [1,1]": "--labels hierarchy with --level_weights, but got classes",
    "--labels hierarchy --level_weights [0,0]": "numbers >= 0, one of them above 0, but got [0.0, 0.0]",
    "--draw effective_number": "--draw_beta, in (0, 1), with --draw effective_number, but got none",
    "--draw_beta 0.9": "--draw effective_number with --draw_beta, but got uniform",
    "--labels set": "did you mean 'sets'",
    # mixed images
    "--labels hierarchy --mixup 1": "--labels classes or sets or soft with --mixup, but got hierarchy",
    "--labels hierarchy --cutmix 1": "--labels classes or sets or soft with --cutmix, but got hierarchy",
    "--mixup 0": "--mixup to be in [0.01, 1000], but got 0",
    "--mixup 1 --cutmix 0.5": "one alpha for --mixup and --cutmix together",
    "--mixup 1 --method simclr": "no --mixup with simclr",
    **{
        f"--{mix} 1 {flags}": f"no --{mix} with --{flags.split()[-2].removeprefix('--')}"
        for mix in ("mixup", "cutmix")
        for flags in (
            "--positives_cap 2",
            "--class_balanced true",
            "--miner ohem",
            "--labels sets --target_similarity any",
        )
    },
    # contradictions that only the libraries detect
    "--optimizer larz": "--optimizer to be one of timm's optimizers, but got 'larz'; did you mean",
    "--stage2-optimizer sdg": "--stage2_optimizer to be one of timm's optimizers",
    "--optimizer-args.momentun 0.9": "sgd could not be built with {'momentun': 0.9}",
    "--stage2-optimizer lars --stage2-optimizer-args.trust 1": "lars could not be built with {'trust': 1}",
    "--encoder resnet1": "did you mean",
    "--encoder-weights /no/such/file": "--encoder_weights to be a file or a folder, but got /no/such/file",
    "--sync-batch-norm": "Expected GPUs with --sync_batch_norm",
    "--tracker abacus": "--tracker to be one that is installed",
}


def refused(flags, capsys):
    """Return the one line of error with which the program ends."""
    with pytest.raises(SystemExit) as ended:
        train.main([*NO_DATA, *flags])
    assert ended.value.code in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1
    return lines[0].partition("error: ")[2]


@pytest.mark.parametrize("flags", CONTRADICTIONS)
def test_contradictions_raise_before_data_is_read(flags, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    message = refused(flags.split(), capsys)
    assert CONTRADICTIONS[flags] in message
    assert "/no/such/folder" not in message
    assert not list(tmp_path.iterdir())


def test_without_a_contradiction_the_data_are_missing(tmp_path, monkeypatch, capsys):
    """The test above can fail."""
    monkeypatch.chdir(tmp_path)
    assert "/no/such/folder" in refused([], capsys)


def test_a_missing_tracker_raises_at_the_start(monkeypatch, capsys):
    monkeypatch.setattr("pml_supcon.training.run.get_available_trackers", lambda: ["tensorboard", "trackio"])
    message = refused(["--tracker", "wandb"], capsys)
    assert message == "Expected --tracker to be one that is installed (tensorboard, trackio), but got 'wandb'"


def test_every_rule_is_tried():
    tried = " ".join(CONTRADICTIONS).replace("-", "_")
    assert checks.ONLY_WITH_METHOD.keys() == ONLY_WITH_METHOD.keys()
    assert not [rule for rule in checks.ONLY_WITH if f"__{rule} " not in f"{tried} "]
    for one, other, _ in checks.NEVER_TOGETHER:
        assert any(f"no --{one} with --{other}" in said for said in CONTRADICTIONS.values()), (one, other)


# ranges

LOWEST = {  # the lowest allowed value, and the settings that it requires
    "epochs": (1, {}),
    "batch_size": (2, {}),
    "knn_every": (1, {"held_out": 0.1}),
    "miner_cap": (1, {"miner": "capped_positives"}),
    "seed": (0, {}),
    "classifier_weight": (0, {"method": "joint"}),
    "stage2_batch_size": (1, STAGE2),
}
POSITIVE = {"learning_rate": {}, "stage2_learning_rate": STAGE2, "temperature": {}, "margin": {"method": "triplet"}}
POSITIVE["sigma"] = {"labels": "numbers"}
RANGES = {
    "miner_share": ("(0, 1]", {"miner": "ohem"}),
    "label_noise": ("[0, 1]", {}),
    "draw_beta": ("(0, 1)", {"draw": "effective_number"}),
    "momentum": ("[0, 1)", {"queue_size": 512}),
    "stage2_decay_rate": ("(0, 1]", {**STAGE2, "stage2_schedule": "steps", "stage2_decay_epochs": [1]}),
}
NAN = float("nan")


@pytest.mark.parametrize("name", LOWEST)
def test_lowest_values(name):
    bound, others = LOWEST[name]
    options = {"warmup_epochs": 0, **others, name: bound}
    assert getattr(TrainSettings(**options), name) == bound
    for value in (bound - 1, NAN):
        with pytest.raises(ValueError, match=rf"Expected --{name} to be at least {bound}.*, but got {value}$"):
            TrainSettings(**options | {name: value})


def test_lowest_values_that_depend_on_the_method():
    assert TrainSettings(method="cross_entropy", batch_size=1).batch_size == 1
    with pytest.raises(ValueError, match="--batch_size to be at least 2 for triplet, but got 1"):
        TrainSettings(method="triplet", batch_size=1)
    with pytest.raises(ValueError, match="--views to be at least 2 for simclr, but got 1"):
        TrainSettings(method="simclr", views=1)


@pytest.mark.parametrize("name", POSITIVE)
def test_values_above_zero(name):
    assert getattr(TrainSettings(**{name: 1e-9}, **POSITIVE[name]), name) == 1e-9
    for value in (0, -1.0, NAN):
        with pytest.raises(ValueError, match=f"Expected --{name} to be > 0, but got {value}$"):
            TrainSettings(**{name: value}, **POSITIVE[name])


@pytest.mark.parametrize("name", RANGES)
def test_shares(name):
    bounds, others = RANGES[name]
    inside = {0.5, *([0] if bounds[0] == "[" else []), *([1] if bounds[-1] == "]" else [])}
    for value in inside:
        assert getattr(TrainSettings(**{name: value}, **others), name) == value
    for value in {0, 1, -0.01, 1.01, NAN} - inside:
        with pytest.raises(ValueError, match=re.escape(f"Expected --{name} to be in {bounds}, but got {value}")):
            TrainSettings(**{name: value}, **others)


@pytest.mark.parametrize(("stage", "others"), [("", {}), ("stage2_", STAGE2)])
def test_warm_up_is_at_most_the_stage(stage, others):
    assert TrainSettings(**{f"{stage}epochs": 3, f"{stage}warmup_epochs": 3.0}, **others)
    with pytest.raises(ValueError, match=f"--{stage}warmup_epochs to be at most --{stage}epochs=3, but got 3.5"):
        TrainSettings(**{f"{stage}epochs": 3, f"{stage}warmup_epochs": 3.5}, **others)


# flags


@pytest.mark.parametrize("name", ["data", "encoder_weights"])
def test_names_that_are_no_unicode_are_refused_at_the_start(name, capsys):
    """A run could be written, but not read again: YAML takes UTF-8 alone."""
    value = os.fsdecode(b"imagefolder:caf\xe9" if name == "data" else b"caf\xe9")
    said = refused([f"--{name}", value], capsys)
    assert f"Expected --{name} to be text in UTF-8" in said
    assert r"caf\udce9" in said


def test_switches_are_the_booleans_of_the_settings():
    assert {"resume", "pretrained", "compile", "decay_all", "classifier_alone", "head_batch_norm"} <= SWITCHES
    assert {name for name in NAMES if isinstance(getattr(TrainSettings(), name), bool)} == SWITCHES


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (["--decay-all"], True),
        (["--decay-all", "--seed", "1"], True),
        (["--decay-all=false"], False),
        (["--decay_all", "false", "--seed", "1"], False),
    ],
)
def test_a_switch_stands_alone_or_with_a_value(flags, wanted):
    assert parse_settings(flags).decay_all is wanted


def test_dashes_in_values_are_kept():
    values = ["--output", "my-run/a_b", "--data=hf:some-set", "--encoder_args.drop_rate", "-0.5"]
    assert (
        normalised([values[3].replace("_", "-") if value == values[3] else value for value in values], SWITCHES)
        == values
    )


def test_lists_and_dictionaries():
    lists = ["--schedule", "steps", "--decay-epochs", "[3, 4.5]", "--encoder-args.channels", "[8, 8, 8, 8]"]
    settings = parse_settings([*lists, "--encoder-args.drop_rate", "0.1", "--optimizer-args", '{"momentum": 0.8}'])
    assert settings.decay_epochs == [3, 4.5]
    assert settings.encoder_args == {"channels": [8, 8, 8, 8], "drop_rate": 0.1}
    assert settings.optimizer_args == {"momentum": 0.8}
    assert settings.encoder == "resnet10t"
    assert parse_settings([]).encoder_args == {"channels": [32, 64, 128, 256]}
    assert parse_settings(["--encoder", "resnet18"]).encoder_args == {}


def test_flags_override_a_file_before_and_after_it(tmp_path):
    (tmp_path / "some.yaml").write_text("epochs: 7\nseed: 5\nencoder_args: {drop_rate: 0.5}\n")
    settings = parse_settings(["--config", str(tmp_path / "some.yaml"), "--epochs", "3"])
    assert (settings.epochs, settings.seed, settings.encoder_args["drop_rate"]) == (3, 5, 0.5)


def test_print_config_comes_back_as_the_same_settings(tmp_path):
    flags = "--method triplet --miner ohem --miner-share 0.4 --decay-epochs [2] --schedule steps --output some"
    flags = [*flags.split(), "--encoder-args.drop_rate", "0.1", "--channels-last", "--small-stem", "false"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        parse_settings([*flags, "--print_config"])
    assert ended.value.code == 0
    (tmp_path / "printed.yaml").write_text(printed.getvalue())
    assert set(yaml.safe_load(printed.getvalue())) == set(NAMES)
    assert parse_settings(["--config", str(tmp_path / "printed.yaml")]) == parse_settings(flags)


def write_config(folder, **options):
    """Write the settings of a run into its folder; return the flags that resume it."""
    config = {
        name: value for name, value in plain(TrainSettings(**options)).items() if name not in ("output", "resume")
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--output", str(folder), "--resume"]


def test_resume_takes_the_settings_of_the_folder_or_of_a_given_file(tmp_path):
    flags = write_config(tmp_path, method="npairs", epochs=9, encoder_args={"drop_rate": 0.2})
    settings = parse_settings([*flags, "--workers", "2"])
    assert (settings.method, settings.epochs, settings.workers, settings.resume) == ("npairs", 9, 2, True)
    assert settings.encoder_args["drop_rate"] == 0.2
    assert settings.output == tmp_path
    assert parse_settings(flags[:2]).method == "supcon_out"  # without --resume
    (tmp_path / "other.yaml").write_text("epochs: 4\n")
    settings = parse_settings([*flags, "--config", str(tmp_path / "other.yaml")])
    assert (settings.method, settings.epochs) == ("supcon_out", 4)


def test_settings_that_may_change_on_resume_exist():
    assert set(NAMES) > FREE_TO_CHANGE
    assert not {"seed", "batch_size", "epochs", "views"} & FREE_TO_CHANGE


# files of another method

FILES = sorted((Path(__file__).parents[2] / "pml_supcon" / "configs").glob("*.yaml"))
CONFIGS = {path.stem: str(path) for path in FILES if not path.stem.startswith("continual")}


@pytest.mark.parametrize("path", CONFIGS.values(), ids=CONFIGS)
def test_every_configuration_takes_every_method(path):
    size = parse_settings(["--config", path]).batch_size
    for method in get_args(Method):
        settings = parse_settings(["--config", path, "--method", method])
        assert (settings.method, settings.batch_size) == (method, size)


def test_settings_of_a_file_that_do_not_apply_are_named_and_flags_raise(capsys):
    flags = ["--config", CONFIGS["cifar10"], "--method", "cross_entropy", "--encoder", "resnet18"]
    settings = parse_settings(flags)
    assert settings.stage2_optimizer is None
    assert settings.optimizer_args == {"momentum": 0.9, "nesterov": False}
    assert "not used with cross_entropy: scale_by_temperature, head_width, stage2_opt" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_settings([*flags, "--temperature", "0.2"])
    assert "no --temperature with cross_entropy" in capsys.readouterr().err


def test_another_encoder_drops_the_arguments_of_the_files_encoder():
    flags = ["--config", CONFIGS["digits"], "--encoder", "resnet18"]
    assert parse_settings(flags).encoder_args == {}
    assert parse_settings([*flags, "--encoder-args.drop_rate", "0.1"]).encoder_args["drop_rate"] == 0.1


def test_the_defaults_of_the_loss_are_those_of_the_options():
    ours, options = ({field.name: field.default for field in fields(kind)} for kind in (MethodSettings, SupConOptions))
    shared = (ours.keys() & options.keys()) - {"margin"}  # of `triplet` and `max_margin`
    assert len(shared) == 7
    assert {name: ours[name] for name in shared} == {name: options[name] for name in shared}


def test_help_shows_the_choices_of_the_loss_the_miner_and_the_augmentation(capsys):
    with pytest.raises(SystemExit):
        parse_settings(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    choices = ["all,one_positive,negatives", "all,one", "auto,dense,triton,tiled,reference", "random,hardest,easiest"]
    choices.append("auto,none,simclr,simaugment,autoaugment,randaugment,stacked_randaugment,digits")
    assert all(f"{{{names}}}" in text for names in choices)
