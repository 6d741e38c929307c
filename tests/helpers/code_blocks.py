"""The code blocks of a Markdown page."""

from typing import NamedTuple

from markdown_it import MarkdownIt

LANGUAGES = ("python", "bash", "yaml", "json", "toml", "text", "console")


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
    lines, blocks = text.splitlines(), []
    for token in MarkdownIt().parse(text):
        if token.type not in ("fence", "code_block"):
            continue
        start, end = token.map or (0, 0)
        language, _, title = token.info.partition(" ")
        if token.type == "code_block":
            raise PageError(f"{page}:{start + 1}: Expected code between fences with a language, but it is indented")
        if end - 1 == start or lines[end - 1].strip() != token.markup:
            raise PageError(f"{page}:{start + 1}: Expected a closing {token.markup}, but the page ends")
        if language not in LANGUAGES:
            known = ", ".join(LANGUAGES)
            raise PageError(f"{page}:{start + 1}: Expected a language among {known}, but got {language!r}")
        title = title.removeprefix('title="').removesuffix('"')
        blocks.append(Block(language, title, token.content, start + 2))
    return blocks
