"""`docs/faults.md`: what was measured is written, and what was not is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import report
from tests.faults.campaign import Tally
from tests.faults.cycles import Sample
from tests.faults.lvm_cases import Case, cases, noting, operation_of
from tests.faults.replay import Replay

#: Of a run in which nothing grows.
SAMPLES = [Sample(0, count, 5, 29, 0, 0, 60000, 1.0) for count in range(200, 1200, 200)]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    return tmp_path / "faults.md"


def write(document: Path, samples: list[Sample], tried: list[Case]) -> str:
    replays = [Replay(document.parent / kind, kind) for kind in ("thin", "thick")]
    report.write(document, replays, Tally(), samples, tried)
    return document.read_text()


def test_part_without_results_says_so_at_first(document: Path) -> None:
    text = write(document, [], [])
    for title in ("Replay", "Campaign", "Cycles", "LVM"):
        assert f"\n## {title}\n\nNot run.\n" in text


def test_part_without_results_stays_as_it_was_written(document: Path) -> None:
    first = write(document, SAMPLES, [Case("create, thin", "lock held", is_good=True)])
    assert "| cycles | 200 | 1000 |" in first
    assert "| create, thin | 1 | 0 |" in first
    assert write(document, [], []) == first
    assert write(document, SAMPLES, []) == first


def test_part_with_results_is_written_anew(document: Path) -> None:
    write(document, SAMPLES, [Case("create, thin", "lock held", is_good=True)])
    again = write(document, [], [Case("create, thin", "exit 5 after", is_good=False)])
    assert "| create, thin | 1 | 1 |" in again
    assert "lock held |" not in again
    assert "Cases in all: 1, not good: 1." in again


def test_case_is_noted_with_what_came_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "faults" / "lvm.jsonl"
    test = "t.py::test_each_lvm_process_of_a_thin_verb_misbehaves_and_so_on[erase snapshot]"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", f"{test} (call)")
    with noting({}, notes):
        pass
    with noting({1: "lock held"}, notes):
        pass
    with pytest.raises(AssertionError), noting({2: "hang after"}, notes):
        raise AssertionError("the volume is gone")
    assert cases(notes) == [
        Case("erase snapshot, thin", "lock held", is_good=True),
        Case("erase snapshot, thin", "hang after", is_good=False),
    ]


def test_case_that_is_tried_again_counts_as_it_ended_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "lvm.jsonl"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "t.py::test_pool_is_made_in_the_end[1] (call)")
    with pytest.raises(AssertionError), noting({1: "lock held"}, notes):
        raise AssertionError("two at once")
    with noting({1: "lock held"}, notes):
        pass
    assert cases(notes) == [Case("make-pool", "lock held", is_good=True)]


def test_test_that_begins_anew_forgets_the_cases_of_its_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "lvm.jsonl"
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "t.py::test_pool_is_made_in_the_end[1] (call)")
    for plan in ({7: "lock held"}, {}, {1: "exit 5 before", 2: "no output"}):
        with noting(plan, notes):
            pass
    assert cases(notes) == [Case("make-pool", "no output", is_good=True)]


def test_each_test_of_a_misbehaving_lvm_has_a_word_for_its_operation(
    request: pytest.FixtureRequest,
) -> None:
    folder = Path(__file__).parent
    names = [
        f"{line.partition('(')[0].removeprefix('def ')}[thin-x]"
        for path in folder.glob("test_lvm_misbehaves*.py")
        for line in path.read_text().splitlines()
        if line.startswith("def test_")
    ]
    assert len(names) > 10
    for name in names:
        tried = [name, name.replace("thin-", "leave_active-"), name.replace("thin-", "leave_unk")]
        assert any(map(_has_operation, tried)), name


def _has_operation(test: str) -> bool:
    try:
        return bool(operation_of(test))
    except ValueError:
        return False
