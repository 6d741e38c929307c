"""Run the notebooks anew and keep their outputs.

    python docs/notebooks/run.py                                # all of this folder
    python docs/notebooks/run.py docs/notebooks/digits.ipynb

Each runs in an empty folder, with the interpreter that runs this. Needs nbclient and ipykernel.
"""

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run in a folder, without metadata that differ between runs.

    Raises:
        CellExecutionError: If a cell raises.
    """
    book = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(book, kernel_name="python3", timeout=600, record_timing=False, resources=place).execute()
    book.metadata = nbformat.from_dict(METADATA)
    return book


def main() -> None:
    """Run the named notebooks, else all."""
    for path in [Path(name) for name in sys.argv[1:]] or sorted(Path(__file__).parent.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            book = executed(path, Path(folder))
        nbformat.write(book, path)
        print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
