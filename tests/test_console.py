"""Output to consoles that lack characters, or are closed; and files, which are UTF-8 on every system."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pml_supcon
from pml_supcon import _console


@pytest.mark.parametrize(
    ("encoding", "written"), [("ascii", "\\u65e5 \\xe9"), ("cp1252", "\\u65e5 é"), ("utf-8", "日 é")]
)
def test_characters_that_the_console_lacks_become_escapes(encoding, written, monkeypatch):
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding=encoding) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    _console.prepare_streams()
    _console.say("日 é")
    _console.note("日 é\n")
    found = [stream.buffer.getvalue().decode(encoding).splitlines() for stream in streams.values()]
    assert found == [[written], [f"note: {written}"]]


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_missing_stream_is_no_error(name, monkeypatch):
    monkeypatch.setattr(sys, name, None)  # closed before the start, as by `>&-`
    _console.say("text")
    _console.prepare_streams()
    getattr(sys, name).write("text")  # as tqdm does
    getattr(sys, name).close()


SPEAKING = """
import sys
from pml_supcon._console import note, say
for index in range(3):
    say("x" * 100_000)
    note("y")
print("the end", file=sys.{left})
"""


@pytest.mark.parametrize(("closed", "left"), [("stdout", "stderr"), ("stderr", "stdout")])
@pytest.mark.parametrize("kind", ["pipe", "full disk"])
def test_a_closed_or_full_stream_does_not_end_the_program(kind, closed, left):
    if kind == "pipe":
        reader, writer = os.pipe()
        os.close(reader)  # as `| head -1` does after a line
    else:
        writer = os.open("/dev/full", os.O_WRONLY)
    streams = {closed: writer, left: subprocess.PIPE}
    command = [sys.executable, "-c", SPEAKING.format(left=left)]
    done = subprocess.run(command, check=False, text=True, **streams)
    os.close(writer)
    assert done.returncode == 0
    assert getattr(done, left).endswith("the end\n")


def test_every_text_file_of_the_package_has_an_encoding():
    """The default encoding is that of the system, which is not UTF-8 on every one."""
    missing = []
    for file in Path(pml_supcon.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or any(word.arg == "encoding" for word in node.keywords):
                continue
            call = ast.unparse(node)
            name = ast.unparse(node.func)
            binary = any(mode in call for mode in ("'rb'", "'wb'", "'ab'", "run.open()"))
            texts = name.endswith((".read_text", ".write_text")) or name == "open"
            if (texts or (name.endswith(".open") and "Image" not in name and name != "os.open")) and not binary:
                missing.append(f"{file.name}: {call}")
    assert [each for each in missing if "/proc/" not in each] == []
