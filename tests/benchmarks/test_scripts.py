"""The benchmarks' scripts run on tiny sizes, with and without their optional parts."""

import sys
from pathlib import Path

import every_size
import gpu
import options
import peers
import pytest
import records
import torch
from harness import Run


@pytest.mark.parametrize("script", [every_size, options, gpu])
def test_scripts_run_through(script, tmp_path, no_probe, monkeypatch, capsys):
    monkeypatch.setattr(every_size, "first_two_steps", lambda *_: ([[0.5, 0.4]], [30.0, 20.0]))  # fresh processes
    monkeypatch.setattr(every_size, "host_time", lambda *_: ([3e-4], 11))
    path = tmp_path / "results.csv"
    made = script.main(["--quick", "--device", "cpu", "--output", str(path)])
    assert len(records.read(path)) == len(made)
    assert {record.question for record in made} == {script.__name__}
    assert len({record.date for record in made}) == 1
    assert {r.name for r in made if r.status != "ok"} <= {"pml_supcon/triton", "siglip-kernel", "memeff"}
    assert {"every_size": "| 16 |", "gpu": "N = 512 in one step"}.get(script.__name__, "| `pml_supcon/auto` |") in (
        capsys.readouterr().out
    )


def test_errors_at_the_largest_size_are_against_float64(monkeypatch):
    case = every_size.Case(200, D=16, classes=7)
    assert all(0 < error < 1e-5 for error in every_size.errors(case))
    right, wrong_by = every_size.supcon_loss, 1.001

    def wrong(*arguments, backend="auto", **options):
        found = right(*arguments, backend=backend, **options)
        return found if backend == "reference" else found._replace(losses=found.losses * wrong_by)

    monkeypatch.setattr(every_size, "supcon_loss", wrong)
    assert every_size.errors(case) == pytest.approx((1e-3, 1e-3), rel=0.1)


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
