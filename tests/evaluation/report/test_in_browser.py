"""Reports in a browser: every figure is visible, the console is empty, and the script works."""

import re

import pytest
from helpers.chromium import Browser
from helpers.report_cases import ANIMALS, ODD_NAMES, OTHER, evaluation

from pml_supcon.corruptions import CORRUPTIONS
from pml_supcon.evaluation.report.tables import MINUS, NONE

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.driver.quit()


VISIBLE_FIGURES = """
return [...document.querySelectorAll("svg.chart, .plot svg, img, svg.key, svg.stroke")]
  .filter((element) => !element.closest(".plot") || getComputedStyle(element.closest(".plot")).display !== "none")
  .map((element) => { const box = element.getBoundingClientRect();
    return [element.getAttribute("aria-label") || element.alt || element.className.baseVal, box.width, box.height,
            element.tagName !== "IMG" || element.naturalWidth > 0]; });
"""
TINY_TEXT = """
const found = [];
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walk.nextNode()) {
  const parent = walk.currentNode.parentElement;
  if (!walk.currentNode.data.trim() || parent.closest("script, style") || !parent.getClientRects().length) continue;
  const svg = parent.closest("svg");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  const size = parseFloat(getComputedStyle(parent).fontSize) * scale;
  if (size < 13.99) found.push([walk.currentNode.data.trim(), size]);
}
return found;
"""


@pytest.mark.parametrize("name", ["one", "two", "odd", "many", "alone", "unlike", "same"])
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_page_shows_all_figures_without_messages_in_the_console(browser, report, name, width, scheme):
    page = report(name)
    browser.open(page, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert browser.run("return window.broken") is None
    assert browser.run("return document.scrollingElement.scrollWidth") <= width
    figures = browser.run(VISIBLE_FIGURES)
    assert [each for each in figures if min(each[1], each[2]) <= 4 or not each[3]] == []
    expected = {"one": 7 + len(CORRUPTIONS) + 2, "two": 7 + len(CORRUPTIONS) + 5, "many": 2, "same": 4}
    charts = browser.run("return document.querySelectorAll('svg.chart').length")
    assert charts == {**expected, "odd": 4 + 1 + 1 + 2, "alone": 0, "unlike": 4 + 1 + 1 + 2}[name]
    paper, ink = browser.run("const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]")
    bright = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink)]
    assert (bright[0] > bright[1]) == (scheme == "light")
    assert abs(bright[0] - bright[1]) > 400
    assert width > 360 or name not in ("one", "two") or browser.run(TINY_TEXT) == []


def test_pointing_at_the_map_shows_the_image(browser, report):
    browser.open(report("two"), width=1280)
    section = evaluation(**OTHER).sections.map
    # the second map, by PCA: every thirtieth point
    browser.run("document.querySelectorAll('.map')[1].querySelector('input[value=pca]').click()")
    shown = browser.run("""
      const map = document.querySelectorAll(".map")[1], plot = map.querySelector('.plot[data-method="pca"]');
      const points = JSON.parse(document.getElementById("map-data").textContent).maps[1].points.pca;
      const box = plot.querySelector("svg").getBoundingClientRect(), found = [];
      for (let place = 0; place < points.length; place += 30) {
        const [x, y] = points[place].map((value) => value / 400 * box.width);
        const at = {clientX: box.left + x, clientY: box.top + y};
        plot.dispatchEvent(new PointerEvent("pointermove", at));
        const tile = map.querySelector(".tile"), style = getComputedStyle(tile);
        found.push([map.querySelector(".what").textContent, map.querySelector(".which").textContent,
                    style.backgroundImage.slice(0, 15), style.backgroundPosition, style.imageRendering]);
      }
      return found;""")
    wanted = [(ANIMALS[section.labels[place]], f"test image {section.indices[place]}") for place in range(0, 400, 30)]
    assert [tuple(each[:2]) for each in shown] == wanted
    assert {each[2] for each in shown} == {'url("data:image'}
    assert {each[4] for each in shown} == {"pixelated"}
    for place, each in zip(range(0, 400, 30), shown, strict=True):  # of a sheet of 20 x 20 pictures
        across, down = (float(value.rstrip("%")) for value in each[3].split())
        assert (across, down) == pytest.approx((100 * (place % 20) / 19, 100 * (place // 20) / 19), abs=0.01)


def test_methods_switch_without_a_script_and_classes_are_picked_with_one(browser, report):
    browser.open(report("one"))
    shown = "return [...document.querySelectorAll('.plot')].filter((p) => p.offsetHeight).map((p) => p.dataset.method)"
    assert browser.run(shown) == ["tsne"]
    browser.run("document.querySelector('input[value=pca]').click()")
    assert browser.run(shown) == ["pca"]
    browser.run("document.querySelectorAll('.legend button')[3].click()")
    clear = "return [...document.querySelectorAll('.plane path:not(.dim)')].map((path) => path.dataset.class)"
    assert browser.run(clear) == ["3", "3"]
    browser.run("document.querySelectorAll('.legend button')[3].click()")
    assert len(browser.run(clear)) == 20


def test_columns_sort_both_ways_with_missing_values_last(browser, report):
    browser.open(report("odd"))
    column = "return [...document.querySelectorAll('[data-sortable] tbody tr')].map((row) => row.cells[2].textContent)"
    rising = browser.run(column)
    numbers = [float(text) for text in rising if text != NONE]
    assert numbers == sorted(numbers)
    assert rising[-2:] == [NONE, NONE]
    for order in (True, False):
        browser.run("document.querySelectorAll('[data-sortable] th button')[2].click()")
        found = browser.run(column)
        assert [float(text) for text in found[:-2]] == sorted(numbers, reverse=order)
        assert found[-2:] == [NONE, NONE]
    browser.run("document.querySelectorAll('[data-sortable] th button')[0].click()")
    names = browser.run(
        "return [...document.querySelectorAll('[data-sortable] tbody th')].map((head) => head.textContent)"
    )
    assert sorted(names) == sorted(ODD_NAMES)


def test_a_thousand_classes_stay_in_their_boxes(browser, report):
    browser.open(report("many"), width=360)
    for box in (".tall", ".legend"):
        height, whole = browser.run(
            "const e = document.querySelector(arguments[0]); return [e.clientHeight, e.scrollHeight]", box
        )
        assert height <= 0.7 * 800 + 2
        assert whole > 5000
    assert "several classes share a marker" in report("many").read_text()
    assert "several classes share a marker" not in report("one").read_text()


def test_page_shows_the_map_without_a_script(browser, report):
    browser.open(report("one"), script=False)
    shot = browser.driver.execute_cdp_cmd("DOM.getDocument", {"depth": 0})["root"]["nodeId"]
    ask = {"nodeId": shot, "selector": ".plot[data-method=tsne] svg"}
    node = browser.driver.execute_cdp_cmd("DOM.querySelector", ask)["nodeId"]
    assert browser.driver.execute_cdp_cmd("DOM.getBoxModel", {"nodeId": node})["model"]["width"] > 300
    browser.open(report("one"))


def test_summary_says_which_evaluation_is_better(browser, report):
    browser.open(report("two"))
    rows = browser.run(
        "return [...document.querySelectorAll('#summary tbody tr:not(.part)')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent.trim()))"
    )
    found = {row[0]: row[1:] for row in rows}
    assert found["Precision at 1"] == ["0.951", "0.921", f"{MINUS}0.030 worse"]
    assert found["k-NN accuracy"] == ["0.953", "0.953", "0.000 same"]
    assert found["Mean error under corruption (lower is better)"] == ["0.270", "0.300", "+0.030 worse"]
