"""What a page tells its reader to type: lines of its bash blocks, its inline code, its python blocks."""

import re
from pathlib import Path

_BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```", re.S | re.M)
_INLINE = re.compile(r"`([^`\n]+)`")
_COMMENT = re.compile(r"\s+#\s.*$")


class MissingError(LookupError):
    """A page no longer has what the walk takes from it."""


def commands_of(text: str) -> list[str]:
    r"""The commands of a page: lines of bash blocks without their comments, then inline code.

    Examples:
        >>> commands_of("Say `ls`.\n```bash\nmake train    # trains\nmake \\\n    test\n```\n")
        ['make train', 'make test', 'ls']
    """
    bash = [code for language, code in _BLOCK.findall(text) if language == "bash"]
    lines = [line for code in bash for line in re.sub(r"\\\n\s*", "", code).splitlines()]
    typed = [_COMMENT.sub("", line).strip() for line in lines if not line.startswith("#")]
    return [line for line in typed if line] + _INLINE.findall(_BLOCK.sub("", text))


def find_command(root: Path, page: str, command: str) -> str:
    """The command as the page has it, or a `MissingError` that shows what the page has."""
    found = commands_of(_read(root, page))
    if command not in found:
        near = [line for line in found if line.split()[:2] == command.split()[:2]] or found
        shown = "".join(f"\n    {line}" for line in near) or " nothing to type"
        raise MissingError(f"Expected {page} to have the command\n    {command}\nbut it has{shown}")
    return command


def find_python(root: Path, page: str) -> list[str]:
    """The python blocks of a page, in order, or a `MissingError`."""
    blocks = [code for language, code in _BLOCK.findall(_read(root, page)) if language == "python"]
    if not blocks:
        raise MissingError(f"Expected {page} to have python blocks, but it has none")
    return blocks


def _read(root: Path, page: str) -> str:
    if not (root / page).is_file():
        raise MissingError(f"Expected a page {page} in {root}, but there is none")
    return (root / page).read_text()
