"""The content of the report. test_cohort_run.py renders one in a browser."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable

import pytest

pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.cohort.case import Case, Outcome, Rejected
from dcaseg.cohort.ledger import ENDED_EARLY, Ledger
from dcaseg.cohort.report import rank_concerns, write_report, write_volumes
from dcaseg.cohort.report_template import STYLE
from dcaseg.cohort.volume_chart import draw_volume_chart
from dcaseg.organs import AMOS

LIVER = AMOS.by_key["liver"]


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    found = Ledger(tmp_path / "cohort.sqlite")
    found.begin({})
    return found


def case(number: int, **about: str) -> Case:
    return Case(f"{number}", f"folder-{number}", f"in/{number}", ("a", "b"), True, "1", **about)


@pytest.fixture
def report(tmp_path, ledger) -> Callable[[], str]:
    """Writes the report and returns its text."""

    def written() -> str:
        file = tmp_path / "report.html"
        write_report(file, ledger, AMOS, tmp_path / "cases")
        return file.read_text(encoding="utf-8")

    return written


def test_the_style_sheet_is_not_escaped(report):
    """Browsers drop a rule with escaped quotes, such as the one for the labels that replace headings when narrow."""
    assert STYLE in report()


def test_failures_that_differ_only_in_names_and_numbers_are_grouped(ledger, report):
    lacking = [
        Rejected(f"r{number}", f"in/{number}", "failed", f"The DICOM series in A{number} is missing {number} slices.",
                 description=f"A{number}")
        for number in range(2, 16)
    ]  # fmt: skip
    ledger.enter([], [*lacking, Rejected("x", "in/x.dcm", "failed", "empty")])
    section = report().partition("<h2>Failures</h2>")[2].partition("<h2>")[0]
    assert re.findall(r'<td class="number" data-label="Cases">(\d+)</td>', section) == ["14", "1"]
    assert "The DICOM series in A10 is missing 10 slices." in section
    assert "the others differ in names or numbers" in section
    assert "and 4 more" in section


def test_an_early_end_is_shown_with_its_reason_until_a_run_finishes(ledger, report):
    ledger.enter([case(1)], [])
    ledger.note(ENDED_EARLY, "The disk is full.")
    assert "The last run ended early. The disk is full." in report()
    ledger.note(ENDED_EARLY, "")
    assert "ended early" not in report()


def test_the_table_gives_the_rank_of_cases_to_check_and_the_result_folders(ledger, report):
    ledger.enter([case(number) for number in range(3)], [])
    for number, ml in enumerate((1500.0, 100.0, 0.0)):
        ledger.finish(Outcome(f"{number}", "ok", volumes_ml={"liver": ml}, seconds={"total": 3.0}))
    rows = report().partition("<h2>All cases</h2>")[2].split("<tr>")[2:]
    cells = [re.findall(r'<td class="number"[^>]*>(.*?)</td>', row) for row in rows]
    assert cells == [["2", "3.0", ""], ["2", "3.0", "2"], ["2", "3.0", "1"]]
    assert all(f"cases/folder-{number}" in row for number, row in enumerate(rows))


def test_names_are_escaped(ledger, report):
    name = "<script>alert('x')</script>"
    ledger.enter([case(1, patient=name, description=name)], [Rejected("r", name, "failed", name, name)])
    ledger.finish(Outcome("1", "ok", volumes_ml={"liver": 0.1}, concerns=(name,), concern=1.0, notes=(name,)))
    page = report()
    assert page.count("<script") == 1, "only the sorting script"
    assert "<script>alert" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("cases", [20, 400])
def test_a_small_cohort_is_drawn_as_dots_and_a_large_one_as_histograms(cases):
    low, high = LIVER.volume_ml
    inside = (low * high) ** 0.5
    volumes = [(f"c{number}", {"liver": inside * (1 + number / cases / 10)}) for number in range(cases - 3)]
    volumes += [("small", {"liver": low / 2}), ("large", {"liver": high * 1.2}), ("none", {"liver": 0.0})]
    svg = draw_volume_chart(volumes, AMOS)
    assert "1 without" in svg
    counts = [int(count) for count in re.findall(r"<title>(\d+) cases?</title>", svg)]
    assert svg.count("<circle") == (cases - 1 if cases == 20 else 0)
    assert sum(counts) == (0 if cases == 20 else cases - 1)
    assert len(re.findall(r'class="(?:dot|bar) outside"', svg)) == 2


def test_cases_have_a_link_a_large_picture_and_their_cut_off_organs(ledger, report, tmp_path):
    ledger.enter([case(1, patient="A & B"), case(2)], [])
    ledger.finish(Outcome("1", "ok", volumes_ml={"liver": 900.0}, cut_off=("liver",)))
    ledger.finish(Outcome("2", "failed", reason="no memory"))
    folder = tmp_path / "cases" / "folder-1"
    folder.mkdir(parents=True)
    for name in ("picture.jpg", "thumbnail.jpg"):
        (folder / name).write_bytes(b"jpeg")
    page = report()
    assert 'href="cases/folder-1/"' in page and 'href="cases/folder-1/picture.jpg"' in page
    assert "folder-2/" not in page
    assert "Liver (cut off by the scan: lower bound)" in page
    assert 'href="volumes.csv"' in page


def test_only_segmented_organs_are_drawn(ledger, report):
    ledger.enter([case(1)], [])
    ledger.finish(Outcome("1", "ok", volumes_ml={"liver": 1500.0, "spleen": 0.0}))
    page = report()
    assert ">Liver</text>" in page and ">Spleen</text>" in page and ">Bladder</text>" not in page
    assert "Bladder not found" not in page


def test_all_volumes_are_in_one_table(ledger, tmp_path):
    ledger.enter([case(1, patient="P", description="=HYPERLINK(1)"), case(2)], [Rejected("3", "x", "skipped", "MR")])
    ledger.finish(Outcome("1", "ok", volumes_ml={"liver": 1500.0, "spleen": 200.5}, cut_off=("liver",)))
    ledger.finish(Outcome("2", "ok", volumes_ml={"liver": 1400.0, "spleen": 0.0}))
    write_volumes(tmp_path / "volumes.csv", ledger, AMOS)
    rows = list(csv.DictReader((tmp_path / "volumes.csv").open(encoding="utf-8")))
    assert [(row["status"], row["spleen_ml"], row["liver_ml"], row["cut_off"]) for row in rows] == [
        ("ok", "200.500", "1500.000", "liver"), ("ok", "0.000", "1400.000", ""), ("skipped", "", "", ""),
    ]  # fmt: skip
    assert "bladder_ml" not in rows[0]
    assert rows[0]["description"] == "'=HYPERLINK(1)", "no formula for a spreadsheet"


def test_the_table_holds_no_commands_for_a_terminal(ledger, tmp_path):
    ledger.enter([case(1, description="a\x1b[2J\n\u202eb\u3000腹")], [Rejected("3", "\x07x", "skipped", "\rno")])
    write_volumes(tmp_path / "volumes.csv", ledger, AMOS)
    text = (tmp_path / "volumes.csv").read_text(encoding="utf-8")
    assert "a\\x1b[2J\\n\\u202eb\u3000腹" in text and "\\x07x" in text and "\\rno" in text
    assert text.count("\n") == 3 and not {"\x1b", "\x07", "\r", "\u202e"} & set(text)


def test_a_small_volume_of_a_cut_off_organ_is_not_a_concern(ledger):
    ledger.enter([case(1), case(2)], [])
    ledger.finish(Outcome("1", "ok", volumes_ml={"liver": 100.0}, cut_off=("liver",)))
    ledger.finish(Outcome("2", "ok", volumes_ml={"liver": 100.0}))
    assert [one.entry.key for one in rank_concerns(list(ledger.iter_entries()), AMOS)] == ["2"]
