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

#: Those that storage carries out otherwise than in a thin class.
THICK_VERBS = (
    "create",
    "clone",
    "snapshot",
    "group",
    "resize",
    "revert",
    "erase",
    "erase snapshot",
)
#: Only with --full, as they take long: the plug is pulled in exports always; a revert that keeps
#: what was there has each side effect of one that does not.
LONG_VERBS = ("export", "revert without keeping")
CASES = [
    *(
        pytest.param("thin", verb, id=verb, marks=pytest.mark.full if verb in LONG_VERBS else ())
        for verb in SCENARIOS
    ),
    *(
        pytest.param("thick", verb, id=f"thick {verb}", marks=pytest.mark.full)
        for verb in THICK_VERBS
    ),
]


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """One volume group for all verbs of a kind of class, which is the parameter."""
    if not Path("/dev/ubdb").is_block_device():
        pytest.skip("no /dev/ubdb: run inside scripts/lab with two disks")
    with object_store(tmp_path_factory.mktemp("store")) as server:
        made = Place.fresh(
            tmp_path_factory.mktemp("kill"), kind=request.param, object_storage=server
        )
        chain.make_foreign(made)
        yield made
        made.remove_vg()


@pytest.mark.parametrize(("place", "verb"), CASES, indirect=["place"])
def test_daemon_killed_at_each_side_effect_leaves_catalog_and_vg_in_agreement(
    place: Place, verb: str
) -> None:
    scenario = SCENARIOS[verb]()
    place = dataclasses.replace(place, trash_keep=scenario.trash_keep)
    events = chain.record(place, scenario)
    for at in chain.fatal_points(events, "kill"):
        print(f"{verb}: dies {events[at]}", flush=True)
        chain.crash(place, scenario, chain.named(events, at), "kill")
    chain.end(place, scenario)
    assert place.object_storage is not None
    assert place.object_storage.uploads() == []
