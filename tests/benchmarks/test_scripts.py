"""The benchmarks' scripts run on tiny sizes, with and without their optional parts."""

import sys
from pathlib import Path

import expected_targets
import gpu
import mined
import options
import peers
import pytest
import records
import scaling
import torch
from harness import Run


@pytest.mark.parametrize("script", [expected_targets, options, scaling, mined, gpu])
def test_scripts_run_through(script, tmp_path, no_probe, capsys):
    path = tmp_path / "results.csv"
    made = script.main(["--quick", "--device", "cpu", "--output", str(path)])
    assert len(records.read(path)) == len(made)
    assert {record.question for record in made} == {script.__name__}
    assert len({record.date for record in made}) == 1
    assert {r.name for r in made if r.status != "ok"} <= {"pml_supcon/triton"}
    out = capsys.readouterr().out
    assert ("| N = 1,024" if script in (expected_targets, gpu) else "| `pml_supcon/auto` |") in out


def test_peers_without_a_compiler(tmp_path, no_probe, monkeypatch, capsys):
    def no_compiler(*_, **__):
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setitem(sys.modules, "lightly.loss", None)
    made = peers.main(["--quick", "--output", str(tmp_path / "results.csv")])
    found = {record.name: record.status for record in made}
    assert found.pop("dense/compiled") == "failed: RuntimeError: No working C++ compiler found"
    assert found.pop("lightly").startswith("skipped: lightly is not installed")
    assert set(found.values()) == {"ok"}


def test_a_quick_run_leaves_the_records_alone_and_cuda_needs_a_device(monkeypatch, capsys):
    assert Run.of("test", None, ["--quick"]).output is None
    assert Run.of("test", None, []).output == Path(records.__file__).parent / "results.csv"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        Run.of("test", None, ["--device", "cuda"])
    assert "this machine has no CUDA device" in capsys.readouterr().err
