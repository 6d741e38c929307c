"""Figures and tables of records, for the scripts' output and the page."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from records import OK, Record, keep_table

from pml_supcon.metrics.intervals import mean_interval


def find(records: Iterable[Record], name: str, *, mode: str = "both", **fields: Any) -> Record | None:
    """Return the first record of a provider ("provider/backend") with these fields, or None."""
    for record in records:
        if (record.name, record.mode) == (name, mode) and all(getattr(record, k) == v for k, v in fields.items()):
            return record
    return None


def seconds(records: Iterable[Record], name: str, **fields: Any) -> float | None:
    """Return the median seconds of a provider's step, None where it was not measured."""
    return getattr(find(records, name, **fields), "p50", None)


def megabytes(records: Iterable[Record], name: str, **fields: Any) -> float | None:
    """Return the peak memory of a provider's step above its inputs, None where it was not measured."""
    return getattr(find(records, name, **fields), "peak_extra_mb", None)


def floor_seconds(records: Iterable[Record], *, products: int = 5, **fields: Any) -> float | None:
    """Return the seconds of the floor, None where it was not measured.

    On a CPU it is the floor in its fastest tile size. On a GPU it is ``products * N^2 D`` floating-point operations at
    the measured rate of `torch.mm`.
    """
    found = [r for r in records if r.p50 is not None and all(getattr(r, k) == v for k, v in fields.items())]
    times = [r.p50 or 0.0 for r in found if r.provider == "floor"]
    # the rate is 2 side^3 FLOP over the seconds of one product
    times += [products * r.N**2 * r.D / (2 * int(r.backend) ** 3) * (r.p50 or 0.0) for r in found if r.provider == "mm"]
    return min(times, default=None)


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    """Return the quotient, None where either is missing."""
    return numerator / denominator if numerator is not None and denominator else None


def exponent(points: Iterable[tuple[float, float | None]]) -> float | None:
    """Return the slope of a straight line through points in log-log scale, None for fewer than two."""
    logs = [(math.log(x), math.log(y)) for x, y in points if y]
    return statistics.linear_regression(*zip(*logs, strict=True)).slope if len(logs) > 1 else None


def shown(value: float | None, digits: int = 2, unit: str = "") -> str:
    """Format a number with its unit, None as a dash."""
    return "-" if value is None else f"{value:,.{digits}f}{unit}"


def mean_with_interval(values: Sequence[float], digits: int, *, sign: str = "") -> tuple[str, str]:
    """Format a mean and its 95% interval (Student's), which is a dash for one value.

    Args:
        values: one value for each seed, or paired differences.
        digits: decimals.
        sign: "+" shows it for positive numbers too.
    """
    form = f"{sign}.{digits}f"
    ends = [f"{end:{form}}" for end in mean_interval(values)] if len(values) > 1 else []
    return f"{statistics.mean(values):{form}}", " to ".join(ends) or "-"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Return a Markdown table; all columns after the first `text_columns` are numbers, aligned right."""
    ruler = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ruler, *rows))


def publish(
    name: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, quick: bool, text_columns: int = 1
) -> None:
    """Print a table with columns of its own and, unless the run is quick, keep it as the record of a script."""
    print(markdown(header, rows, text_columns=text_columns))
    if not quick:
        keep_table(name, header, rows)


def measurements(records: Sequence[Record], *, against: str | None = None) -> str:
    """Return a Markdown table of measurements: the times of a step and its memory above the inputs.

    Args:
        records: the measurements, in the order of the rows.
        against: an option. With it, the last column is the time relative to the same provider under this option.
    """
    header = ["provider", "option", "N", "D", "forward, ms", "backward, ms", "both, ms", "20% to 80%", "extra, MB"]
    header += [f"over {against}"] if against else []
    rows = []
    for record in (record for record in records if record.mode == "both"):
        same = {name: getattr(record, name) for name in ("N", "D", "option", "dtype")}
        option = record.option if record.dtype == "float32" else f"{record.option}, {record.dtype}"
        cells = [f"`{record.name}`", option, f"{record.N:,}", f"{record.D:,}"]
        if record.status != OK or record.p50 is None or record.p20 is None or record.p80 is None:
            cells += [record.status] + [""] * (len(header) - len(cells) - 1)
        else:
            halves = (seconds(records, record.name, mode=mode, **same) for mode in ("forward", "backward"))
            cells += [*map(milliseconds, halves), milliseconds(record.p50)]
            cells += [f"{milliseconds(record.p20)} to {milliseconds(record.p80)}", shown(record.peak_extra_mb, 1)]
            if against:
                base = seconds(records, record.name, **(same | {"option": against}))
                cells += [shown(ratio(record.p50, base))]
        rows.append(cells)
    return markdown(header, rows, text_columns=2)


def milliseconds(value: float | None) -> str:
    """Format seconds as milliseconds, with about three digits."""
    digits = 3 if value is not None and value < 0.01 else 2 if value is not None and value < 0.1 else 0
    return "-" if value is None else shown(value * 1e3, digits)
