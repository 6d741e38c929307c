"""The import of the package takes about as long as pytorch-metric-learning's, and loads heavy modules on first use."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

BASE = "import torch, pytorch_metric_learning.losses"
OURS = "from pml_supcon import losses, samplers, testers"
LIMIT = 1.2
PACKAGE = Path(__file__).parents[2] / "pml_supcon"


def imported_by(statement):
    """Return the modules of a fresh interpreter after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=os.sep, check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def packages(modules):
    """Return the top packages of modules, without the standard library and the finder of an editable installation."""
    names = {name.split(".")[0] for name in modules}
    return {name for name in names if name not in sys.stdlib_module_names and not name.startswith("__editable__")}


def test_the_package_alone_imports_nothing_else():
    assert packages(imported_by("import pml_supcon") - imported_by("pass")) == {"pml_supcon", "lazy_loader"}


def test_losses_samplers_and_testers_import_what_pml_losses_do():
    ours = imported_by(f"{OURS}; losses.SupConLossOut()")
    added = ours - imported_by(BASE)
    assert packages(added) == {"pml_supcon", "lazy_loader"}
    assert "torch._dynamo" not in added  # the compiler, a second


def test_every_sub_package_is_imported_when_it_is_used():
    names = import_module("pml_supcon").__all__
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    modules = {path.stem for path in PACKAGE.glob("[a-z]*.py")} - {"cli"}
    assert set(names) == (folders | modules) - {"data", "training", "evaluation", "experiments", "distributed", "_pml"}
    used = "import pml_supcon\nfor name in reversed(pml_supcon.__all__): getattr(pml_supcon, name)"
    assert {f"pml_supcon.{name}" for name in names} <= imported_by(used)


@pytest.mark.parametrize("name", ["losses", "testers"])
def test_lazy_names_are_the_same_for_type_checkers(name):
    package = import_module(f"pml_supcon.{name}")
    tree = ast.parse((PACKAGE / name / "__init__.pyi").read_text())
    (exported,) = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert len(exported) > 1
    assert sorted(exported) == package.__all__
    assert all(getattr(package, public) is not None for public in exported)
    with pytest.raises(AttributeError, match=rf"No pml_supcon\.{name} attribute Nothing"):
        package.Nothing  # noqa: B018


def cpu_seconds(statement):
    """Return the user and system time of a fresh interpreter, which other processes hardly change."""
    interpreter = subprocess.Popen([sys.executable, "-c", statement], cwd=os.sep)
    _, status, usage = os.wait4(interpreter.pid, 0)
    interpreter.returncode = os.waitstatus_to_exitcode(status)
    assert interpreter.returncode == 0
    return usage.ru_utime + usage.ru_stime


@pytest.mark.slow
def test_import_time():
    rounds = [(cpu_seconds(OURS), cpu_seconds(BASE)) for _ in range(3)]  # in turns, as others use the machine too
    ours, base = map(min, zip(*rounds, strict=True))
    assert ours <= LIMIT * base, f"`{OURS}` takes {ours / base:.2f} times the CPU time of `{BASE}`"
