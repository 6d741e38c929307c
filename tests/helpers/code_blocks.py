"""The code blocks of a Markdown page: language, title, code, and the line on which the code begins."""

import re
from typing import NamedTuple

LANGUAGES = ("python", "bash", "yaml", "json", "toml", "text", "console")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")
_TITLE = re.compile(r'title="([^"]*)"')
#: Lines whose indented continuation is text: list items, admonitions, tabs, options of mkdocstrings, footnotes.
_HOLDS_TEXT = re.compile(r"\s*([-*+] |\d+[.)] |!!! |\?\?\?\+? |=== |::: |\[\^)")


class PageError(Exception):
    """A fault of a page; its text begins with `PAGE:LINE:`."""


class Block(NamedTuple):
    """A fenced block: `title` is the file that it shows or "", `line` is the page's line of the first line of code."""

    language: str
    title: str
    code: str
    line: int


def blocks_of(text: str, page: str) -> list[Block]:
    """Return the blocks of a page; raise a `PageError` for an open fence, an unknown language or indented code."""
    lines, blocks, place = text.splitlines(), [], 0
    while place < len(lines):
        opened = _FENCE.match(lines[place])
        if opened is None:
            if _is_indented_code(lines, place):
                raise PageError(f"{page}:{place + 1}: Expected code between fences with a language, but it is indented")
            place += 1
            continue
        start, fence, indent = place, opened["fence"], len(opened["indent"])
        closes = re.compile(rf"^ *{re.escape(fence[0])}{{{len(fence)},}} *$")
        end = next((place for place in range(start + 1, len(lines)) if closes.match(lines[place])), None)
        if end is None:
            raise PageError(f"{page}:{start + 1}: Expected a closing {fence}, but the page ends")
        language = (opened["info"].split() or [""])[0]
        if language not in LANGUAGES:
            raise PageError(
                f"{page}:{start + 1}: Expected a language among {', '.join(LANGUAGES)}, but got {language!r}"
            )
        title = _TITLE.search(opened["info"])
        code = "".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] + "\n" for line in lines[start + 1 : end])
        blocks.append(Block(language, title[1] if title else "", code, start + 2))
        place = end + 1
    return blocks


def _is_indented_code(lines: list[str], place: int) -> bool:
    """Return True if Markdown would show the block of this line as code because it is indented."""
    line = lines[place]
    if not line.startswith("    ") or not line.strip() or (place and lines[place - 1].strip()):
        return False
    before = (each for each in reversed(lines[:place]) if each.strip() and not each.startswith("    "))
    holder = next(before, "")
    return not _HOLDS_TEXT.match(holder) and not holder.startswith("  ")
