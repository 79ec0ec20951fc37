"""What came of each case of a misbehaving LVM: the tests note it, `docs/faults.md` counts it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

from tests.faults.guest import ROOT
from tests.faults.notes import Notes, read_notes

#: On the host, which it is on at once.
NOTES = ROOT / "build/faults/lvm.jsonl"

#: Which calls misbehave, counted from 1, and how.
Plan = dict[int, str]

#: What LVM was run for in the tests of a name; `\1` is the first of their parameters.
_OPERATIONS = {
    r"process_of_a_start_.*\[(.*)\]": r"start, \1",
    r"test_undelete_": r"undelete after a reboot, thin",
    r"process_of_a_(thin|thick)_verb_.*\[(.*)\]": r"\2, \1",
    r"test_extension_of_a_thin_pool_": r"extension of a pool",
    r"test_growth_of_a_thick_store_": r"growth of a thick snapshot's store",
    r"test_space_for_copies_": r"space for copies of the catalog",
    r"test_doctor_whose_look_.*\[(.*)\]": r"doctor's look, \1",
    r"test_fix_of_the_doctors_.*\[leave_active-": r"doctor's fix of a disk left active",
    r"test_fix_of_the_doctors_.*\[leave_unknown-": r"doctor's fix of an unknown disk",
    r"test_backup_.*\[(.*)\]": r"backup, \1",
    r"test_pool_is_repaired_": r"repair of a pool",
    r"test_pool_is_made_": r"make-pool",
    r"test_start_without_a_catalog_.*\[(.*)\]": r"start without a catalog, \1",
    r"test_start_with_an_old_catalog_": r"start with an old catalog, thin",
    r"test_recover_catalog_": r"recover-catalog",
}


@dataclass(frozen=True)
class Case:
    """One that was tried; `how` is of the call that misbehaved last."""

    operation: str
    how: str
    is_good: bool


def noted(case: Callable[[Plan], list[str]]) -> Callable[[Plan], list[str]]:
    """The same, within `noting`."""

    @wraps(case)
    def within(plan: Plan) -> list[str]:
        with noting(plan):
            return case(plan)

    return within


@contextmanager
def noting(plan: Plan, path: Path = NOTES) -> Iterator[None]:
    """One case of the test that runs; without a plan LVM behaves, and the test begins anew."""
    test = os.environ["PYTEST_CURRENT_TEST"].rpartition(" ")[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    is_good = False
    try:
        yield
        is_good = True
    finally:
        with closing(Notes(path)) as notes:
            notes.add(test=test, plan=[*plan.items()], is_good=is_good)


def cases(path: Path = NOTES) -> list[Case]:
    """Of each test those of its last run."""
    known: dict[str, dict[str, Case]] = {}
    for note in read_notes(path):
        of_test = known.setdefault(note["test"], {})
        if note["plan"]:
            how = note["plan"][-1][1]
            case = Case(operation_of(note["test"]), how, note["is_good"])
            of_test[str(note["plan"])] = case
        else:
            of_test.clear()
    return [case for of_test in known.values() for case in of_test.values()]


def operation_of(test: str) -> str:
    """What LVM was run for in a test with this node id.

    Raises:
        ValueError: there is no word for it.
    """
    for pattern, operation in _OPERATIONS.items():
        if match := re.search(pattern, test):
            return match.expand(operation)
    raise ValueError(f"{test}: what was LVM run for?")
