"""The two walks of `docs/architecture.md`, traced, and the imports and asserts that other checks do not see."""

import ast
import inspect
import re
import sys
from pathlib import Path

import pytest

import pml_supcon
from pml_supcon.experiments import app as reproduce
from pml_supcon.experiments import runner
from pml_supcon.training import loop, train
from pml_supcon.training.app import main

PACKAGE = Path(pml_supcon.__file__).parent
PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
TINY = ["--max-train", "64", "--max-test", "32", "--batch-size", "32", "--epochs", "1", "--warmup-epochs", "0"]
TINY += ["--encoder-args.channels", "[8, 8, 8, 8]", "--head-dim", "16"]


def in_package(code):
    """Return the path of a code object's file in the package, or None."""
    path = Path(code.co_filename)
    return str(path.relative_to(PACKAGE)) if path.is_relative_to(PACKAGE) else None


def test_the_walk_of_a_batch_passes_the_files_of_the_page(tmp_path, monkeypatch):
    run_stage, files = loop.run_stage, set()

    def profile(frame, event, value):
        if event == "call" and (path := in_package(frame.f_code)):
            files.add(path)

    def traced(stage, *arguments, **options):
        sys.setprofile(profile)
        try:
            views, labels = next(iter(stage.loader))
            stage.criterion(stage.network(views), labels)
        finally:
            sys.setprofile(None)
        return run_stage(stage, *arguments, **options)

    monkeypatch.setattr(train, "run_stage", traced)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")  # a GPU would choose the kernels
    main([*TINY, "--output", str(tmp_path / "run")])
    walk, left_out = PAGE.read_text().split("## The walk of a batch")[1].split("## ")[0].split("Left out")
    listed, others = (set(re.findall(r"`([\w/]+\.py)`", text)) for text in (walk, left_out))
    assert files == listed | others
    assert len(listed) <= 20
    assert not listed & others


def test_only_the_command_imports_the_package_by_a_string():  # the import contract does not see such imports
    found = {path for path in PACKAGE.rglob("*.py") if re.search(r'import_module\(f?"pml_supcon', path.read_text())}
    assert found == {PACKAGE / "cli.py"}


def test_the_walk_of_reproduce_has_the_levels_of_the_page(tmp_path, monkeypatch):
    levels = []

    class ReachedError(Exception):
        pass

    def reached(*arguments, **options):
        frames = [frame.frame.f_code for frame in reversed(inspect.stack()[1:])]
        levels.extend(code.co_qualname for code in frames if in_package(code))
        raise ReachedError

    monkeypatch.setattr(runner, "candidates", lambda *arguments: {})  # no tuning: the first training is a seed's
    monkeypatch.setattr(loop, "take_step", reached)
    with pytest.raises(ReachedError):
        reproduce.main(["losses", "--seeds", "0", "--runs", str(tmp_path), *TINY])
    walk = PAGE.read_text().split("## The walk of a run")[1].split("## ")[0]
    chain = re.search(r"`main`.*`take_step`", walk, re.S)[0]
    assert [*levels, "take_step"] == re.findall(r"`([\w.]+)`", chain)
    assert len(levels) + 1 <= 9


def test_asserts_only_tell_the_type_checker_that_a_value_is_given():
    """`python -O` (PYTHONOPTIMIZE=1) removes them: a check of input among them would vanish."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assert):
                assert ast.unparse(node.test).endswith(" is not None"), f"{path}:{node.lineno}"
