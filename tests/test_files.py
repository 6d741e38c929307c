import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pml_supcon._files import check_file, remove_partials, save_tensors, write_atomic


@pytest.mark.parametrize("content", ["ä\n", "ä\n".encode(), lambda path: path.write_text("ä\n", encoding="utf-8")])
def test_the_file_is_replaced(content, tmp_path):
    target = tmp_path / "table.svg"
    target.write_text("old")
    write_atomic(target, content)
    assert target.read_bytes() == "ä\n".encode()
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path):
    target = tmp_path / "table.svg"
    target.write_text("old")

    def fail(path):
        assert path.suffix == ".svg"
        assert path.parent == tmp_path
        assert path != target
        path.write_text("half")
        raise OSError

    with pytest.raises(OSError):
        write_atomic(target, fail)
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_tensors_have_the_mode_of_other_files(tmp_path):
    (tmp_path / "text").touch()
    save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"format": "pt"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["x"], torch.ones(2))
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "text").stat().st_mode


def test_a_file_that_is_too_large_for_the_disk_is_an_error_of_the_system(tmp_path):
    """The limit of a process on the size of files stands in for a full disk."""
    program = f"""
import resource, torch
from pathlib import Path
from pml_supcon._files import save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    save_tensors(Path({str(tmp_path)!r}) / "a.safetensors", {{"x": torch.ones(9999)}})
except OSError as error:
    print(error.errno, error.strerror)
"""
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    said = f"{tmp_path / 'a.safetensors'} could not be written: {os.strerror(errno.EFBIG)}"
    assert told.strip() == f"{errno.EFBIG} {said}"
    assert not list(tmp_path.iterdir())


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".a.7.partial").mkdir()
    (tmp_path / ".a.7.partial" / ".tmpXYZ").touch()
    (tmp_path / ".b.7.partial.json").touch()
    (tmp_path / "c.json").touch()
    remove_partials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_file_that_another_process_removes_is_of_no_other_kind(tmp_path, monkeypatch):
    (tmp_path / "a").touch()
    look = Path.stat

    def look_once(path, **options):
        found = look(path, **options)
        path.unlink()
        return found

    monkeypatch.setattr(Path, "stat", look_once)
    check_file(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="there is no"):
        check_file(tmp_path / "a")
