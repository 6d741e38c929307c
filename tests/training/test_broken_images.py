"""Broken images of a data set that is too large to be decoded first: one line, a list, and a way to continue."""

import json
import shutil

import pytest
import torch
from helpers.run_processes import untimed
from PIL import Image
from safetensors.torch import load_file

from pml_supcon.data import load
from pml_supcon.data.broken import BROKEN
from pml_supcon.data.images import BrokenImageError
from pml_supcon.data.load import open_data
from pml_supcon.evaluation import app as evaluate
from pml_supcon.experiments import app as reproduce
from pml_supcon.training.app import main

CLASSES = ("ape", "bee", "cat")
FLAGS = ["--batch-size", "15", "--epochs", "2", "--warmup-epochs", "0", "--head-dim", "8", "--pictures", "false"]
FLAGS += ["--encoder-args.channels", "[8, 8, 8, 8]", "--image-size", "16"]
SECTIONS = ["--sections", "retrieval,linear_probe", "--knn_k", "3", "--shots", "1", "--draws", "2", "--inverse_l2", "1"]
DAMAGE = {
    "no image": lambda path: path.write_bytes(b"no image"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-60]),
    "empty": lambda path: path.write_bytes(b""),
    "16 bits": lambda path: Image.new("I;16", (20, 20)).save(path),
    "frames": lambda path: Image.new("L", (20, 20)).save(
        path, format="GIF", save_all=True, append_images=[Image.new("L", (20, 20), 9)]
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of images of several sizes, larger than the limits, with `train` and `test`."""
    monkeypatch.setattr(load, "CHECK_LIMIT", 30)
    monkeypatch.setattr(load, "STATISTICS_LIMIT", 6)
    generator = torch.Generator().manual_seed(0)
    for part, number in (("train", 20), ("test", 12)):
        for place, name in enumerate(CLASSES):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = torch.randint(0, 60, (20 + index, 16, 3), dtype=torch.uint8, generator=generator) + 60 * place
                Image.fromarray(pixels.numpy()).save(tmp_path / "images" / part / name / f"{index:02}.png")
    return tmp_path / "images"


def damage(folder, *names):
    """Break files in several ways; return their paths in the order of the data."""
    paths = [folder / name for name in names]
    for path, how in zip(paths, DAMAGE.values(), strict=False):
        how(path)
    return paths


BROKEN_NAMES = ("train/ape/03.png", "train/ape/04.png", "train/cat/19.png", "test/bee/07.png")


def run(folder, output, *more):
    main(["--data", f"imagefolder:{folder}", "--output", str(output), *FLAGS, *map(str, more)])
    return json.loads((output / "metrics.json").read_text())


def error_of(call, capsys, *, program="train.py"):
    """Return the single line of the error of a call."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        call()
    assert ended.value.code == 1
    captured = capsys.readouterr().err
    assert "Traceback" not in captured
    [line] = [line for line in captured.splitlines() if "error" in line]
    assert line.startswith(f"{program}: error: ")
    return line


@pytest.mark.parametrize("workers", [0, 1])
def test_one_line_lists_all_and_the_run_resumes_with_their_neighbours(workers, folder, tmp_path, capsys):
    whole = shutil.copytree(folder, tmp_path / "whole")
    paths = damage(folder, *BROKEN_NAMES)
    output, options = tmp_path / "run", ["--workers", workers]
    line = error_of(lambda: run(folder, output, *options), capsys)
    assert f"4 of 96 images cannot be read, listed in {output / BROKEN} (the first: {paths[0]} is not a read" in line
    assert "--broken_images replace" in line
    assert "--resume" in line
    listed = (output / BROKEN).read_text().splitlines()
    assert [str(path) in text for path, text in zip(paths, listed, strict=True)] == [True] * 4
    assert not (output / "metrics.json").exists()

    metrics = run(folder, output, *options, "--resume", "--broken_images", "replace")
    assert metrics["replaced_images"] == 4
    shown = capsys.readouterr()
    assert "replaced_images" in shown.out
    assert "note: 4 images of" in shown.err
    for broken, other in (("ape/03", "ape/05"), ("ape/04", "ape/05"), ("cat/19", "cat/00")):
        shutil.copy(whole / f"train/{other}.png", whole / f"train/{broken}.png")
    shutil.copy(whole / "test/bee/08.png", whole / "test/bee/07.png")
    expected = run(whole, tmp_path / "expected", *options)
    assert "replaced_images" not in expected
    same = untimed(metrics) | {"data": ""}
    del same["replaced_images"]
    assert same == untimed(expected) | {"data": ""}
    encoders = [load_file(each / "encoder" / "model.safetensors") for each in (output, tmp_path / "expected")]
    assert all(torch.equal(encoders[0][name], encoders[1][name]) for name in encoders[1])


def test_a_broken_image_of_the_test_split_is_met_after_training_and_costs_no_step(folder, tmp_path, capsys):
    damage(folder, "test/ape/05.png")
    assert "1 of 96 images" in error_of(lambda: run(folder, tmp_path / "run"), capsys)
    steps = (tmp_path / "run" / "history.jsonl").read_text().count('"loss"')
    assert steps == 8
    metrics = run(folder, tmp_path / "run", "--resume", "--broken-images", "replace")
    assert metrics["train/steps"] == 8
    assert (tmp_path / "run" / "history.jsonl").read_text().count('"loss"') == 8
    # a repaired file needs no flag
    Image.new("RGB", (20, 20)).save(folder / "test/ape/05.png")
    assert run(folder, tmp_path / "other")["train/steps"] == 8


def test_a_broken_image_that_the_sample_meets_is_listed_with_the_others(folder, tmp_path, capsys):
    damage(folder, "train/ape/00.png", "train/bee/07.png")
    assert "2 of 96 images" in error_of(lambda: run(folder, tmp_path / "run"), capsys)
    assert {path.name for path in (tmp_path / "run").iterdir()} - {".lock"} == {BROKEN}
    assert run(folder, tmp_path / "run", "--broken_images", "replace")["replaced_images"] == 2


def test_a_class_without_a_readable_image_is_an_error(folder, tmp_path, capsys):
    for index in range(12):
        (folder / f"test/bee/{index:02}.png").write_bytes(b"")
    line = error_of(lambda: run(folder, tmp_path / "run", "--broken_images", "replace"), capsys)
    assert "Expected a readable image of the class bee, but all 12 fail" in line


@pytest.mark.parametrize("sections", [SECTIONS, ["--sections", "gallery,map", "--map_methods", "pca"]])
def test_an_evaluation_lists_and_replaces_them_too(sections, folder, tmp_path, capsys):
    run(folder, tmp_path / "run")
    damage(folder, *BROKEN_NAMES)
    arguments = [str(tmp_path / "run"), "--output", str(tmp_path / "evaluation"), *sections]
    line = error_of(lambda: evaluate.main(arguments), capsys, program="evaluate.py")
    assert f"4 of 96 images cannot be read, listed in {tmp_path / 'evaluation' / BROKEN}" in line
    assert not (tmp_path / "evaluation" / "evaluation.json").exists()
    evaluate.main([*arguments, "--broken_images", "replace"])
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert "4 broken images: the next image of the class is read in place of each." in found["notes"]
    assert (found["data"]["train"], found["data"]["test"]) == (60, 36)


def test_other_data_of_an_evaluation_may_be_broken(folder, tmp_path, capsys):
    run(folder, tmp_path / "run")
    other = shutil.copytree(folder, tmp_path / "other")
    damage(other, "train/ape/03.png", "test/cat/05.png")
    arguments = [str(tmp_path / "run"), "--output", str(tmp_path / "evaluation"), *SECTIONS]
    arguments[-1:] = ["1", "--transfer", f"imagefolder:{other}", "--sections", "transfer"]
    assert "2 of 192 images" in error_of(lambda: evaluate.main(arguments), capsys, program="evaluate.py")
    evaluate.main([*arguments, "--broken_images", "replace"])
    found = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert any("in place of 2 broken images" in note for note in found["notes"])


def test_an_experiment_lists_them_too(folder, tmp_path, capsys):
    damage(folder, *BROKEN_NAMES)
    flags = [flag for flag in FLAGS if flag not in ("--pictures", "false")]
    arguments = ["losses", "--seeds", "0", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    arguments += ["--data", f"imagefolder:{folder}", *flags]
    line = error_of(lambda: reproduce.main(arguments), capsys, program="reproduce.py")
    assert "images cannot be read, listed in" in line
    assert len(list((tmp_path / "runs").glob(f"*/{BROKEN}"))) == 1


def test_images_are_replaced_by_the_next_of_their_class_in_order(folder):
    damage(folder, *BROKEN_NAMES)
    opened = open_data(f"imagefolder:{folder}")
    broken = opened.find_broken()
    assert [list(part) for part in broken] == [[3, 4, 59], [19]]
    after = opened.with_replaced(broken)
    assert after.replaced == 4
    assert torch.equal(after.train.labels, opened.train.labels)
    assert torch.equal(after.test.labels, opened.test.labels)
    sources = [after.train.images.where(index) for index in range(60)]
    wanted = [opened.train.images.where({3: 5, 4: 5, 59: 40}.get(index, index)) for index in range(60)]
    assert sources == wanted
    assert after.find_broken() == ({}, {})
    assert opened.with_replaced(({}, {})).train is opened.train


def test_a_colour_image_among_grey_ones_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "CHECK_LIMIT", 4)
    monkeypatch.setattr(load, "STATISTICS_LIMIT", 2)
    for name, value in (("ape", 0), ("bee", 100)):
        (tmp_path / name).mkdir()
        for index in range(10):
            mode = "RGB" if (name, index) == ("bee", 9) else "L"
            size = (8 + index, 8)
            Image.new("L", size, value + index).convert(mode).save(tmp_path / name / f"{index}.png")
    opened = open_data(f"imagefolder:{tmp_path}")
    messages = [text for part in opened.find_broken() for text in part.values()]
    assert messages == [f"Expected grey images, as the others are, but {tmp_path}/bee/9.png has mode 'RGB'"]
    assert opened.with_replaced(opened.find_broken()).decode().in_chans == 1


def test_the_error_is_one_that_workers_can_send():
    with pytest.raises(BrokenImageError, match="cut"):
        raise type(BrokenImageError("x"))("cut")
