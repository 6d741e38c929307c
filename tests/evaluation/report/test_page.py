"""The page of a report as text: its sections, links and names, and that it needs nothing but its file."""

import re
from html.parser import HTMLParser

import pytest
from helpers.report_cases import evaluation, photographs, write_reports

from pml_supcon.evaluation.report import write_report


@pytest.fixture(scope="session")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    return write_reports(folder)


class Ids(HTMLParser):
    """The ids of a page, what refers to them, and all addresses."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.references, self.addresses = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key == "id":
                self.ids.append(value)
            if key == "href" and value.startswith("#"):
                self.references.append(value[1:])
            elif key in ("href", "src", "srcset", "action", "poster"):
                self.addresses.append(value)
            self.references += re.findall(r"url\(#([^)]+)\)", value or "")


@pytest.mark.parametrize("name", ["one", "two", "odd", "same"])
def test_ids_are_unique_and_every_reference_is_within_the_page(reports, name):
    text = (reports / f"{name}.html").read_text()
    page = Ids(text)
    assert len(page.ids) == len(set(page.ids)) > 10
    assert set(page.references) <= set(page.ids)
    assert all(address.startswith("data:") for address in page.addresses)
    assert "@import" not in text
    assert not re.search(r"#0a0b[01]", text)  # the stand-ins for the page's colours
    assert "DejaVu" not in text


def test_names_come_out_as_text(reports):
    text = (reports / "odd.html").read_text()
    assert "<script>window" not in text
    assert text.count("&lt;script&gt;window.broken") >= 4


def test_absent_sections_leave_nothing_behind(reports):
    text = (reports / "alone.html").read_text()
    sections = re.findall(r'<section id="([\w-]+)"', text)
    assert sections == ["summary", "classes", "retrieval", "about"]
    assert re.findall(r'<li><a href="#([\w-]+)"', text) == sections
    assert 'id="map-data"' not in text


def test_contents_lead_to_every_section(reports):
    text = (reports / "one.html").read_text()
    sections = re.findall(r'<section id="([\w-]+)"', text)
    assert re.findall(r'<li><a href="#([\w-]+)"', text) == sections
    assert len(sections) == 12


def test_two_on_different_data_are_told_apart(reports):
    assert "A and B were evaluated on different data" in (reports / "unlike.html").read_text()
    assert "different data" not in (reports / "two.html").read_text()
    assert "<li>A and B: 3 test images of classes" in (reports / "two.html").read_text()
    assert "<li>B: 3 test images of classes" in (reports / "unlike.html").read_text()


def test_two_thousand_points_stay_below_five_megabytes(tmp_path):
    some = photographs(40, 224)
    pictures = {index: some[index % 40] for index in range(2000)}
    write_report(tmp_path / "report.html", [evaluation(points=2000, images=2000, pictures=pictures)])
    assert 1_000_000 < (tmp_path / "report.html").stat().st_size < 5_000_000


def test_one_or_two_evaluations(tmp_path):
    for some in ([], [evaluation()] * 3):
        with pytest.raises(ValueError, match=f"one or two, but got {len(some)}"):
            write_report(tmp_path / "report.html", some)
    assert list(tmp_path.iterdir()) == []
