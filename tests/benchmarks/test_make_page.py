"""The benchmarks' page from a made-up CSV: figures, verdicts, commands; the same records give the same files."""

from dataclasses import replace

import gpu
import make_page
import pytest
import tables
from records import Record, append
from targets import DENSE, KERNELS, OURS, SHORT, Sizes, sizes_table, stored_table, targets

ANY = Record(
    question="every_size", provider="pml", backend="", N=8192, D=128, classes=100, views=2, dtype="float32",
    option="L_out", mode="both", status="ok", repetitions=5, p20=0.9, p50=1.0, p80=1.2, peak_extra_mb=None, value=None,
    device="cpu", hardware="A Machine", cpus=2, threads=2, torch="2.99", python="3.11.0", pml="2.9.0",
    pml_supcon="0.1.0", commit="0123456789ab", date="2026-11-21T10:00:00Z",
)  # fmt: skip


def record(name, p50, mb=None, **changes):
    provider, _, backend = name.partition("/")
    times = {"p20": None, "p50": None, "p80": None} if p50 is None else {"p20": p50 * 0.9, "p50": p50, "p80": p50 * 1.1}
    return replace(ANY, provider=provider, backend=backend, peak_extra_mb=mb, **times, **changes)


def met_records(ours=1.0):
    """A run that meets all targets, whose times of ours are multiplied by `ours`."""
    made = []
    for N in Sizes().compared:
        time = 1e-4 + N**2 * 1e-8
        times = {OURS: time * ours, "pml": time * 6 if N < 8192 else time * 18, DENSE: time * 1.5}
        made += [record(name, s, N * 0.01 if name == OURS else N**2 * 58e-6, N=N) for name, s in times.items()]
        made.append(record(OURS, time * 1.1 * ours, N=N, option="L_in"))
        made += [record(f"floor/{tile}", time * f, N=N) for tile, f in ((512, 0.9), (1024, 0.8)) if N >= 2048]
    made.append(record(OURS, time * 1.15 * ours, option="cap 4"))
    for N in Sizes().large:
        made += [record(OURS, N**2 * 1e-8 * ours, N * 0.002, N=N), record("floor/1024", N**2 * 9e-9, N=N)]
    made += [record(OURS, 6.5 * ours, D=2048), record("floor/1024", 5.2, D=2048)]
    for N in Sizes().first:
        for name, first in ((OURS, 0.05), ("pml", 0.2)):
            made.append(record(name, first, 25.0, N=N, mode="first call"))
            made.append(record(name, 0.01, 20.0, N=N, mode="second call"))
    made.append(record(KERNELS, 3e-4, N=64, mode="host"))
    checks = (KERNELS, "launches", 11), (OURS, "error of the loss", 1e-6), (OURS, "error of the gradient", 2e-6)
    made += [replace(record(name, None, mode=mode), value=value) for name, mode, value in checks]
    return made + [record(name, s, N=32, option="queue") for name, s in ((OURS, 0.002), ("pml", 0.005))]


def peers_records():
    return [record("pml", 4.0, 3000.0, question="peers"), record(OURS, 0.25, 90.0, question="peers")]


