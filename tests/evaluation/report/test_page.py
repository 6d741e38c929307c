"""The page of a report as text: its sections, links and names, and that it needs nothing but its file."""

import re
from html.parser import HTMLParser

import pytest
from helpers.report_cases import evaluation, photographs

from pml_supcon.evaluation.report import write_report


@pytest.mark.parametrize("name", ["two", "odd", "same"])
def test_ids_are_unique_and_every_reference_is_within_the_page(report, name):
    text, ids, addresses = report(name).read_text(), [], []
    page = HTMLParser()

    def note_attributes(tag, attributes):
        ids.extend(value for key, value in attributes if key == "id")
        addresses.extend(value for key, value in attributes if key in ("href", "src", "srcset", "action", "poster"))

    page.handle_starttag = page.handle_startendtag = note_attributes
    page.feed(text)
    assert len(ids) == len(set(ids)) > 10
    references = re.findall(r"url\(#([^)]+)\)", text) + [each[1:] for each in addresses if each.startswith("#")]
    assert set(references) <= set(ids)
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "@import" not in text
    assert not re.search(r"#0a0b[01]", text)  # the placeholders of the page's colours
    assert "DejaVu" not in text


def test_names_are_escaped(report):
    text = report("odd").read_text()
    assert "<script>window" not in text
    assert text.count("&lt;script&gt;window.broken") >= 4


@pytest.mark.parametrize(("name", "number"), [("one", 12), ("alone", 4)])
def test_contents_list_the_sections_that_were_evaluated(report, name, number):
    text = report(name).read_text()
    sections = re.findall(r'<section id="([\w-]+)"', text)
    assert re.findall(r'<li><a href="#([\w-]+)"', text) == sections
    assert len(sections) == number
    assert sections[:2] == ["summary", "classes"]
    assert ('id="map-data"' in text) == ("map" in sections)


def test_a_report_says_if_two_were_evaluated_on_different_data(report):
    unlike, two = report("unlike").read_text(), report("two").read_text()
    assert "A and B were evaluated on different data" in unlike
    assert "<li>B: 3 test images of classes" in unlike
    assert "different data" not in two
    assert "<li>A and B: 3 test images of classes" in two


def test_two_thousand_points_stay_below_five_megabytes(tmp_path):
    some = photographs(20, 160)
    pictures = {index: some[index % 20] for index in range(2000)}
    write_report(tmp_path / "report.html", [evaluation(points=2000, images=2000, pictures=pictures)])
    assert 1_000_000 < (tmp_path / "report.html").stat().st_size < 5_000_000


@pytest.mark.parametrize("number", [0, 3])
def test_a_report_has_one_or_two_evaluations(tmp_path, number):
    with pytest.raises(ValueError, match=f"one or two, but got {number}"):
        write_report(tmp_path / "report.html", [evaluation()] * number)
    assert list(tmp_path.iterdir()) == []
