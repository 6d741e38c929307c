"""What pages say between the blocks: flags and paths in inline code are there, figures are those of the records."""

import json
import re
from dataclasses import fields

import pytest
from accelerate.commands.launch import launch_command_parser
from helpers.page_tests import PAGES
from helpers.workbench import CHECKOUT
from torch.distributed.run import get_args_parser

from pml_supcon.evaluation.settings import EvaluateSettings
from pml_supcon.training.config import TrainSettings

FLAG = re.compile(r"(?<![\w-])--([A-Za-z][\w-]*\w)(?![\w-])")
PATH = re.compile(r"(?<![\w./{])(?:tests|benchmarks|recipes|docs)/[\w./-]*\w")
OF_OTHERS = ("docs/peers.md",)  # cites files of other projects


def flags_of(parser):
    """The names of a parser's flags."""
    return {option.lstrip("-").replace("-", "_") for action in parser._actions for option in action.option_strings}


def flags_in(pattern):
    """The names of flags that scripts add to their parsers."""
    files = CHECKOUT.glob(pattern)
    return {name.replace("-", "_") for file in files for name in re.findall(r'"--([\w-]+)"', file.read_text())}


RECIPES = {field.name for settings in (TrainSettings, EvaluateSettings) for field in fields(settings)}
RECIPES |= {"config", "print_config", "help"} | flags_in("recipes/reproducing/settings.py")
LAUNCHERS = flags_of(launch_command_parser()) | flags_of(get_args_parser())
#: By a word of the code before the flag; a flag that stands alone is a recipe's or a launcher's.
TOOLS = {"pip ": {"yes", "no_deps", "force_reinstall", "editable", "upgrade"}, "make ": flags_in("tests/*/*.py")}
TOOLS |= {"pytest ": {"collect_only"}, "benchmarks/": flags_in("benchmarks/*.py"), "docs/": flags_in("docs/*.py")}


def inline_code(page):
    """The inline code of a page, without its blocks."""
    text = re.sub(r"^ *(`{3,}|~{3,}).*?^ *\1 *$", "", (CHECKOUT / page).read_text(), flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def unknown_flags(codes, bare=frozenset()):
    """Each flag that neither a recipe, nor a launcher, nor the tool before it has; `bare`: known where it is alone."""
    found = []
    for code in codes:
        known = RECIPES | LAUNCHERS | bare
        for tool, names in TOOLS.items():
            known |= names if tool in code else set()
        found += [f"--{name} in {code!r}" for name in FLAG.findall(code) if name.replace("-", "_") not in known]
    return found


def missing_paths(codes):
    """Each path of the repository that is not there."""
    return [path for code in codes for path in PATH.findall(code) if not (CHECKOUT / path).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_paths_are_there(page):
    codes = inline_code(page)
    assert unknown_flags(codes, TOOLS["benchmarks/"] if page == "docs/benchmarks.md" else frozenset()) == []
    assert page in OF_OTHERS or missing_paths(codes) == []


def test_wrong_ones_are_told():
    assert len(unknown_flags(["--max-pre-class 8", "make walk ARGS=--skip-test", "--quick", "torchrun --nproc 2"])) == 4
    assert unknown_flags(["--max-per-class 8", "make walk ARGS=--skip-tests", "--stage2-...", "--max_restarts 3"]) == []
    assert missing_paths(["recipes/trian.py --epochs 2", "tests/none"]) == ["recipes/trian.py", "tests/none"]
    assert missing_paths(["python recipes/train.py", "my/tests/none"]) == []


def test_quick_start_prints_the_record():
    record = json.loads((CHECKOUT / "docs/records/digits-seed0.json").read_text())
    printed = re.findall(r"^(\w+/\w+) +([\d.]+)$", (CHECKOUT / "docs/quick_start.md").read_text(), re.M)
    assert len(printed) == 3
    assert {name: figure for name, figure in printed} == {name: f"{record[name]:.4f}" for name, _ in printed}