def page(tmp_path, made):
    results, docs = tmp_path / "results.csv", tmp_path / "docs"
    docs.mkdir(exist_ok=True)
    results.unlink(missing_ok=True)
    append(results, made)
    make_page.main(["--results", str(results), "--docs", str(docs)])
    files = {path.relative_to(docs).as_posix(): path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    return files.pop("benchmarks.md").decode(), files


def verdicts(made):
    return [(line.figure, line.verdict) for line in targets(made, Sizes())]


def size_row(made, N):
    return next(line for line in sizes_table(made, Sizes()).splitlines() if line.startswith(f"| {N} |"))


def test_targets_of_each_size():
    met = met_records()
    assert size_row(met, 16) == (
        "| 16 | 0.615 | 0.154 | 0.103 | 0.113 | 6.00 | 5.45 | 1.3 | pass, aim met | 1.50 | 0.9 | pass |"
    )
    assert size_row(met, "2,048").endswith("| 6.00 | 5.45 | 5 | pass | 1.50 | 1.2 | pass |")
    assert size_row(met, "4,096").endswith("| 6.00 | 5.45 |  |  | 1.50 | 1.2 | pass |")
    assert SHORT not in sizes_table(met, Sizes())
    slow = met_records(ours=1.3)  # 4.6 and 4.2 times faster than PML's; 1.15 than the dense formula
    assert size_row(slow, "2,048").endswith(f"| 4.62 | 4.20 | 5 | {SHORT} | 1.15 | 1.2 | {SHORT} |")
    assert size_row(slow, 128).endswith("| 4.62 | 4.20 | 1.3 | pass, aim met | 1.15 | 0.9 | pass |")
    slower_in = [replace(r, p50=r.p50 * 5) if r.option == "L_in" else r for r in met]
    assert size_row(slower_in, 16).endswith(f"| 6.00 | 1.09 | 1.3 | {SHORT} | 1.50 | 0.9 | pass |")  # the worse counts
    assert size_row([], 16).count(SHORT) == 2


def test_targets_that_are_met():
    assert verdicts(met_records()) == [
        ("1.25", "pass, aim met"),
        ("1.25", "pass, aim met"),
        ("1.10, 1.15", "pass"),
        ("47.51", "pass"),
        ("42.9 s, 131 MB", "pass"),
        ("1e-06, 2e-06", "pass"),
        ("2.00, 0.50", "pass"),
        ("40 ms, 5 MB", "pass"),
        ("40 ms, 5 MB", "pass"),
        ("0.300 ms, 11", "pass"),
    ]


def test_targets_that_are_missed():
    assert {verdict for _, verdict in verdicts([])} == {SHORT}
    assert [verdict for _, verdict in verdicts(met_records(ours=1.2))[:2]] == [SHORT, SHORT]
    changes = {
        2: {"option": "cap 4", "p50": 1.0},
        3: {"N": 8192, "D": 128, "option": "L_out", "peak_extra_mb": 300.0},
        4: {"N": 65536, "peak_extra_mb": 210.0},
        5: {"mode": "error of the gradient", "value": 2e-5},
        7: {"N": 128, "mode": "first call", "p50": 0.07},
        8: {"N": 4096, "mode": "first call", "peak_extra_mb": 31.0},
        9: {"mode": "launches", "value": 13},
    }
    for row, change in changes.items():
        figures = {name: change.pop(name) for name in ("p50", "peak_extra_mb", "value") if name in change}
        made = [
            replace(r, **figures)
            if r.name in (OURS, KERNELS) and (change | {"mode": change.get("mode", "both")}).items() <= vars(r).items()
            else r
            for r in met_records()
        ]
        assert [i for i, (_, verdict) in enumerate(verdicts(made)) if verdict == SHORT] == [row]
    failed = replace(record(OURS, None, N=65536), status="out of memory")
    assert verdicts([failed, *met_records()])[4] == ("out of memory", SHORT)


def test_past_rows_beside_pml():
    assert "| queue | 32 | 5.000 | 2.000 | 2.50 |" in stored_table(met_records(), Sizes())


def test_gpu_targets():
    same = {"question": "gpu", "device": "cuda", "dtype": "bfloat16"}
    fast = []
    for N, factor in ((16384, 1), (65536, 16)):
        fast.append(record(gpu.FUSED, 3e-4 * factor, 2.0 * N / 1000, N=N, **same))
        fast.append(record(gpu.PLAIN, 0.001 * factor, N=N, **same))
        # 8,192^3 multiply-adds in 1.25 ms: 880 TFLOP/s; floor B of 65,536 rows is then 3.125 ms
        fast.append(record("mm/8192", 1.25e-3, N=N, **same))
    fast += [replace(r, dtype="float16") for r in fast if r.N == 65536]
    fast.append(record(gpu.FUSED, 40.0, 2.0 * 1048.576, N=1048576, **same))
    lines = gpu.targets(fast, gpu.Sizes())
    assert [line.figure for line in lines] == [
        "3.33",
        "3.33",
        "78% of A, 65% of B",
        "78% of A, 65% of B",
        "40.0 s, 2,097 MB, N to the 1.00",
    ]
    assert {line.verdict for line in lines} == {"pass"}
    slow = [replace(r, p50=r.p50 * 2) if r.name == gpu.FUSED else r for r in fast[:-1]]
    assert {line.verdict for line in gpu.targets(slow, gpu.Sizes())} == {SHORT}


def test_page_has_the_last_run_of_the_targets(tmp_path):
    later = [replace(r, date="2026-11-22T10:00:00Z") for r in met_records(ours=1.2)]
    text, _ = page(tmp_path, [*met_records(), *later])
    assert "| 1.50 | **falls short** |" in text
    assert "| 1.25 | pass" not in text
    assert "4 targets fall short." in text
    assert "`python benchmarks/every_size.py`, 2026-11-22 at commit 0123456789ab; A Machine, 2 CPU cores" in text
    assert "All targets are met." in page(tmp_path, met_records())[0]


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
    text, files = page(tmp_path, met_records())
    assert list(files) == ["figures/every-size-cpu.svg"]
    assert "](figures/every-size-cpu.svg)" in text
    assert "| `pml_supcon/auto` | 2,048 to 65,536 | 2.00 | 0." in text
    assert "| `dense/eager` | 2,048 to 8,192 | 2.00 | 2.00 |" in text
    assert page(tmp_path, met_records())[1] == files
    assert page(tmp_path, met_records(ours=1.2))[1] != files
    others = [record(OURS, 70.0, D=2048), record(OURS, 9.0, option="L_in")]
    assert page(tmp_path, met_records() + others)[1] == files  # neither is a point of the curves


def test_page_without_records_says_which_command_writes_them(tmp_path):
    text, files = page(tmp_path, [])
    assert not files
    assert "`python benchmarks/every_size.py`" in text
    assert "no GPU was available" in text
    assert "`python benchmarks/gpu.py --device cuda`" in text
    text, _ = page(tmp_path, met_records())
    assert text.count("No records yet") == 1
    assert "no GPU was available" in text


def test_numbers_of_tables():
    assert [tables.shown(None), tables.shown(1234.567, 1, " MB")] == ["-", "1,234.6 MB"]
    assert [tables.milliseconds(value) for value in (None, 0.00123, 0.0123, 0.123, 12.3)] == [
        "-", "1.230", "12.30", "123", "12,300"]  # fmt: skip
    assert tables.ratio(3.0, None) is tables.ratio(None, 3.0) is tables.exponent([(2, 8.0)]) is None
    assert tables.exponent([(2, 8.0), (4, None), (8, 512.0)]) == pytest.approx(3)
