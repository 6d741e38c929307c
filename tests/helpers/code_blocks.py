"""The code blocks of a Markdown page: language, title, code, and where they stand."""

import re
from dataclasses import dataclass

RUN = ("python", "bash")
PARSED = ("yaml", "json", "toml")
SHOWN = ("text", "console")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)$")
_TITLE = re.compile(r'title="([^"]*)"')
#: What may be followed by indented lines that are no code: list items, admonitions, tabs, options of mkdocstrings.
_HOLDS_TEXT = re.compile(r"\s*([-*+] |\d+[.)] |!!! |\?\?\?\+? |=== |::: |\[\^)")


class PageError(Exception):
    """What is wrong with a page; begins with `PAGE:LINE:`."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: first word after the fence.
        title: the name of the file that it shows, or "".
        code: without the fence's indentation.
        line: of the page, of the first line of code, from 1.
    """

    language: str
    title: str
    code: str
    line: int


def blocks_of(text, page):
    """All blocks of a page; one that is not closed, has no known language or is indented only is a `PageError`."""
    lines, found, place = text.splitlines(), [], 0
    while place < len(lines):
        opened = _FENCE.match(lines[place])
        if opened is None:
            if _is_indented_code(lines, place):
                raise PageError(f"{page}:{place + 1}: Expected code between fences with a language, but it is indented")
            place += 1
            continue
        block, place = _fenced(lines, place, opened, page)
        found.append(block)
    return found


def _fenced(lines, start, opened, page):
    fence, indent = opened["fence"], len(opened["indent"])
    closes = re.compile(rf"^ *{re.escape(fence[0])}{{{len(fence)},}} *$")
    end = next((place for place in range(start + 1, len(lines)) if closes.match(lines[place])), None)
    if end is None:
        raise PageError(f"{page}:{start + 1}: Expected a closing {fence}, but the page ends")
    language = (opened["info"].split() or [""])[0]
    known = (*RUN, *PARSED, *SHOWN)
    if language not in known:
        raise PageError(f"{page}:{start + 1}: Expected a language among {', '.join(known)}, but got {language!r}")
    title = _TITLE.search(opened["info"])
    code = "".join(line[min(indent, len(line) - len(line.lstrip(" "))) :] + "\n" for line in lines[start + 1 : end])
    return Block(language, title[1] if title else "", code, start + 2), end + 1


def _is_indented_code(lines, place):
    """Whether a line begins a block that Markdown shows as code for its four blanks alone."""
    line = lines[place]
    if not line.startswith("    ") or not line.strip() or (place and lines[place - 1].strip()):
        return False
    before = (each for each in reversed(lines[:place]) if each.strip() and not each.startswith("    "))
    holder = next(before, "")
    return not _HOLDS_TEXT.match(holder) and not holder.startswith("  ")
