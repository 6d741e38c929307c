"""Small made data sets with labels of every kind, as Parquet, as a CSV beside images, and as nested folders."""

import csv

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """The package `datasets`, with its cache in the test's folder."""
    module = pytest.importorskip("datasets")
    monkeypatch.setattr(module.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    module.disable_progress_bars()
    return module


def images(count, side=8):
    """Return images of random pixels, whose red mean is the row."""
    noise = np.random.default_rng(0).integers(0, 50, (count, side, side, 3), dtype=np.uint8)
    noise[..., 0] = np.arange(count)[:, None, None] % 256
    return [Image.fromarray(pixels) for pixels in noise]


def write_parquet(datasets, folder, features=None, **splits):
    """Write splits, each a mapping from columns to values, with images; return the specification of the data."""
    folder.mkdir(parents=True)
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        rows = datasets.Dataset.from_dict({"image": images(count), **columns})
        for name, feature in {"image": datasets.Image(), **(features or {})}.items():
            rows = rows.cast_column(name, feature)
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return f"hf:{folder}"


def write_csv(folder, **columns):
    """Write images beside a `metadata.csv` with these columns; return the specification of the data."""
    folder.mkdir(parents=True)
    count = len(next(iter(columns.values())))
    for index, image in enumerate(images(count)):
        image.save(folder / f"{index:03}.png")
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", *columns])
        writer.writerows(zip([f"{index:03}.png" for index in range(count)], *columns.values(), strict=True))
    return f"hf:{folder}"


def write_nested(folder, counts):
    """Write `folder/GROUP/CLASS/*` for counts of images by `GROUP/CLASS`; return the specification of the data."""
    written = iter(images(sum(counts.values())))
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for index in range(count):
            next(written).save(folder / name / f"{index:03}.png")
    return f"imagefolder:{folder}?depth=2"
