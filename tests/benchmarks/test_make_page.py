"""The benchmarks' page from a made-up CSV: figures, verdicts, commands; the same records give the same files."""

from dataclasses import replace

import gpu
import make_page
import pytest
import scaling
import tables
from expected_targets import SHORT, Sizes, targets
from records import Record, append

OURS = "pml_supcon/auto"
ANY = Record(
    question="expected_targets", provider="pml", backend="", N=8192, D=128, classes=100, views=2, dtype="float32",
    option="L_out", mode="both", status="ok", repetitions=5, p20=0.9, p50=1.0, p80=1.2, peak_extra_mb=None,
    device="cpu", hardware="A Machine", cpus=2, threads=2, torch="2.99", python="3.11.0", pml="2.9.0",
    pml_supcon="0.1.0", commit="0123456789ab", date="2026-11-21T10:00:00Z",
)  # fmt: skip


def record(name, p50, mb=None, **changes):
    provider, _, backend = name.partition("/")
    times = {"p20": None, "p50": None, "p80": None} if p50 is None else {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.1}
    return replace(ANY, provider=provider, backend=backend, peak_extra_mb=mb, **times, **changes)


def met_records(ours=0.5, large_mb=600.0):
    """A run that meets all targets: N = 8,192 takes 0.5 s."""
    return [
        record(OURS, ours, 100.0),
        record("pml", 9.0, 3000.0),
        record("floor/512", 0.4),
        record("floor/1024", 0.45),
        record(OURS, 0.6, option="L_in"),
        record(OURS, 0.65, option="cap 4"),
        record(OURS, 0.004, N=512),
        record("pml", 0.02, N=512),
        record(OURS, 9.0, D=2048),
        record("floor/512", 7.5, D=2048),
        record("floor/1024", 6.0, D=2048),
        record(OURS, 0.03, 30.0, N=2048),
        record(OURS, 32.0, large_mb, N=65536),
    ]


def scaling_records():
    made = [record("pml", N**2 * 1e-7, N**2 * 46e-6, N=N) for N in (2048, 4096, 8192)]
    for N in (2048, 4096, 8192, 16384):
        made += [record(OURS, N**2 * 1e-8, N * 0.01, N=N), record("floor/512", N**2 * 8e-9, 2.0, N=N)]
        made += [record("floor/1024", N**2 * 7e-9, N=N)]
    return [replace(r, question="scaling") for r in made]


