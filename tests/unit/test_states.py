"""The tables of transitions, pair by pair."""

from __future__ import annotations

from itertools import product

import pytest

from blockd.domain.errors import TransientState, WrongState
from blockd.domain.states import (
    MOVES,
    SNAPSHOT_MOVES,
    TRANSIENT,
    VOLUME_MOVES,
    Event,
    Status,
    move,
    seen_status,
)

S, E = Status, Event

#: Written out a second time, by hand: a slip in the tables must not pass for the truth.
SHARED = {
    (S.CREATING, E.CREATED): S.AVAILABLE,
    (S.CREATING, E.FAILED): S.ERROR,
    (S.AVAILABLE, E.DELETE): S.DELETED,
    (S.ERROR, E.DELETE): S.DELETED,
    (S.DELETED, E.UNDELETE): S.AVAILABLE,
    (S.DELETED, E.UNDELETE_BROKEN): S.ERROR,
}
EXPECTED = {
    "volume": {
        **SHARED,
        (S.AVAILABLE, E.CHANGE): S.UPDATING,
        (S.UPDATING, E.CHANGED): S.AVAILABLE,
        (S.UPDATING, E.FAILED): S.AVAILABLE,
        (S.AVAILABLE, E.LOST): S.ERROR,
    },
    "snapshot": {
        **SHARED,
        (S.AVAILABLE, E.EXPORT): S.EXPORTING,
        (S.EXPORTING, E.EXPORTED): S.AVAILABLE,
        (S.EXPORTING, E.FAILED): S.AVAILABLE,
        (S.AVAILABLE, E.LOST): S.ERROR,
        (S.EXPORTING, E.LOST): S.ERROR,
        (S.DELETED, E.LOST): S.DELETED,
    },
}
PAIRS = list(product(sorted(EXPECTED), Status, Event))


def test_tables_hold_exactly_the_expected_moves() -> None:
    assert {name: dict(table) for name, table in MOVES.items()} == EXPECTED
    assert MOVES["volume"] is VOLUME_MOVES
    assert MOVES["snapshot"] is SNAPSHOT_MOVES


@pytest.mark.parametrize(("resource", "status", "event"), PAIRS)
def test_move_goes_where_it_is_listed_and_raises_everywhere_else(
    resource: str, status: Status, event: Event
) -> None:
    before = {name: dict(table) for name, table in MOVES.items()}
    target = EXPECTED[resource].get((status, event))
    if target is not None:
        assert move(resource, "id", status, event) is target
    elif status in TRANSIENT:
        with pytest.raises(TransientState) as transient:
            move(resource, "id", status, event)
        assert (transient.value.resource, transient.value.resource_id) == (resource, "id")
        assert transient.value.state == status
    else:
        with pytest.raises(WrongState) as wrong:
            move(resource, "id", status, event)
        assert (wrong.value.resource, wrong.value.resource_id) == (resource, "id")
        assert (wrong.value.status, wrong.value.event) == (status, event)
    assert {name: dict(table) for name, table in MOVES.items()} == before


@pytest.mark.parametrize("resource", sorted(EXPECTED))
def test_every_transient_status_that_can_be_entered_can_be_left(resource: str) -> None:
    entered = {S.CREATING, *EXPECTED[resource].values()}
    for status in entered & TRANSIENT:
        assert any(source is status for source, _ in MOVES[resource])


@pytest.mark.parametrize("resource", sorted(EXPECTED))
def test_in_use_is_never_stored(resource: str) -> None:
    assert S.IN_USE not in MOVES[resource].values()
    assert all(source is not S.IN_USE for source, _ in MOVES[resource])


@pytest.mark.parametrize("stored", [status for status in Status if status is not S.IN_USE])
def test_seen_status_is_in_use_only_for_an_open_available_resource(stored: Status) -> None:
    assert seen_status(stored, is_open=False) is stored
    expected = S.IN_USE if stored is S.AVAILABLE else stored
    assert seen_status(stored, is_open=True) is expected
