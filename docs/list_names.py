"""Fill the page of public names while MkDocs builds it: what each sub-package exports, a line and a link for each.

A hook of MkDocs (`hooks` in mkdocs.yml). The page has a mark for each sub-package, `<!-- names:losses -->`. Names are
read from the source, nothing is imported. Marks that differ from the sub-packages end the build. A strict build also
ends at a name that no page documents, since its link is broken.
"""

import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.exceptions import PluginError

PACKAGE = "pml_supcon"
ROOT = Path(__file__).resolve().parent.parent
PAGE = "api.md"
MARK = re.compile(r"<!-- names:(\w+) -->")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marks of the page of names by tables; leave other pages unchanged."""
    return filled(markdown) if page.file.src_uri == PAGE else markdown


def filled(text: str) -> str:
    """Return the text with a table in the place of each mark.

    Raises:
        PluginError: If a sub-package with public names has no mark, or a mark names no such sub-package.
    """
    package = griffe.load(PACKAGE, search_paths=[str(ROOT)])
    public = {name: module for name, module in package.modules.items() if module.exports and not name.startswith("_")}
    marked = MARK.findall(text)
    if sorted(marked) != sorted(public):
        raise PluginError(f"Expected {PAGE} to have one mark for each of {sorted(public)}, but it has {sorted(marked)}")
    return MARK.sub(lambda mark: table(public[mark[1]]), text)


def table(module: griffe.Module) -> str:
    """Return a table of the public names of a sub-package, in the order of its exports."""
    lines = ["| name | what it is |", "| --- | --- |"]
    for name in (str(exported) for exported in module.exports or ()):
        member = module[name]
        member = member.final_target if member.is_alias else member
        said = member.docstring.value.splitlines()[0] if member.docstring else f"Constant: `{member.value}`."
        lines.append(f"| [`{name}`][{module.path}.{name}] | {said.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)
