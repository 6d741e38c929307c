"""The first run on a GPU: its checks run on the CPU, and a failing one stops no other."""

import json
import sys

import first_gpu_run
import pytest
from first_gpu_run import Check, run

from pml_supcon.functional.supcon import triton as backend

NAMES = ["numerics", "real", "shapes", "few_anchors", "dtypes", "sanitizer", "no_compiler", "train", "peers"]


def code(text, **options):
    return Check([sys.executable, "-c", text], limit_s=options.pop("limit_s", 60), variables=options)


def test_outcomes(tmp_path):
    assert run("fine", code("print('here')"), tmp_path).startswith("ok, ")
    assert (tmp_path / "fine.txt").read_text() == "here\n"
    assert run("bad", code("exit(3)"), tmp_path).startswith("failed with exit status 3, ")
    assert run("slow", code("import time; time.sleep(30)", limit_s=1), tmp_path).startswith("over 1 s; see ")
    assert run("other", code("", limit_s=1)._replace(skipped="no GPU"), tmp_path) == "skipped: no GPU"
    assert run("variables", code("import os; assert os.environ['A'] == 'b'", A="b"), tmp_path).startswith("ok")


def test_checks_are_those_of_the_docstring(tmp_path):
    assert list(first_gpu_run.all_checks("cuda", False, tmp_path)) == NAMES
    assert all(f"- {name}:" in first_gpu_run.__doc__ for name in NAMES)


def test_unknown_checks_and_a_missing_gpu_are_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, message in (
        ([], "no CUDA device"),
        (["--device", "cpu", "--only", "x"], "--only: expected some of"),
    ):
        with pytest.raises(SystemExit):
            first_gpu_run.main([*arguments, "--output", str(tmp_path)])
        assert message in capsys.readouterr().err


def test_one_check_on_the_cpu(tmp_path, capsys):
    outcomes = first_gpu_run.main(
        ["--quick", "--device", "cpu", "--only", "no_compiler", "real", "--output", str(tmp_path)]
    )
    assert outcomes["no_compiler"].startswith("ok"), (tmp_path / "no_compiler.txt").read_text()
    assert outcomes["real"] == "skipped: needs a GPU"
    assert json.loads((tmp_path / "summary.json").read_text())["outcomes"] == outcomes


@pytest.mark.slow
@pytest.mark.skipif(not backend.INSTALLED, reason="needs triton")
def test_all_other_checks_on_the_cpu(tmp_path):
    """Leave out the two scripts that have tests of their own."""
    names = [name for name in NAMES if name not in ("train", "peers")]
    outcomes = first_gpu_run.main(["--quick", "--device", "cpu", "--only", *names, "--output", str(tmp_path)])
    assert list(outcomes) == names
    assert {name for name, outcome in outcomes.items() if not outcome.startswith("ok, ")} == {"real"}, outcomes
