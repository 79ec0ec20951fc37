"""kill -9 of the daemon at every side effect of every verb, on the real kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import chain
from tests.faults.scenarios import SCENARIOS
from tests.support.daemon import Place
from tests.support.object_store import object_store

pytestmark = pytest.mark.kernel


#: Verbs that a thick class carries out in a way of its own; the rest is run with all of them over
#: the fake (tests/service/test_thick_crashes.py).
THICK_VERBS = ("create", "clone", "resize", "revert", "erase", "erase snapshot")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One volume group for all verbs."""
    yield from _place(tmp_path_factory, "sbs")


@pytest.fixture(scope="module")
def thick_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The same for a thick class."""
    yield from _place(tmp_path_factory, "bssd")


def _place(factory: pytest.TempPathFactory, storage_class: str) -> Iterator[Place]:
    if not Path("/dev/ubdb").is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    with object_store(factory.mktemp("store")) as server:
        made = dataclasses.replace(
            Place.fresh(factory.mktemp("kill"), storage_class), object_storage=server
        )
        chain.make_foreign(made)
        yield made
        made.remove_vg()


@pytest.mark.parametrize("verb", SCENARIOS)
def test_daemon_killed_at_each_side_effect_leaves_catalog_and_vg_in_agreement(
    place: Place, verb: str
) -> None:
    _die_everywhere(place, verb)


@pytest.mark.parametrize("verb", THICK_VERBS)
def test_daemon_of_a_thick_class_killed_at_each_side_effect_leaves_all_in_agreement(
    thick_place: Place, verb: str
) -> None:
    _die_everywhere(thick_place, verb)


def _die_everywhere(place: Place, verb: str) -> None:
    scenario = SCENARIOS[verb]()
    place = dataclasses.replace(place, trash_keep=scenario.trash_keep)
    events = chain.record(place, scenario)
    for at in chain.fatal_points(events):
        print(f"{verb}: dies {events[at]}", flush=True)
        chain.crash(place, scenario, at, "kill")
    chain.end(place)
    assert place.object_storage is not None
    assert place.object_storage.uploads() == []
