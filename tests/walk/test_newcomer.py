"""The walk finds its commands on the pages, and reports a missing command or result (the walk itself: `make walk`)."""

import json
import subprocess
from pathlib import Path

import pytest
from helpers import newcomer, walk_checks
from helpers.walk_checks import BrokenError

ROOT = Path(__file__).resolve().parents[2]


def test_pages_have_the_commands_of_the_walk():
    for step in newcomer.STEPS:
        newcomer.find_command(ROOT, step)
    original, shorter = newcomer.SHORTER
    assert original in newcomer.OWN_TRAIN
    assert f"--epochs {newcomer.EPOCHS} " in shorter


def test_only_bash_blocks_and_inline_code_are_commands():
    text = "`a b`\n```bash\n# comment\nc d  # why\ne \\\n  f\n```\n```text\ng h\n```\n"
    assert newcomer.commands_of(text, "page") == ["c d", "e f", "a b"]


BROKEN = {
    "true": "Expected one run under runs/, but found 0",  # a step that leaves nothing
    "echo no such thing && exit 3": "status 2, expected 0, after",  # a step that fails
    "": "Expected README.md to have the command\n    make train\nbut it has",  # a command that the page lacks
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", BROKEN)
def test_a_broken_step_is_reported(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "README.md").write_text("```bash\nmake train\n```\n" if recipe else "```bash\nmake all\n```\n")
    (tmp_path / "Makefile").write_text(f"train:\n\t@{recipe}\n")
    name = ["-c", "user.name=walk", "-c", "user.email=walk@example.org"]
    for command in (["init", "--quiet"], ["add", "."], [*name, "commit", "--quiet", "-m", "pages"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert newcomer.main(["--source", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert BROKEN[recipe] in printed
    assert printed.splitlines()[-1].startswith("The walk broke at [1/")


def breaks(message, check, *arguments, **options):
    with pytest.raises(BrokenError, match=message):
        check(*arguments, **options)


def test_runs_are_checked(tmp_path):
    for name in walk_checks.LEFT:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    metrics = {"retrieval/precision_at_1": 0.99, "linear_probe/top1": 0.2}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    walk_checks.check_run(tmp_path, at_least=0.2)
    breaks("linear_probe/top1 of .* is 0.2, expected at least 0.9", walk_checks.check_run, tmp_path, at_least=0.9)
    (tmp_path / "gallery.png").unlink()
    breaks("lacks gallery.png", walk_checks.check_run, tmp_path, at_least=0.2)
    rows = [{"epoch": 1 + step // 4, "step": step, "loss": 1 / step} for step in range(1, 8)]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(row) + "\n" for row in rows))
    walk_checks.check_resumed(tmp_path, rows[:4], epochs=2)
    breaks("repeated", walk_checks.check_resumed, tmp_path, [{**row, "loss": 9} for row in rows[:4]], epochs=2)
    breaks("has 2 epochs, expected 3", walk_checks.check_resumed, tmp_path, rows[:4], epochs=3)
    history.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] != 3))
    breaks("has the steps", walk_checks.check_resumed, tmp_path, rows[:2], epochs=2)


def test_reports_are_checked(tmp_path):
    sections = {name: {"metrics": {"top1": 0.9}} for name in ("retrieval", "linear_probe")}
    (tmp_path / "evaluation.json").write_text(json.dumps({"sections": sections}))
    parts = "".join(f'<section id="{name}">disc</section>' for name in walk_checks.PARTS)
    (tmp_path / "report.html").write_text(parts)
    walk_checks.check_report(tmp_path, classes=["disc"], encoders=1)
    for page, message in (
        (parts.replace('id="map"', ""), "lacks map"),
        (parts + '<script src="https://example.org/x.js"></script>', "loads https://example.org/x.js"),
        (parts.replace("disc", "") + "<script>'disc'</script>", "does not name the classes disc"),
    ):
        (tmp_path / "report.html").write_text(page)
        breaks(message, walk_checks.check_report, tmp_path, classes=["disc"], encoders=1)
