"""The templates of the reports, with the style sheet and the script that all pages share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pml_supcon._files import write_atomic
from pml_supcon.evaluation.report import tables


def write_page(path: Path, template: str, content: Mapping[str, Any]) -> None:
    """Write a page from a template of this folder and the template's variables; the file is replaced as a whole."""
    folder = Path(__file__).parent
    blocks: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, **blocks)
    environment.filters |= {"number": tables.format_number, "named": tables.named}
    # style sheet and script are part of this package: they are not escaped
    assets = {name: Markup((folder / f"report.{name}").read_text(encoding="utf-8")) for name in ("css", "js")}
    page = environment.get_template(template).render(**assets, **content)
    write_atomic(path, page.encode(errors="backslashreplace"))  # a path may have bytes that are not UTF-8
