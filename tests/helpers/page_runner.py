"""Runs the blocks of one page, in order, in the current folder.

The server of pages has imported PyTorch, pytorch-metric-learning and timm, and nothing of this package: a page that
forgets one of its own imports would otherwise find it done.
"""

import json
import os
import re
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path

import pytorch_metric_learning.losses
import timm
import torch
import yaml

from helpers.code_blocks import blocks_of

#: Ends a script with the page and the line of the command that failed.
TELLS = """trap 'status=$?; echo "$0:$LINENO: exit status $status of: $BASH_COMMAND" >&2' ERR"""
LOADED = (torch, pytorch_metric_learning, timm)
#: Tests that are named by an id alone.
ONLY_TESTS = re.compile(r"^pytest (tests/\S+)(?= *(?:#.*)?$)", re.M)
PARSERS = {"yaml": lambda code: list(yaml.safe_load_all(code)), "json": json.loads, "toml": tomllib.loads}


def run_page(arguments):
    """Run the page of a file, which is called by a name in errors; ends the process where a block fails."""
    file, page = arguments
    names, blocks = {"__name__": "__main__"}, blocks_of(Path(file).read_text(), page)
    collected = collect_together(blocks)
    for block in blocks:
        if block.title:  # a block that shows a file is that file
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code)
        if block.language == "python":
            run_python(block, page, names)
        elif block.language == "bash":
            run_bash(block, page, collected)
        elif block.language in PARSERS:
            parse(block, page)


def run_python(block, page, names):
    """Execute a block among the names of the blocks before it."""
    try:
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == page]
        line = frames[-1].lineno if frames else getattr(error, "lineno", block.line)
        traceback.print_exc()
        sys.exit(f"{page}:{line}: {type(error).__name__}: {error}")


def collect_together(blocks):
    """Whether one `pytest` finds the tests that the bash blocks name; if not, each line is tried, and told."""
    tests = [test for block in blocks if block.language == "bash" for test in ONLY_TESTS.findall(block.code)]
    if len(tests) < 2:
        return False
    command = ["pytest", "--keep-duplicates", *tests]  # a test of a file that stands there too is looked for
    return not subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def run_bash(block, page, collected):
    """Run a block as a shell would that stops at the first failure, with the page's line numbers."""
    code = ONLY_TESTS.sub("true", block.code) if collected else block.code
    script = TELLS + "\n" * (block.line - 1) + code
    flags = ["-e", "-u", "-E", "-o", "pipefail"]
    sys.stdout.flush()
    status = subprocess.run(["bash", *flags, "-c", script, page], env=dict(os.environ)).returncode
    if status:
        sys.exit(f"{page}: a block that begins in line {block.line} ended with status {status}")


def parse(block, page):
    """Refuse data that its own parser refuses."""
    try:
        PARSERS[block.language](block.code)
    except (ValueError, yaml.YAMLError) as error:
        sys.exit(f"{page}:{block.line}: {block.language} that does not parse: {' '.join(str(error).split())}")


COMMANDS = {"page": run_page}
