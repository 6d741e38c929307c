"""The pages have every command of the walk, and the walk tells what is missing (the walk itself: `make walk`)."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import newcomer, walk_checks, walk_images
from helpers.walk_pages import MissingError, commands_of, find_command, find_python

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("step", newcomer.STEPS, ids=lambda step: f"{step.page}: {step.command or 'python'}")
def test_pages_have_what_the_walk_takes(step):
    if step.command:
        assert find_command(ROOT, step.page, step.command) == step.command
    else:
        compile("\n".join(find_python(ROOT, step.page)), step.page, "exec")


def test_every_change_meets_a_command_and_every_flag_is_on_a_page():
    typed = [step.command for step in newcomer.STEPS]
    pages = "".join((ROOT / page).read_text() for page in {step.page for step in newcomer.STEPS})
    for said, run in newcomer.SHORTER.items():
        assert any(said in command for command in typed)
        flags = [word for word in shlex.split(run) if word.startswith("--")]
        assert [flag for flag in flags if f"{flag}" not in pages] == []
    assert f"--epochs {newcomer.EPOCHS} " in newcomer.shorter(newcomer.OWN_TRAIN)


@pytest.fixture
def source(tmp_path):
    """A repository that has the pages alone, and a `make` that leaves nothing."""
    folder = tmp_path / "source"
    for page in {step.page for step in newcomer.STEPS}:
        (folder / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, folder / page)
    (folder / "Makefile").write_text("train:\n\t@echo trained nothing\n")
    return folder


def commit(folder):
    name = ["-c", "user.name=walk", "-c", "user.email=walk@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*name, "commit", "--quiet", "-m", "pages"]):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return str(folder)


def test_a_missing_command_is_told(source, capsys):
    readme = source / "README.md"
    readme.write_text(readme.read_text().replace("make train ", "make all "))
    assert newcomer.main(["--source", commit(source)]) == 1
    printed = capsys.readouterr().out
    assert "Expected README.md to have the command\n    make train\nbut it has\n    make all" in printed
    assert printed.splitlines()[-1].startswith("The walk broke at [1/13] README.md: make train;")


def test_a_step_that_leaves_nothing_is_told(source, tmp_path, capsys):
    assert newcomer.main(["--source", commit(source), "--folder", str(tmp_path / "walked")]) == 1
    printed = capsys.readouterr().out
    assert "Expected one run under runs/, but found 0" in printed
    assert "trained nothing" in (tmp_path / "walked/walk.log").read_text()


def test_a_step_that_fails_is_told_with_what_it_printed(source, capsys):
    (source / "Makefile").write_text("train:\n\t@echo no such thing && exit 3\n")
    assert newcomer.main(["--source", commit(source)]) == 1
    printed = capsys.readouterr().out
    assert "status 2, after" in printed
    assert "no such thing" in printed
    log = Path(printed.split()[-1])
    assert "no such thing" in log.read_text()
    assert sorted(path.name for path in log.parent.iterdir()) == ["walk.log"]
    shutil.rmtree(log.parent)


def test_a_source_that_cannot_be_cloned_is_told(tmp_path, capsys):
    assert newcomer.main(["--source", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == f"The walk broke: {tmp_path / 'none'} cannot be cloned."


def test_only_bash_blocks_and_inline_code_are_commands():
    text = "`a b`\n```bash\n# said\nc d  # why\ne \\\n  f\n```\n```text\ng h\n```\n"
    assert commands_of(text) == ["c d", "e f", "a b"]


def test_a_page_or_block_that_is_gone_is_told(tmp_path):
    with pytest.raises(MissingError, match=r"Expected a page no\.md in "):
        find_command(tmp_path, "no.md", "ls")
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(MissingError, match="python blocks, but it has none"):
        find_python(tmp_path, "page.md")
    with pytest.raises(MissingError, match="but it has nothing to type"):
        find_command(tmp_path, "page.md", "ls")


def write_run(folder, steps, *, top1=0.99):
    for name in walk_checks.LEFT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")
    metrics = {"retrieval/precision_at_1": 0.99, "linear_probe/top1": top1}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [{"stage": 1, "epoch": 1 + step // 4, "step": step, "loss": 1 / step} for step in steps]
    (folder / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_runs_are_checked(tmp_path):
    write_run(tmp_path, range(1, 8))
    walk_checks.check_run(tmp_path, at_least=0.9)
    write_run(tmp_path, range(1, 8), top1=0.2)
    with pytest.raises(walk_checks.BrokenError, match=r"linear_probe/top1 of .* is 0.2, expected at least 0.9"):
        walk_checks.check_run(tmp_path, at_least=0.9)
    (tmp_path / "gallery.png").unlink()
    with pytest.raises(walk_checks.BrokenError, match=r"lacks gallery\.png"):
        walk_checks.check_run(tmp_path, at_least=0.9)


def test_a_run_that_began_anew_or_lost_steps_is_told(tmp_path):
    write_run(tmp_path, range(1, 8))
    before = walk_checks.history(tmp_path)[:4]
    walk_checks.check_resumed(tmp_path, before, epochs=2)
    other = [{**row, "loss": row["loss"] + 1} for row in before]
    for wrong, epochs, message in (
        (other, 2, "repeated them"),
        ([], 2, "had 0 of 7 steps"),
        (before, 3, "has 2 epochs, expected 3"),
    ):
        with pytest.raises(walk_checks.BrokenError, match=message):
            walk_checks.check_resumed(tmp_path, wrong, epochs)
    write_run(tmp_path, [1, 2, 4])
    with pytest.raises(walk_checks.BrokenError, match=r"has the steps \[1, 2, 4\]"):
        walk_checks.check_resumed(tmp_path, before[:2], epochs=2)


def test_reports_are_checked(tmp_path):
    sections = {name: {"metrics": {"top1": 0.9}} for name in ("retrieval", "linear_probe")}
    (tmp_path / "evaluation.json").write_text(json.dumps({"sections": sections}))
    parts = "".join(f'<section id="{name}">disc</section>' for name in walk_checks.PARTS)
    for page, message in (
        (parts.replace('id="map"', ""), "lacks map"),
        (parts + '<script src="https://example.org/x.js"></script>', r"loads https://example\.org/x\.js"),
        (parts.replace("disc", ""), "does not name the classes disc"),
    ):
        (tmp_path / "report.html").write_text(page)
        with pytest.raises(walk_checks.BrokenError, match=message):
            walk_checks.check_report(tmp_path, classes=["disc"], encoders=1)


def test_own_images_are_real_files_of_many_sizes(tmp_path):
    from PIL import Image

    script = Path(newcomer.HERE) / "walk_images.py"
    subprocess.run([sys.executable, script, tmp_path / "images"], check=True, capture_output=True)
    files = sorted((tmp_path / "images").rglob("*.*"))
    assert len(files) == walk_images.PER_CLASS * len(walk_images.CLASSES)
    opened = [Image.open(file) for file in files]
    assert {image.format for image in opened} == {"PNG", "JPEG"}
    assert len({image.size for image in opened}) > 100
    assert sorted({file.parent.name for file in files}) == newcomer.SHAPES