def page(tmp_path, made):
    results, docs = tmp_path / "results.csv", tmp_path / "docs"
    docs.mkdir(exist_ok=True)
    results.unlink(missing_ok=True)
    append(results, made)
    make_page.main(["--results", str(results), "--docs", str(docs)])
    files = {path.relative_to(docs).as_posix(): path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    return files.pop("benchmarks.md").decode(), files


def verdicts(made):
    lines = targets(made, Sizes(), OURS)
    return [(line.figure, line.verdict) for line in lines]


def test_targets_that_are_met():
    assert verdicts(met_records()) == [
        ("18.00", "pass"),
        ("30.00", "pass"),
        ("1.25", "pass, aim met"),
        ("32.0 s, 600 MB", "pass"),
        ("1.20, 1.30", "pass"),
        ("0.20", "pass"),
        ("1.50", "pass"),
        ("2.01, 0.86", "pass"),
    ]


def test_targets_that_are_missed():
    slow = verdicts(met_records(ours=0.8, large_mb=900.0))
    assert [slow[i] for i in (0, 2, 3)] == [("11.25", SHORT), ("2.00", SHORT), ("32.0 s, 900 MB", SHORT)]
    assert verdicts(met_records(ours=0.45))[0] == ("20.00", "pass, aim met")
    made = met_records()
    made[5] = record(OURS, 0.75, option="cap 4")
    made[7] = record("pml", 0.003, N=512)
    made[10] = record("floor/1024", 4.0, D=2048)
    assert verdicts(made)[4:7] == [("1.20, 1.50", SHORT), ("1.33", SHORT), ("2.25", SHORT)]
    for s, mb, figure in ((64.0, 1200.0, "2.22, 1.07"), (32.0, 2400.0, "2.01, 1.29")):  # time, memory
        assert verdicts([*made[:-1], record(OURS, s, mb, N=65536)])[-1] == (figure, SHORT)
    assert {verdict for _, verdict in verdicts([])} == {SHORT}
    failed = replace(record(OURS, None, N=65536), status="out of memory")
    assert verdicts([*met_records()[:-1], failed])[3] == ("out of memory", SHORT)


def test_gpu_targets():
    fast = [
        record(name, seconds, mb, N=N, question="gpu", device="cuda")
        for N, factor in ((16384, 1), (65536, 16))
        for name, seconds, mb in (
            (gpu.FUSED, 0.01 * factor, 2.0 * N / 1000),
            (gpu.PLAIN, 0.04 * factor, None),
            ("floor/2048", 0.006 * factor, None),
            ("floor/4096", 0.005 * factor, None),
        )
    ]
    fast.append(record(gpu.FUSED, 40.0, 2.0 * 1048.576, N=1048576, question="gpu", device="cuda"))
    lines = gpu.targets(fast, gpu.Sizes())
    assert [line.figure for line in lines] == ["4.00", "50%", "4.00", "50%", "40.0 s, 2,097 MB, N to the 1.00"]
    assert {line.verdict for line in lines} == {"pass"}
    slow = [replace(r, p50=r.p50 * 2) if r.name == gpu.FUSED else r for r in fast[:-1]]
    assert {line.verdict for line in gpu.targets(slow, gpu.Sizes())} == {SHORT}


def test_page_has_the_last_run_of_the_targets(tmp_path):
    later = [replace(r, date="2026-11-22T10:00:00Z") for r in met_records(ours=0.8)]
    text, _ = page(tmp_path, [*met_records(), *later])
    assert "| 11.25 | **falls short** |" in text
    assert "| 18.00 |" not in text
    assert "2 of 8 fall short." in text
    assert "`python benchmarks/expected_targets.py`, 2026-11-22 at commit 0123456789ab; A Machine, 2 CPU cores" in text
    assert "All are met." in page(tmp_path, met_records())[0]


def test_page_shows_the_latest_of_each_measurement(tmp_path):
    old = record("pml", 5.0, question="peers")
    made = [old, record(OURS, 0.25, 90.0, question="peers"), record("pml", 4.0, 3000.0, question="peers")]
    made.append(replace(record("dense/compiled", None, question="peers"), status="failed: no compiler"))
    made += [record("pml", s, question="peers", mode=mode) for s, mode in ((1.5, "forward"), (2.5, "backward"))]
    made += [record(OURS, 0.5, question="options"), record(OURS, 0.6, question="options", option="L_in")]
    text, _ = page(tmp_path, made)
    assert "| `pml_supcon/auto` | L_in | 8,192 | 128 | - | - | 600 | 540 to 660 | - | 1.20 |" in text
    assert "| `pml` | L_out | 8,192 | 128 | 1,500 | 2,500 | 4,000 | 3,600 to 4,400 | 3,000.0 |" in text
    assert "| `pml_supcon/auto` | L_out | 8,192 | 128 | - | - | 250 | 225 to 275 | 90.0 |" in text
    assert "| `dense/compiled` | L_out | 8,192 | 128 | failed: no compiler |  |  |  |  |" in text
    assert "5,000" not in text


def test_figure_and_exponents(tmp_path):
    text, files = page(tmp_path, scaling_records())
    assert list(files) == ["figures/scaling-cpu.svg"]
    assert "](figures/scaling-cpu.svg)" in text
    assert "| `pml_supcon/auto` | 2,048 to 16,384 | 2.00 | 1.00 |" in text
    assert "| `pml` | 2,048 to 8,192 | 2.00 | 2.00 |" in text
    wide = [replace(record(OURS, 70.0, D=scaling.WIDE), question="scaling")]
    assert page(tmp_path, scaling_records())[1] == files
    assert page(tmp_path, scaling_records()[:-1])[1] != files
    assert page(tmp_path, scaling_records() + wide)[1] == files  # another width is no point of the curves


def test_page_without_records_says_which_command_writes_them(tmp_path):
    text, files = page(tmp_path, [])
    assert not files
    assert "`python benchmarks/expected_targets.py`" in text
    assert "no GPU was available" in text
    assert "`python benchmarks/gpu.py --device cuda`" in text
    text, _ = page(tmp_path, met_records())
    assert text.count("No records yet") == 1
    assert "no GPU was available" in text


def test_numbers_of_tables():
    assert [tables.shown(None), tables.shown(1234.567, 1, " MB")] == ["-", "1,234.6 MB"]
    assert [tables.milliseconds(value) for value in (None, 0.00123, 0.123, 12.3)] == ["-", "1.23", "123", "12,300"]
    assert tables.ratio(3.0, None) is tables.ratio(None, 3.0) is tables.exponent([(2, 8.0)]) is None
    assert tables.exponent([(2, 8.0), (4, None), (8, 512.0)]) == pytest.approx(3)
