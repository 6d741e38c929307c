"""Every code block of the pages runs: Python and commands are executed, data are parsed; wrong pages are reported."""

import pytest
from helpers.workbench import CHECKOUT, WITH_RUNS, Workbench

PAGES = ["README.md", "CHANGELOG.md"]
PAGES += sorted(str(page.relative_to(CHECKOUT)) for page in (CHECKOUT / "docs").rglob("*.md"))

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Workbench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


@pytest.mark.parametrize("page", PAGES)
def test_page(bench, page, tmp_path):
    status, output = bench.run_page(CHECKOUT / page, page, tmp_path)
    assert status == 0, output[-3000:]


def test_pages_are_found():
    assert len(PAGES) > 25
    assert set(WITH_RUNS) <= set(PAGES)


def run(bench, folder, text):
    """Run the text of a page."""
    (folder / "page.md").write_text(text)
    (folder / "empty").mkdir()
    return bench.run_page(folder / "page.md", "docs/page.md", folder / "empty")


def bash(command):
    return f"text\n\n```bash\ntrue\n{command}\n```"


TRAIN = "python recipes/train.py"
#: Wrong pages and a part of the output.
WRONG = [
    ("```python\nx = 1\n\nx / 0\n```", "docs/page.md:4: ZeroDivisionError"),
    ("```python\nimport os\n```\n\n```python\nmodel(1)\n```", "docs/page.md:6: NameError"),
    ("```yaml\na: [1\n```", "docs/page.md:2: yaml that does not parse"),
    ("text\n\n```\nx = 1\n```", "docs/page.md:3: Expected a language among python, bash"),
    ("text\n\n    x = 1\n", "docs/page.md:3: Expected code between fences"),
    ("```python\nx = 1\n", "docs/page.md:1: Expected a closing ```"),
    (bash("false\ntrue"), "docs/page.md:5: exit status 1 of: false"),
    (bash("ls nowhere | cat"), "docs/page.md:5: exit status 2 of:"),
    (bash("echo $NOTHING"), "NOTHING: unbound"),
    (bash("pytest tests/training/test_launch.py::test_none"), "docs/page.md:5: exit status 2"),
    (bash('pip install "pml-supcon[gpu]"'), "Expected a package and extras of pyproject.toml"),
    (bash("pip install pml-supcno"), "but got 'pml-supcno'"),
    (bash("make trian"), "No rule to make target 'trian'"),
    (bash('make train ARGS="--metod triplet"'), "did you mean 'method'?"),
    (bash("python benchmarks/peers.py --quik"), "unrecognized arguments: --quik"),
    (bash("accelerate launch --quiet recipes/trian.py"), "there is no 'recipes/trian.py'"),
    (bash("accelerate launch --multigpu recipes/train.py"), "--multigpu"),
    (bash("torchrun --machines 3 recipes/train.py"), "--machines"),
    (bash("accelerate launch --config_file none.yaml recipes/train.py"), "none.yaml"),
    (bash("python recipes/evaluate.py runs/mine"), "but got 'runs/mine'"),
    (bash("pml-supcon reproduce losses --sed 1"), "did you mean 'seed'?"),
    (bash("torchrun --nproc_per_node 3 recipes/train.py"), "--batch_size to be a multiple of the 3 processes"),
    (bash(f"{TRAIN} --data imagefolder:my/images --max-per-class 8"), "`batch_size` to be at most 32"),
    (bash(f"{TRAIN} --encoder resnet18 --encoder-args '{{\"none\": 3}}'"), "unexpected keyword argument 'none'"),
    (bash(f"{TRAIN} --encoder resnet10t.none --pretrained true"), "resnet10t.none"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_wrong_pages_are_red(bench, text, expected, tmp_path):
    status, output = run(bench, tmp_path, text)
    assert status != 0
    assert expected in output


def test_blocks_share_names_folder_and_order_and_leave_the_checkout_alone(bench, tmp_path):
    text = """
1. in a list

    ```yaml title="my/settings.yaml"
    method: triplet
    ```

```python
import json, pathlib
x = pathlib.Path("my/settings.yaml").read_text()
```

```bash
accelerate launch --quiet recipes/train.py --config my/settings.yaml --output runs/mine
touch pml_supcon/new
```

```python
assert x == "method: triplet\\n"
assert json.loads(pathlib.Path("runs/mine/metrics.json").read_text())["method"] == "triplet"
```

```text
not run
```
"""
    status, output = run(bench, tmp_path, text)
    assert status == 0, output
    assert not (CHECKOUT / "pml_supcon" / "new").exists()


def test_launches_on_several_processes_have_two(bench, tmp_path):
    text = """
```python
open("second.py", "w").write("import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)")
```

```bash
torchrun --nproc_per_node 4 recipes/train.py --output runs/four --batch-size 4096 --chunk-size 256
grep '"processes": 2' runs/four/metrics.json
torchrun --nproc_per_node 2 second.py
```
"""
    status, output = run(bench, tmp_path, text)
    assert status != 0
    assert "exit status 3 of: torchrun --nproc_per_node 2 second.py" in output
