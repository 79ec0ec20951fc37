"""Bodies, decoded: what the service is asked for."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from blockd.api.transfer_bodies import (
    ExportSnapshot,
    ImportSnapshot,
    ImportSnapshotV1Alpha1,
    VerifyObject,
)
from blockd.api.wire import (
    Body,
    ChangeSnapshot,
    ChangeVolume,
    CreateSnapshot,
    CreateVolume,
    RevertVolume,
    parse_body,
)
from blockd.domain.errors import InvalidArguments
from blockd.domain.job import Compression, NewExport, NewImport
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


def test_export() -> None:
    body = {"bucket": "backups", "key": "a/b.qcow2"}
    plain = NewExport("backups", "a/b.qcow2", Compression.NONE)
    assert parse_body(ExportSnapshot, raw(body)).new() == plain
    assert parse_body(ExportSnapshot, raw({**body, "compression": None})).new() == plain
    packed = parse_body(ExportSnapshot, raw({**body, "compression": "zstd"})).new()
    assert packed.compression is Compression.ZSTD


@pytest.mark.parametrize("size", [{}, {"size": None}, {"size": 0}, {"size": "0"}])
def test_import_with_nothing_but_an_object_has_the_defaults(size: dict[str, Any]) -> None:
    assert parse_body(ImportSnapshot, raw({"bucket": "abc", "key": "k", **size})).new() == (
        NewImport("abc", "k", None, None, None, (), public=False, storage_class=None)
    )


def test_import_with_everything_and_public_under_v1_alone() -> None:
    body = {
        "bucket": "abc",
        "key": "k",
        "name": "n",
        "project_id": ID.upper(),
        "size": str(MIB),
        "tags": ["b", "a"],
        "public": True,
        "class": "bssd",
        "unknown": 1,
    }
    new = NewImport("abc", "k", "n", ID, MIB, ("b", "a"), public=True, storage_class="bssd")
    assert parse_body(ImportSnapshot, raw(body)).new() == new
    body["public"] = "no field here, so never looked at"
    assert parse_body(ImportSnapshotV1Alpha1, raw(body)).new() == replace(new, public=False)


@pytest.mark.parametrize("model", [ExportSnapshot, ImportSnapshot, VerifyObject])
def test_bucket_and_key_are_required_and_all_faults_are_told(model: type[Body]) -> None:
    for body, reason in (({}, "required"), ({"bucket": "a b", "key": "/k"}, "format")):
        with pytest.raises(InvalidArguments) as caught:
            parse_body(model, raw(body))
        found = {(d.name, d.reason) for d in caught.value.details}
        assert found == {("bucket", reason), ("key", reason)}


@pytest.mark.parametrize(
    "bucket", ["abc", "a" * 63, "0a1", "my.bucket-1", "1.2.3", "1.2.3.4.5", "a.1.2.3", "10-0-0-1"]
)
def test_buckets(bucket: str) -> None:
    assert parse_body(VerifyObject, raw({"bucket": bucket, "key": "k"})).bucket == bucket


@pytest.mark.parametrize(
    "bucket",
    [
        *("", "ab", "a" * 64, "Abc", "a_b", "a b", "a/b", "bücher", "abc\n"),
        *("-ab", "ab-", ".ab", "ab.", "a..b", "192.168.5.4", "999.1.1.1", "xn--abc", 3, ["abc"]),
    ],
)
def test_what_is_no_bucket(bucket: object) -> None:
    with pytest.raises(InvalidArguments) as caught:
        parse_body(VerifyObject, raw({"bucket": bucket, "key": "k"}))
    assert [d.name for d in caught.value.details] == ["bucket"]


@pytest.mark.parametrize(
    "key", ["k", "x" * 1024, "é" * 512, "a/b/c", "...", ".a", "a./b", "%2e%2e/k", "a b?c#d&e+f"]
)
def test_keys(key: str) -> None:
    assert parse_body(VerifyObject, raw({"bucket": "abc", "key": key})).key == key


@pytest.mark.parametrize(
    "key",
    [
        *("", "x" * 1025, "é" * 513, "/k", "k/", "a//b", ".", "..", "a/./b", "../k", "k/.."),
        *("a\x00b", "a\nb", "a\x7fb", 3, ["k"]),
    ],
)
def test_what_is_no_key(key: object) -> None:
    with pytest.raises(InvalidArguments) as caught:
        parse_body(VerifyObject, raw({"bucket": "abc", "key": key}))
    assert [d.name for d in caught.value.details] == ["key"]
