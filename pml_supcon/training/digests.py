"""Digests of the files of a run, which are checked where they are read; no damaged file is scored.

``digests.json`` of a finished run holds the bytes and the SHA-256 of each file that a program reads. It is written
before ``metrics.json``, the last file. A JSON record may hold a digest of itself (``sealed``).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pml_supcon._files import check_file, write_atomic

CONFIG, HISTORY, METRICS, ENCODER = "config.yaml", "history.jsonl", "metrics.json", "encoder"
HEAD, CLASSIFIER, CONTINUAL = "head.safetensors", "classifier.safetensors", "continual.json"
DIGESTS, SEAL, PLACE = "digests.json", "sha256", "written_as"


class DamageError(ValueError):
    """An error for a file that is not what was written; it names the file, and how to continue."""


def digest_of_file(file: Path, size: int | None = None) -> dict[str, Any]:
    """Return the bytes and the SHA-256 of a file, or of its first ``size`` bytes."""
    if size is not None:
        with file.open("rb") as opened:
            return digest_of_bytes(opened.read(size))
    with file.open("rb") as opened:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(opened, "sha256").hexdigest()}


def digest_of_bytes(content: bytes) -> dict[str, Any]:
    """Return the number of bytes and their SHA-256."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def check_digest(file: Path, expected: Mapping[str, Any], advice: str, *, first: bool = False) -> None:
    """Raise DamageError unless a file has the expected digest; with ``first`` it may have more bytes after those."""
    came = "no file"
    if file.is_file():
        digest = digest_of_file(file, expected["bytes"] if first else None)
        if digest == expected:
            return
        same = digest["bytes"] == expected["bytes"]
        came = f"{digest['bytes']} bytes{' with another digest' if same else ''}"
    raise DamageError(f"{file} is not what was written: expected {expected['bytes']} bytes, but got {came}. {advice}")


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON record with a digest of its fields."""
    return {**record, SEAL: _seal(record)}


def read_sealed(file: Path, advice: str) -> dict[str, Any]:
    """Return a record of ``sealed`` without its digest; raise DamageError if it was changed or cannot be read."""
    try:
        check_file(file)
        record = json.loads(file.read_bytes())
        if record.pop(SEAL) != _seal(record):
            raise ValueError("its digest is another one")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise DamageError(f"{file} is not what was written ({reason}). {advice}") from error
    return dict(record)


def write_own(file: Path, record: Mapping[str, Any]) -> None:
    """Write a sealed record with the name of its file and of the file's folder, for ``read_own``."""
    text = json.dumps(sealed({**record, PLACE: _place(file)}), indent=2, allow_nan=False) + "\n"
    write_atomic(file, text)


def read_own(file: Path, advice: str) -> dict[str, Any]:
    """Return a record of ``write_own``; raise DamageError if it is damaged, or was written as another file."""
    record = read_sealed(file, advice)
    if (place := record.pop(PLACE, None)) != _place(file):
        raise DamageError(f"{file} is not what was written: expected a record of this run, but got {place}. {advice}")
    return record


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the digests of a finished run, then its record ``metrics.json``: a run with metrics is complete."""
    text = json.dumps(record, indent=2) + "\n"
    weights = [f"{ENCODER}/{file.name}" for file in sorted((folder / ENCODER).iterdir()) if not _hidden(file)]
    names = [name for name in (CONFIG, HISTORY, *weights, HEAD, CLASSIFIER, CONTINUAL) if (folder / name).is_file()]
    files = {name: digest_of_file(folder / name) for name in names} | {METRICS: digest_of_bytes(text.encode())}
    write_atomic(folder / DIGESTS, json.dumps(sealed({"files": files}), indent=2) + "\n")
    write_atomic(folder / METRICS, text)


def check_finished(folder: Path) -> None:
    """Raise unless a run is finished and all its files are what was written.

    Raises:
        FileNotFoundError: If the run is not finished.
        DamageError: If a file was changed, removed, or put there from another run.
    """
    if not (folder / METRICS).exists():
        raise FileNotFoundError(
            f"Expected a finished run, but {folder} has no {METRICS}: continue it with `--output {folder} --resume`"
        )
    advice = f"Remove {folder / METRICS}, and --resume writes it again from the last checkpoint"
    files = read_sealed(folder / DIGESTS, advice)["files"]
    for name, digest in files.items():
        check_digest(folder / name, digest, advice)
    for name in (HEAD, CLASSIFIER):
        if name not in files and (folder / name).exists():
            raise DamageError(f"{folder / name} was not written by this run: remove it")


def check_encoder_folder(folder: Path) -> None:
    """Raise DamageError if a folder is the encoder of a finished run and was changed; other folders have no digests."""
    if folder.resolve().name == ENCODER and (folder.resolve().parent / DIGESTS).exists():
        check_finished(folder.resolve().parent)


def _place(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _hidden(file: Path) -> bool:
    return file.name.startswith(".")


def _seal(record: Mapping[str, Any]) -> str:
    plain = json.loads(json.dumps(record))  # keys are strings, tuples lists
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
