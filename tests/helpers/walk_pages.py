"""The commands of a page: lines of its Bash blocks, its inline code, its Python blocks."""

import re
from pathlib import Path

from helpers.walk_checks import BrokenError

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.S | re.M)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMENT = re.compile(r"\s+#\s.*$")


def commands_of(text: str) -> list[str]:
    r"""Return the commands of a page: lines of Bash blocks without their comments, then inline code.

    Examples:
        >>> commands_of("Say `ls`.\n```bash\nmake train    # trains\nmake \\\n    test\n```\n")
        ['make train', 'make test', 'ls']
    """
    bash = [code for language, code in _BLOCK.findall(text) if language == "bash"]
    lines = [line for code in bash for line in re.sub(r"\\\n\s*", "", code).splitlines()]
    typed = [_COMMENT.sub("", line).strip() for line in lines if not line.startswith("#")]
    return [line for line in typed if line] + _INLINE.findall(_BLOCK.sub("", text))


def find_command(root: Path, page: str, command: str) -> str:
    """Return the command if the page has it, else raise a `BrokenError` with similar commands of the page."""
    found = commands_of(_read(root, page))
    if command not in found:
        near = [line for line in found if line.split()[:2] == command.split()[:2]] or found
        shown = "".join(f"\n    {line}" for line in near) or " nothing to type"
        raise BrokenError(f"Expected {page} to have the command\n    {command}\nbut it has{shown}")
    return command


def find_python(root: Path, page: str) -> list[str]:
    """Return the Python blocks of a page in order; raise a `BrokenError` if there are none."""
    blocks = [code for language, code in _BLOCK.findall(_read(root, page)) if language == "python"]
    if not blocks:
        raise BrokenError(f"Expected {page} to have Python blocks, but it has none")
    return blocks


def _read(root: Path, page: str) -> str:
    if not (root / page).is_file():
        raise BrokenError(f"Expected a page {page} in {root}, but there is none")
    return (root / page).read_text()
