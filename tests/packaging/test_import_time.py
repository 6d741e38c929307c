"""The package is imported about as fast as pytorch-metric-learning, and what is heavy only when it is used."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from helpers.import_time import BASE, LIMIT, OURS, ratio

PACKAGE = Path(__file__).parents[2] / "pml_supcon"
LATER = ("losses", "testers")  # the sub-packages that import names when they are first used


def imported_by(statement):
    """The modules that a fresh interpreter has after a statement, without the standard library's."""
    told = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", told], cwd=os.sep, check=True, capture_output=True, text=True).stdout
    return set(json.loads(output))


def packages(modules):
    """Whose modules these are: theirs, not the standard library's, nor what finds an editable installation."""
    names = {name.split(".")[0] for name in modules}
    return {name for name in names if name not in sys.stdlib_module_names and not name.startswith("__editable__")}


def test_the_package_alone_imports_nothing_else():
    assert packages(imported_by("import pml_supcon") - imported_by("pass")) == {"pml_supcon"}


def test_losses_samplers_and_testers_import_what_pml_losses_do():
    ours = imported_by("from pml_supcon import losses, samplers, testers; losses.SupConLossOut()")
    assert packages(ours - imported_by(BASE)) == {"pml_supcon", "lazy_loader"}
    assert "torch._dynamo" not in ours  # the compiler, a second


def test_every_sub_package_is_imported_when_it_is_used():
    names = import_module("pml_supcon").__all__
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert set(names) == folders - {"recipes"}  # programs, not public names
    used = "import pml_supcon\nfor name in reversed(pml_supcon.__all__): getattr(pml_supcon, name)"
    assert {f"pml_supcon.{name}" for name in names} <= imported_by(used)


@pytest.mark.parametrize("name", LATER)
def test_names_that_are_imported_later_are_the_same_for_type_checkers(name):
    """What `__init__.pyi` exports, in which order ever, is what the package finds."""
    package = import_module(f"pml_supcon.{name}")
    tree = ast.parse((PACKAGE / name / "__init__.pyi").read_text())
    (exported,) = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert len(exported) > 1
    assert sorted(exported) == package.__all__
    for public in exported:
        assert getattr(package, public) is not None


def test_a_name_that_is_not_there_is_told():
    with pytest.raises(AttributeError, match=r"No pml_supcon\.testers attribute RetrivalTester"):
        import_module("pml_supcon.testers").RetrivalTester  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'QueueLos'"):
        from pml_supcon.losses import QueueLos  # noqa: F401


def test_import_time():
    found = ratio(OURS, rounds=3)
    assert found <= LIMIT, f"`{OURS}` takes {found:.2f} times the CPU time of `{BASE}`"
