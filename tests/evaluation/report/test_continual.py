"""The report of a run of continual learning has the figures of its record, and a bad record gives one line."""

import json
import re
from html.parser import HTMLParser

import pytest
from helpers.chromium import Browser

from pml_supcon.evaluation.report import write_continual_report
from pml_supcon.evaluation.report.tables import NONE

RECORD = {
    "method": "co2l",
    "scenario": "class",
    "tasks": [["cat", "dog"], ["<b>owl", "fox"], ["bee"]],
    "class_il": [[0.911, None, None], [0.722, 0.833, None], [0.544, 0.655, 0.966]],
    "task_il": [[0.912, None, None], [0.923, 0.834, None], [0.945, 0.856, 1]],
    "average_accuracy": {"class_il": 0.7217, "task_il": 0.9337},
    "forgetting": {"class_il": 0.2725, "task_il": -0.0275},
    "settings": {"buffer_size": 200, "data": "digits", "scheduler": None},
}


class Tables(HTMLParser):
    """The texts of the cells, by table and row."""

    def __init__(self, page):
        super().__init__()
        self.tables, self.inside = [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, text):
        if self.inside:
            self.tables[-1][-1][-1] += text


def written(folder, **change):
    (folder / "continual.json").write_text(json.dumps(RECORD | change))
    assert write_continual_report(folder) == folder / "report.html"
    return (folder / "report.html").read_text()


def test_the_report_has_the_figures_of_the_record(tmp_path):
    page = written(tmp_path)
    summary, class_il, task_il, about = Tables(page).tables
    assert summary == [
        ["after the last task", "Class-IL", "Task-IL"],
        ["Average accuracy", "0.722", "0.934"],
        ["Forgetting (lower is better)", "0.273", "-0.028"],
    ]
    names = ["1: cat, dog", "2: <b>owl, fox", "3: bee"]
    assert class_il == [
        ["after task", *names, "mean"],
        [names[0], "0.911", NONE, NONE, "0.911"],
        [names[1], "0.722", "0.833", NONE, "0.777"],
        [names[2], "0.544", "0.655", "0.966", "0.722"],
    ]
    assert [row[-1] for row in task_il[1:]] == ["0.912", "0.879", "0.934"]
    assert about == [["buffer_size", "200"], ["data", "digits"], ["scheduler", NONE]]
    # each measured accuracy colours its cell, and the figure is in it
    heat = re.findall(r'<td style="--heat: ([\d.]+)">([\d.]+)</td>', page)
    measured = [value for name in ("class_il", "task_il") for row in RECORD[name] for value in row if value is not None]
    assert [float(colour) for colour, _ in heat] == measured
    assert all(float(colour) == float(text) for colour, text in heat)
    assert "<h1>co2l: 3 tasks, scenario class</h1>" in page
    assert "<b>" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_a_run_that_was_scored_at_its_end_only_has_dashes(tmp_path):
    last = [[None] * 3, [None] * 3, [0.5, 0.75, 1.0]]
    none = {"class_il": None, "task_il": None}
    summary, class_il, *_ = Tables(written(tmp_path, class_il=last, forgetting=none)).tables
    assert class_il[1][1:] == class_il[2][1:] == [NONE] * 4
    assert class_il[3][1:] == ["0.500", "0.750", "1.000", "0.750"]
    assert summary[2][1:] == [NONE, NONE]


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^Expected a file, but there is no .*continual\.json$"):
        write_continual_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"continual\.json to be JSON, but Expecting property name"),
        ("[1]", r"continual\.json to be a JSON object, but got \[1\]"),
        ({"method": None}, r"`method` of .*continual\.json to be a str, but got None"),
        ({"task_il": {}}, r"`task_il` of .* to be a list, but got \{\}"),
        ({"tasks": [["cat"], ["dog"], []]}, "`tasks` of .* to be a list of class names for each task, but got"),
        ({"tasks": [[0], [1], [2]]}, "`tasks` of .* to be a list of class names for each task, but got"),
        ({"tasks": [["cat"]]}, "`class_il` of .* to be 1 rows of 1, one for each task, but got"),
        ({"class_il": [[0.5], [0.5, 0.5], [0.5] * 3]}, "`class_il` of .* to be 3 rows of 3, one for each task"),
        ({"class_il": [[91.0, None, None]] * 3}, r"`class_il\[0\]\[0\]` of .* to be an accuracy in \[0, 1\] or null"),
        ({"task_il": [[0.5, 0.5, None]] * 3}, r"`task_il\[0\]\[1\]` of .* to be null, because .*, but got 0\.5"),
        ({"forgetting": {"class_il": 0.5}}, r"`forgetting\.task_il` of .* to be a number .* or null, but got None"),
        ({"average_accuracy": {"class_il": "x"}}, r"`average_accuracy\.class_il` of .* to be a number .*, but got 'x'"),
        ({"average_accuracy": {"class_il": float("nan")}}, r"`average_accuracy\.class_il` of .*, but got nan"),
    ],
)
def test_a_bad_record_gives_one_line(tmp_path, text, message):
    path = tmp_path / "continual.json"
    path.write_text(text if isinstance(text, str) else json.dumps(RECORD | text))
    with pytest.raises(ValueError, match=message) as caught:
        write_continual_report(tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_the_cells_are_readable_in_a_browser(tmp_path, width, scheme):
    written(tmp_path)
    browser = Browser(tmp_path / "profile")
    try:
        browser.open(tmp_path / "report.html", width=width, scheme=scheme)
        assert browser.complaints() == []
        assert browser.run("return document.scrollingElement.scrollWidth") <= width
        colours = browser.run(
            "return [...document.querySelectorAll('td[style]')].map((cell) => getComputedStyle(cell).backgroundColor)"
        )
    finally:
        browser.driver.quit()
    assert len(set(colours)) == 12  # a colour for each accuracy
    alpha = [float(re.search(r"/ ([\d.]+)", colour)[1]) for colour in colours]
    assert alpha[-1] == max(alpha) == pytest.approx(0.5, abs=0.01)
