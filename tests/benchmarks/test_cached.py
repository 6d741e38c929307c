"""The benchmark of cached gradients: its dropout, its probe, and a quick run in one process and in two."""

import json

import cached
import pytest
import torch


def test_the_mask_is_a_function_of_the_row():
    rows, x = torch.arange(4000), torch.ones(4000, 16, 1, 1)
    drop = cached.RowDropout(0.2, salt=1)
    whole = drop(x, rows)
    order = torch.randperm(4000)
    assert torch.equal(torch.cat([drop(x[part], rows[part]) for part in order.split(7)]), whole[order])
    assert whole.unique().tolist() == [0, 1.25]
    dropped = (whole == 0).double().flatten(1)
    assert dropped.mean(0) == pytest.approx([0.2] * 16, abs=0.03)  # of each channel over the rows
    together = [dropped.T, dropped[:-1].T @ dropped[1:] / 3999]  # channels of a row, and of neighbouring rows
    assert (together[0] @ dropped / 4000).fill_diagonal_(0.04).sub(0.04).abs().max() < 0.03
    assert together[1].sub(0.04).abs().max() < 0.03
    assert not torch.equal(cached.RowDropout(0.2, salt=2)(x, rows), whole)
    assert drop.eval()(x, rows) is x


@pytest.mark.slow
def test_one_process_and_two(monkeypatch, capsys):
    monkeypatch.setattr(cached, "probe", lambda way, *_: {"whole": 8.0, "chunks": 2.0}[way])
    found = {line.what: line for line in cached.main(["--quick"])}
    assert 0 < found["one process: error of the gradient, float64"].chunks < 1e-12
    for where in ("one process", "two processes"):
        assert found[f"{where}: seconds of a step"].chunks > 0
        errors = found[f"{where}: error of the gradient, float32"]
        assert 0 < errors.chunks < 5e-6
        assert 0 < errors.whole < 5e-6
    assert found["two processes: reductions of the gradient in a step"][1:3] == (1, 1)
    out = capsys.readouterr().out
    for where in ("one process", "two processes"):
        assert f"| {where}: extra memory, MB | 8.00 | 2.00 | 0.25 |  |" in out


def test_probe_measures_a_step():
    (extra,) = json.loads(cached.probed(json.dumps(["whole", cached.QUICK, 1])))
    assert extra is None or extra >= 0
