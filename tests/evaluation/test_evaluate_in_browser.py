"""Reports of real evaluations, `supcon_out` beside `cross_entropy`, in a browser: every figure, no complaint."""

import json
from pathlib import Path

import pytest
from helpers.chromium import Browser

from pml_supcon.evaluation import app as evaluate
from pml_supcon.training import app as train

CIFAR10 = Path(__file__).parent.parent.parent.parent / "shared" / "data" / "cifar10"
#: What each data set is trained on, in seconds: the pictures in the docs are of longer runs.
DATA = {
    "digits": ["--max-train", "400", "--max-test", "150", "--batch-size", "100", "--epochs", "3"],
    "cifar10": [
        *("--data", f"hf:{CIFAR10}", "--max-train", "300", "--max-test", "100", "--batch-size", "100", "--epochs", "1"),
        *("--encoder", "resnet10t", "--encoder-args", '{"channels": [8, 8, 16, 16]}'),
    ],
}
SECTIONS = ("summary", "classes", "retrieval", "gallery", "map", "linear-probe", "calibration", "corruption")
SECTIONS += ("projection-head", "hard-mining", "about")
FLAGS = ["--draws", "5", "--mining_batches", "2", "--mining_batch_size", "64", "--severities", "1,5"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.driver.quit()


@pytest.fixture(scope="module", params=DATA)
def report(request, tmp_path_factory):
    if request.param == "cifar10" and not CIFAR10.is_dir():
        pytest.skip(f"no CIFAR-10 at {CIFAR10}")
    folder = tmp_path_factory.mktemp(request.param)
    for method in ("supcon_out", "cross_entropy"):
        train.main([*DATA[request.param], "--method", method, "--output", str(folder / method)])
    names = [str(folder / "supcon_out"), "--compare", str(folder / "cross_entropy")]
    evaluate.main([*names, *FLAGS, "--output", str(folder / "out"), "--cache", str(folder / "cache")])
    return folder / "out"


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_section_and_figure_is_seen(browser, report, width, scheme):
    page = browser.open(report / "report.html", width=width, scheme=scheme)
    assert page.complaints() == []
    own = (report / "report.html").as_uri()
    assert [address for address in page.requests() if address != own and not address.startswith("data:")] == []
    assert [name for name in SECTIONS if page.run("return document.getElementById(arguments[0]) === null", name)] == []
    boxes = page.run(
        "return [...document.querySelectorAll('svg.chart, svg.plane, img')]"
        ".map(each => each.getBoundingClientRect()).map(box => [box.width, box.height])"
    )
    charts = page.run("return document.querySelectorAll('svg.chart').length")
    assert charts >= 12
    shown = json.loads((report / "evaluation.json").read_text())["sections"]
    pictures = sum(1 + len(query["neighbours"]) for query in shown["gallery"])
    assert len(boxes) >= charts + 2 * pictures
    assert min(min(box) for box in boxes if box != [0, 0]) > 5
    assert sum(box == [0, 0] for box in boxes) <= 2  # the other method of each map, until it is chosen
    assert page.run("return document.scrollingElement.scrollWidth <= innerWidth")


def test_the_page_says_what_the_figures_say(browser, report):
    page = browser.open(report / "report.html")
    text = page.run("return document.getElementById('summary').innerText")
    for name in ("evaluation.json", "evaluation-compared.json"):
        sections = json.loads((report / name).read_text())["sections"]
        assert f"{sections['linear_probe']['metrics']['top1']:.3f}" in text
        assert f"{sections['retrieval']['metrics']['mean_average_precision_at_r']:.3f}" in text
