"""The runner of code blocks: it reports a wrong block with page and line, and runs the others as a user would."""

import pytest
from helpers.workbench import CHECKOUT

pytestmark = pytest.mark.slow


def run(bench, tmp_path, text):
    (tmp_path / "page.md").write_text(text)
    (tmp_path / "folder").mkdir()
    return bench.run_page(tmp_path / "page.md", "docs/some/page.md", tmp_path / "folder")


#: Wrong pages with a part of the error.
WRONG = {
    "a block that raises": ("```python\nx = 1\n\nx / 0\n```", "docs/some/page.md:4: ZeroDivisionError"),
    "a name of another page": ("```python\nimport os\n```\n\n```python\nmodel(1)\n```", "page.md:6: NameError"),
    "a command that fails": ("```bash\ntrue\n\nfalse\ntrue\n```", "docs/some/page.md:4: exit status 1 of: false"),
    "a failure in a pipe": ("```bash\nls nowhere | cat\n```", "page.md:2: exit status 2 of:"),
    "a variable that is not set": ("```bash\necho $NOTHING\n```", "docs/some/page.md: line 2: NOTHING: unbound"),
    "YAML that does not parse": ("```yaml\na: [1\n```", "docs/some/page.md:2: yaml that does not parse"),
    "no language": ("text\n\n```\nx = 1\n```", "docs/some/page.md:3: Expected a language among python, bash"),
    "code without a fence": ("text\n\n    x = 1\n", "docs/some/page.md:3: Expected code between fences"),
    "a fence that stays open": ("```python\nx = 1\n", "docs/some/page.md:1: Expected a closing ```"),
    "a flag of train.py": ("```bash\npython recipes/train.py --metod triplet\n```", "did you mean 'method'?"),
    "flags that contradict": ("```bash\npython recipes/train.py --momentum 0.9\n```", "--queue_size"),
    "a run": ("```bash\npython recipes/evaluate.py runs/none\n```", "but got 'runs/none'"),
    "more classes in a batch than there are": (
        "```bash\npython recipes/train.py --data imagefolder:my/images --max-per-class 8\n```",
        "`batch_size` to be at most 32",
    ),
    "a batch that processes cannot share": (
        "```bash\ntorchrun --nproc_per_node 3 recipes/train.py\n```",
        "--batch_size to be a multiple of the 3 processes",
    ),
    "an argument of the encoder": (
        """```bash\npython recipes/train.py --encoder resnet18 --encoder-args '{"nonsense": 3}'\n```""",
        "unexpected keyword argument 'nonsense'",
    ),
    "weights that timm has not": (
        "```bash\npython recipes/train.py --encoder resnet10t.none --pretrained true\n```",
        "resnet10t.none",
    ),
    "a sub-module that is not imported": (
        "```python\nimport matplotlib\n\nmatplotlib.pyplot\n```",
        "page.md:4: Attrib",
    ),
    "an architecture that is not registered": (
        "```python\nimport timm\n\ntimm.create_model('local-dir:my/encoder', pretrained=True)\n```",
        "page.md:4: RuntimeError",
    ),
    "runs that the page does not make": (
        "```bash\npython recipes/evaluate.py runs/mine --compare runs/other\n```",
        "but got 'runs/mine'",
    ),
    "a test among others": (
        "```bash\npytest tests/training/test_launch.py\npytest tests/training/test_launch.py::test_none\n```",
        "docs/some/page.md:3: exit status 4",
    ),
    "a wheel of another version": ('```bash\npip install "dist/pml_supcon-9.9.9-py3-none-any.whl[cpu]"\n```', "9.9.9"),
    "a script": ("```bash\npython recipes/trian.py\n```", "but got 'recipes/trian.py'"),
    "a flag of accelerate": ("```bash\naccelerate launch --multigpu recipes/train.py\n```", "--multigpu"),
    "a flag of torchrun": ("```bash\ntorchrun --nproc_per_nod 2 --machines 3 recipes/train.py\n```", "--machines"),
    "a launch configuration": ("```bash\naccelerate launch --config_file none.yaml recipes/train.py\n```", "none.yaml"),
    "an experiment": ("```bash\npython recipes/reproduce.py loses\n```", "but got loses"),
    "a flag of reproduce.py": ("```bash\npml-supcon reproduce losses --sed 1\n```", "did you mean 'seed'?"),
    "a command of pml-supcon": ("```bash\npml-supcon trian\n```", "did you mean 'train'?"),
    "a target": ("```bash\nmake trian\n```", "No rule to make target 'trian'"),
    "a flag in a target": ('```bash\nmake train ARGS="--metod triplet"\n```', "did you mean 'method'?"),
    "an extra": ('```bash\npip install "pml-supcon[gpu]"\n```', "Expected extras among cpu, cuda"),
    "a package": ("```bash\npip install pml-supcno\n```", "but got 'pml-supcno'"),
    "a flag of a benchmark": ("```bash\npython benchmarks/peers.py --quik\n```", "unrecognized arguments: --quik"),
    "a file to be opened": ("```bash\nxdg-open runs/mine/none.html\n```", "but got 'runs/mine/none.html'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_pages_are_red(bench, name, tmp_path):
    text, expected = WRONG[name]
    status, said = run(bench, tmp_path, text)
    assert status != 0
    assert expected in said


def test_blocks_share_names_folder_and_order(bench, tmp_path):
    text = """
1. in a list

    ```yaml title="my/settings.yaml"
    method: triplet
    ```

    more of it

        no code: it belongs to the list

```python
import json, pathlib
x = pathlib.Path("my/settings.yaml").read_text()
```

```bash
python recipes/train.py --config my/settings.yaml --output runs/mine
```

```python
assert x == "method: triplet\\n"
assert json.loads(pathlib.Path("runs/mine/metrics.json").read_text())["method"] == "triplet"
```

```text
not run
```
"""
    status, said = run(bench, tmp_path, text)
    assert status == 0, said


def test_launches_on_several_processes_have_two(bench, tmp_path):
    text = """
```bash
ACCELERATE_USE_CPU=1 torchrun --nproc_per_node 4 recipes/train.py --output runs/new --batch-size 4096 --chunk-size 256
accelerate launch --num_processes 4 recipes/train.py --output runs/n2
```

```python
import json
for run in ("new", "n2"):
    assert json.load(open(f"runs/{run}/metrics.json"))["processes"] == 2
```
"""
    status, said = run(bench, tmp_path, text)
    assert status == 0, said


def test_a_failure_on_the_second_process_is_seen(bench, tmp_path):
    (tmp_path / "page.md").write_text("")
    script = "import os, sys\nsys.exit(3 if os.environ['RANK'] == '1' else 0)\n"
    text = f"```python title=\"my_script.py\"\nx = '''{script}'''\nopen('my_script.py', 'w').write(x)\n```\n"
    status, said = run(bench, tmp_path, text + "```bash\ntorchrun --nproc_per_node 2 my_script.py\n```\n")
    assert "exit status 3 of: torchrun" in said
    assert status != 0


def test_the_checkout_is_not_written_to(bench, tmp_path):
    text = "```bash\necho 'x: 1' > pml_supcon/configs/mine.yaml\nls pml_supcon/configs/mine.yaml\n```"
    status, said = run(bench, tmp_path, text)
    assert status == 0, said
    assert not (CHECKOUT / "pml_supcon" / "configs" / "mine.yaml").exists()


def test_an_installed_package_and_the_paper(bench, tmp_path):
    text = """
```bash
pml-supcon train --config "$(pml-supcon configs cifar10)" --output runs/cifar10
pml-supcon reproduce all --scale digits --seeds 0 1
```

```python
import json
assert json.load(open("runs/cifar10/metrics.json"))["data"] == "imagefolder:my/images"
import pathlib
[record] = pathlib.Path("runs/reproduce/digits").glob("results-*/losses.json")
assert json.loads(record.read_text())["experiment"] == "losses"
```
"""
    status, said = run(bench, tmp_path, text)
    assert status == 0, said
