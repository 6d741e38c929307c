import pytest

from pml_supcon._files import write_atomic


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
