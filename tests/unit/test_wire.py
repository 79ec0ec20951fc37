"""Bodies, decoded: what the service is asked for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blockd.api.wire import (
    ChangeSnapshot,
    ChangeVolume,
    CreateSnapshot,
    CreateVolume,
    RevertVolume,
    parse_body,
)
from blockd.domain.errors import InvalidArguments
from blockd.domain.snapshot import NewSnapshot, SnapshotChange
from blockd.domain.units import MIB
from blockd.domain.volume import NewVolume, VolumeChange

ID = "0b1c2d3e-4f50-4a6b-8c7d-9e0f1a2b3c4d"
PLAIN = NewVolume(
    name=None,
    project_id=None,
    size_bytes=MIB,
    perf_iops=5000,
    tags=(),
    storage_class=None,
    snapshot_id=None,
)


def raw(body: object) -> bytes:
    return json.dumps(body).encode()


def test_volume_with_nothing_but_a_size_has_the_defaults() -> None:
    assert parse_body(CreateVolume, raw({"from_empty": {"size": MIB}})).new() == PLAIN


def test_volume_with_everything() -> None:
    body = {
        "name": "n",
        "project_id": ID.upper(),
        "from_empty": {"size": str(MIB)},
        "perf_iops": "15000",
        "tags": ["b", "a", "b"],
        "class": "bssd",
        "unknown": 1,
    }
    assert parse_body(CreateVolume, raw(body)).new() == NewVolume(
        name="n",
        project_id=ID,
        size_bytes=MIB,
        perf_iops=15000,
        tags=("b", "a", "b"),
        storage_class="bssd",
        snapshot_id=None,
    )


@pytest.mark.parametrize("size", [{}, {"size": None}, {"size": 0}, {"size": "0"}, {"size": "00"}])
def test_clone_without_a_size_has_the_snapshot_s(size: dict[str, Any]) -> None:
    new = parse_body(
        CreateVolume, raw({"from_snapshot": {"snapshot_id": ID.upper(), **size}})
    ).new()
    assert (new.snapshot_id, new.size_bytes) == (ID, None)


def test_clone_with_a_size() -> None:
    new = parse_body(CreateVolume, raw({"from_snapshot": {"snapshot_id": ID, "size": MIB}})).new()
    assert (new.snapshot_id, new.size_bytes) == (ID, MIB)


@pytest.mark.parametrize("body", [{}, {"name": None, "size": None, "tags": None}])
def test_change_of_nothing(body: dict[str, Any]) -> None:
    assert parse_body(ChangeVolume, raw(body)).change() == VolumeChange()
    assert parse_body(ChangeSnapshot, raw(body)).change() == SnapshotChange()


def test_change_of_everything_and_empty_tags_are_a_change() -> None:
    body = {"name": "n", "size": 2 * MIB, "tags": [], "perf_iops": 15000, "public": False}
    assert parse_body(ChangeVolume, raw(body)).change() == VolumeChange("n", (), 2 * MIB, 15000)
    body["size"] = "ignored here"
    assert parse_body(ChangeSnapshot, raw(body)).change() == SnapshotChange("n", (), False)


def test_new_snapshot() -> None:
    assert parse_body(CreateSnapshot, raw({"volume_id": ID})).new() == NewSnapshot(
        volume_id=ID, name=None, project_id=None, tags=(), public=False
    )
    body = {"volume_id": ID, "public": True, "tags": ["t"], "name": "n", "project_id": ID}
    assert parse_body(CreateSnapshot, raw(body)).new() == NewSnapshot(
        volume_id=ID, name="n", project_id=ID, tags=("t",), public=True
    )


@pytest.mark.parametrize(
    ("more", "keeps"),
    [
        ({}, True),
        ({"keep_previous": None}, True),
        ({"keep_previous": True}, True),
        ({"keep_previous": False}, False),
    ],
)
def test_revert_keeps_unless_told_not_to(more: dict[str, Any], keeps: bool) -> None:
    assert parse_body(RevertVolume, raw({"snapshot_id": ID, **more})).keeps_previous is keeps


def test_faults_are_all_reported_with_dotted_names() -> None:
    body = {"from_empty": {"size": 1.5}, "name": "", "tags": ["ok", ""]}
    with pytest.raises(InvalidArguments) as caught:
        parse_body(CreateVolume, raw(body))
    assert {(d.name, d.reason) for d in caught.value.details} == {
        ("from_empty.size", "format"),
        ("name", "constraint"),
        ("tags", "constraint"),
    }


def test_braces_in_values_do_not_confuse_messages() -> None:
    with pytest.raises(InvalidArguments) as caught:
        parse_body(CreateVolume, raw({"from_empty": {"size": "{x}"}}))
    assert caught.value.details[0].name == "from_empty.size"
