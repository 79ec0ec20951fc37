"""What is written by hand is JSON, whole, and fits the models."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from blockd.api import answers
from blockd.api.render import Render
from blockd.domain.guest import Attachment, AttachmentStatus, GuestKey
from blockd.domain.snapshot import Consistency, ParentVolume, Snapshot
from blockd.domain.states import Status
from blockd.domain.volume import Volume

ID = "0b1c2d3e-4f50-4a6b-8c7d-9e0f1a2b3c4d"
NOW = "2026-08-17T13:11:16.146987Z"

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
STATUSES = st.sampled_from(Status)
IDS = st.uuids().map(str)
TAGS = st.lists(TEXTS, max_size=4).map(tuple)
SIZES = st.integers(1, 10**13)
IOPS = st.sampled_from([5000, 15000])

ATTACHMENTS = st.builds(
    Attachment,
    id=IDS,
    volume_id=IDS,
    guest=st.builds(GuestKey, uri=st.just("qemu:///system"), domain_id=IDS),
    domain_name=TEXTS,
    target=st.sampled_from(["", "vdb"]),
    status=st.sampled_from(AttachmentStatus),
    created_at=st.just(NOW),
)
VOLUMES = st.builds(
    Volume,
    id=IDS,
    project_id=IDS,
    name=TEXTS,
    size_bytes=SIZES,
    perf_iops=IOPS,
    storage_class=st.just("sbs"),
    status=STATUSES,
    tags=TAGS,
    parent_snapshot_id=st.none() | IDS,
    disk=st.just("never shown"),
    created_at=st.just(NOW),
    updated_at=st.just(NOW),
    last_detached_at=st.none() | st.just(NOW),
    deleted_at=st.none() | st.just(NOW),
    error=st.none() | TEXTS,
    attachments=st.lists(ATTACHMENTS, max_size=2).map(tuple),
)
SNAPSHOTS = st.builds(
    Snapshot,
    id=IDS,
    project_id=IDS,
    name=TEXTS,
    size_bytes=SIZES,
    storage_class=st.just("sbs"),
    status=STATUSES,
    public=st.booleans(),
    tags=TAGS,
    volume_id=st.none() | IDS,
    parent=st.none() | st.builds(ParentVolume, id=IDS, name=TEXTS, perf_iops=IOPS, status=STATUSES),
    disk=st.just("never shown"),
    created_at=st.just(NOW),
    updated_at=st.just(NOW),
    deleted_at=st.none() | st.just(NOW),
    error=st.none() | TEXTS,
    content_digest=st.none() | st.just("5" * 64),
    consistency=st.none() | st.sampled_from(Consistency),
    frozen_ms=st.none() | st.integers(0, 60_000),
    group_id=st.none() | st.uuids().map(str),
    suspended_ms=st.none() | st.integers(0, 60_000),
    attachments=st.lists(ATTACHMENTS, max_size=2).map(tuple),
)


def references(attachments: tuple[Attachment, ...], kind: str) -> list[dict[str, object]]:
    return [
        {
            "id": one.id,
            "product_resource_type": "libvirt_domain",
            "product_resource_id": one.guest.domain_id,
            "created_at": NOW,
            "type": kind,
            "status": one.status.value,
        }
        for one in attachments
    ]


def attached_to(attachments: tuple[Attachment, ...]) -> list[dict[str, object]]:
    return [
        {
            "reference_id": one.id,
            "uri": "qemu:///system",
            "domain_id": one.guest.domain_id,
            "domain": one.domain_name,
            "target": one.target or None,
        }
        for one in attachments
    ]


@given(VOLUMES)
def test_volume_says_what_the_value_holds(volume: Volume) -> None:
    told = json.loads(Render("xx-lab-1").host_volume(volume))
    assert told == {
        "id": volume.id,
        "name": volume.name,
        "type": {5000: "sbs_5k", 15000: "sbs_15k"}[volume.perf_iops],
        "size": volume.size_bytes,
        "project_id": volume.project_id,
        "created_at": NOW,
        "updated_at": NOW,
        "references": references(volume.attachments, "exclusive"),
        "parent_snapshot_id": volume.parent_snapshot_id,
        "status": volume.status.value,
        "tags": list(volume.tags),
        "zone": "xx-lab-1",
        "specs": {"class": "sbs", "perf_iops": volume.perf_iops},
        "last_detached_at": volume.last_detached_at,
        "kms_key_id": None,
        "error": volume.error,
        "deleted_at": volume.deleted_at,
        "attachments": attached_to(volume.attachments),
    }
    answers.HostVolume.model_validate(told)
    v1 = json.loads(Render("xx-lab-1").volume(volume))
    aside = ("error", "deleted_at", "attachments")
    assert v1 == {key: told[key] for key in told if key not in aside}
    older = json.loads(Render("xx-lab-1", v1=False).volume(volume))
    assert older == {key: v1[key] for key in v1 if key != "kms_key_id"}
    answers.VolumeV1Alpha1.model_validate(older)


@given(SNAPSHOTS)
def test_snapshot_says_what_the_value_holds(snapshot: Snapshot) -> None:
    told = json.loads(Render("xx-lab-1").host_snapshot(snapshot))
    parent = snapshot.parent
    assert told == {
        "id": snapshot.id,
        "name": snapshot.name,
        "size": snapshot.size_bytes,
        "project_id": snapshot.project_id,
        "created_at": NOW,
        "updated_at": NOW,
        "references": references(snapshot.attachments, "link"),
        "status": snapshot.status.value,
        "parent_volume": None
        if parent is None
        else {
            "id": parent.id,
            "name": parent.name,
            "type": {5000: "sbs_5k", 15000: "sbs_15k"}[parent.perf_iops],
            "status": parent.status.value,
        },
        "tags": list(snapshot.tags),
        "zone": "xx-lab-1",
        "class": "sbs",
        "public": snapshot.public,
        "error": snapshot.error,
        "deleted_at": snapshot.deleted_at,
        "content_digest": snapshot.content_digest,
        "consistency": snapshot.consistency,
        "frozen_ms": snapshot.frozen_ms,
        "group_id": snapshot.group_id,
        "suspended_ms": snapshot.suspended_ms,
        "attachments": attached_to(snapshot.attachments),
    }
    answers.HostSnapshot.model_validate(told)
    v1 = json.loads(Render("xx-lab-1").snapshot(snapshot))
    aside = ("error", "deleted_at", "content_digest", "consistency", "frozen_ms")
    aside += ("group_id", "suspended_ms", "attachments")
    assert v1 == {key: told[key] for key in told if key not in aside}
    older = json.loads(Render("xx-lab-1", v1=False).snapshot(snapshot))
    assert older == {key: v1[key] for key in v1 if key != "public"}
    answers.SnapshotV1Alpha1.model_validate(older)


@given(st.lists(VOLUMES, max_size=3), st.lists(SNAPSHOTS, max_size=3))
def test_list_holds_items_and_the_total_of_all_pages(
    volumes: list[Volume], snapshots: list[Snapshot]
) -> None:
    render = Render("xx-lab-1")
    one_by_one = [json.loads(render.volume(volume)) for volume in volumes]
    assert json.loads(render.volumes(volumes, 7)) == {"volumes": one_by_one, "total_count": 7}
    one_by_one = [json.loads(render.snapshot(snapshot)) for snapshot in snapshots]
    assert json.loads(render.snapshots(snapshots, 7)) == {
        "snapshots": one_by_one,
        "total_count": 7,
    }
