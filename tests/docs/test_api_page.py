"""The page of public names has what the package exports."""

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text()


@pytest.fixture
def list_names(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    return import_module("list_names")


def test_every_public_name_has_a_line_and_a_link(list_names):
    packages = import_module("pml_supcon").__all__
    assert re.findall(r"<!-- names:(\w+) -->", PAGE) == packages  # in flow order
    page = list_names.filled(PAGE)
    for package in packages:
        module, section = import_module(f"pml_supcon.{package}"), page.split(f"\n## {package}\n")[1].split("\n## ")[0]
        lines = re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \| (.+) \|$", section, re.M)
        assert sorted(name for name, _, _ in lines) == sorted(module.__all__)
        for name, link, text in lines:
            exported = getattr(module, name)
            assert link == f"{module.__name__}.{name}"
            assert text.startswith(exported.__doc__.splitlines()[0] if callable(exported) else "Constant: ")


@pytest.mark.parametrize("text", ["<!-- names:losses -->", PAGE + "<!-- names:loss -->"])
def test_marks_that_differ_from_the_sub_packages_are_refused(list_names, text):
    with pytest.raises(PluginError, match="one mark for each of"):
        list_names.filled(text)
