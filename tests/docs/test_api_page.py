"""The page of public names has what the package exports."""

import importlib.util
import re
from importlib import import_module
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "api.md").read_text()
PACKAGES = re.findall(r"<!-- names:(\w+) -->", PAGE)


@pytest.fixture(scope="module")
def list_names():
    spec = importlib.util.spec_from_file_location("list_names", DOCS / "list_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def page(list_names):
    return list_names.filled(PAGE)


def section(page, package):
    return page.split(f"\n## {package}\n")[1].split("\n## ")[0]


def test_sub_packages_stand_in_flow_order():
    assert import_module("pml_supcon").__all__ == PACKAGES


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_has_a_line_and_a_link(package, page):
    module = import_module(f"pml_supcon.{package}")
    lines = re.findall(r"^\| \[`(\w+)`\]\[([\w.]+)\] \| (.+) \|$", section(page, package), re.M)
    found = [(name, link) for name, link, _ in lines]
    assert sorted(found) == sorted((name, f"{module.__name__}.{name}") for name in module.__all__)
    for name, _, said in lines:
        exported = getattr(module, name)
        if callable(exported):
            assert said == exported.__doc__.splitlines()[0]
        else:
            assert said.startswith("Constant: ")


@pytest.mark.parametrize(
    "text", ["<!-- names:losses -->", PAGE + "<!-- names:loss -->", PAGE + "<!-- names:losses -->"]
)
def test_marks_that_are_not_those_of_the_package_are_refused(list_names, text):
    with pytest.raises(PluginError, match="one mark for each of"):
        list_names.filled(text)
