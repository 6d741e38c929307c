"""Run the blocks of one page in order in the current folder: `python -m helpers.page_runner FILE PAGE`.

The first block that fails ends the program with the page's name and line.
"""

import json
import subprocess
import sys
import tomllib
import traceback
from pathlib import Path

import yaml

from helpers.code_blocks import blocks_of

#: Prints the page and the line of the command that failed.
TRAP = """trap 'status=$?; echo "$0:$LINENO: exit status $status of: $BASH_COMMAND" >&2' ERR"""
PARSERS = {"yaml": lambda code: list(yaml.safe_load_all(code)), "json": json.loads, "toml": tomllib.loads}


def run_page(file, page):
    """Run the blocks of a file; `page` is its name in errors."""
    names = {"__name__": "__main__"}
    for block in blocks_of(Path(file).read_text(), page):
        if block.title:  # the block shows a file: write it
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.code)
        if block.language == "python":
            run_python(block, page, names)
        elif block.language == "bash":
            # the empty lines before the code give bash the page's line numbers
            script = TRAP + "\n" * (block.line - 1) + block.code
            if subprocess.run(["bash", "-euE", "-o", "pipefail", "-c", script, page]).returncode:
                sys.exit(f"{page}: the block that begins in line {block.line} failed")
        elif block.language in PARSERS:
            try:
                PARSERS[block.language](block.code)
            except (ValueError, yaml.YAMLError) as error:
                sys.exit(f"{page}:{block.line}: {block.language} that does not parse: {error}")


def run_python(block, page, names):
    """Execute a block with the names of the blocks before it."""
    try:
        exec(compile("\n" * (block.line - 1) + block.code, page, "exec"), names)
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == page]
        line = frames[-1].lineno if frames else getattr(error, "lineno", block.line)
        traceback.print_exc()
        sys.exit(f"{page}:{line}: {type(error).__name__}: {error}")
    sys.stdout.flush()


if __name__ == "__main__":
    run_page(*sys.argv[1:])
