"""The document describes what is answered: every answer is held against its own schema."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from blockd.api import answers
from blockd.domain.units import MIB
from tests.api.rig import NOBODY, V1, V1ALPHA1, Api

PREFIXES = ("/block/v1/zones/{zone}", "/block/v1alpha1/zones/{zone}")


def keys(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


async def test_document_is_openapi_with_every_route(api: Api) -> None:
    document = await api.ok("GET", "/openapi.json")
    assert document["openapi"] == "3.1.0"
    found = {
        f"{method.upper()} {path}"
        for path, operations in document["paths"].items()
        for method in operations
    }
    objects = {
        f"{method} {prefix}/{kind}s/{{{kind}_id}}"
        for method in ("GET", "PATCH", "DELETE")
        for kind in ("volume", "snapshot")
        for prefix in PREFIXES
    }
    lists = {
        f"{method} {prefix}/{kind}"
        for method in ("GET", "POST")
        for kind in ("volumes", "snapshots")
        for prefix in PREFIXES
    }
    types = {f"GET {prefix}/volume-types" for prefix in PREFIXES}
    transfers = {
        f"POST {prefix}/snapshots/{route}"
        for route in (
            "{snapshot_id}/export-to-object-storage",
            "import-from-object-storage",
        )
        for prefix in PREFIXES
    }
    transfers.add("POST /block/v1alpha1/zones/{zone}/snapshots/import-from-s3")
    host = {
        "GET /host/v1/jobs",
        "GET /host/v1/jobs/{job_id}",
        "POST /host/v1/jobs/{job_id}/cancel",
        "POST /host/v1/object-storage/verify",
        "GET /host/v1/volumes/{volume_id}",
        "GET /host/v1/volumes/{volume_id}/device",
        "POST /host/v1/volumes/{volume_id}/attach",
        "POST /host/v1/volumes/{volume_id}/detach",
        "POST /host/v1/volumes/{volume_id}/revert",
        "POST /host/v1/volumes/{volume_id}/undelete",
        "GET /host/v1/snapshots/{snapshot_id}",
        "POST /host/v1/snapshots/{snapshot_id}/attach",
        "POST /host/v1/snapshots/{snapshot_id}/detach",
        "POST /host/v1/snapshots/{snapshot_id}/undelete",
        "POST /host/v1/groups/snapshots",
        "GET /host/v1/groups/snapshots/{group_id}",
        "GET /host/v1/pools",
        "POST /host/v1/pools/{class_name}/repair",
        "GET /host/v1/health",
        "GET /host/v1/events",
        "GET /host/v1/doctor",
        "POST /host/v1/doctor/fix",
        "GET /host/v1/backups",
        "POST /host/v1/backups",
        "GET /metadata",
    }
    assert found == objects | lists | types | transfers | host


async def test_references_lead_somewhere_and_ids_are_unique(api: Api) -> None:
    document = await api.ok("GET", "/openapi.json")
    schemas = document["components"]["schemas"]
    used: set[str] = set()
    operations: list[str] = []

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            if isinstance(reference := node.get("$ref"), str):
                used.add(reference)
            if "operationId" in node:
                operations.append(node["operationId"])
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document)
    assert used == {f"#/components/schemas/{name}" for name in schemas}
    assert len(set(operations)) == len(operations)


async def test_parameters_and_bodies_are_the_ones_that_are_checked(api: Api) -> None:
    document = await api.ok("GET", "/openapi.json")
    paths, schemas = document["paths"], document["components"]["schemas"]
    listing = paths["/block/v1/zones/{zone}/volumes"]["get"]["parameters"]
    by_name = {parameter["name"]: parameter for parameter in listing}
    assert by_name.keys() == {
        "zone",
        "page",
        "page_size",
        "order_by",
        "project_id",
        "organization_id",
        "name",
        "tags",
        "include_deleted",
        "volume_ids",
        "volume_type",
        "product_resource_id",
    }
    assert by_name["page_size"]["schema"]["maximum"] == 100
    assert by_name["order_by"]["schema"]["enum"] == [
        "created_at_asc",
        "created_at_desc",
        "name_asc",
        "name_desc",
    ]
    size = schemas["FromEmpty"]["properties"]["size"]
    assert size["anyOf"][0] == {
        "type": "integer",
        "minimum": MIB,
        "maximum": 10**13,
        "multipleOf": 512,
    }
    assert "class" in schemas["CreateVolume"]["properties"]
    assert schemas["CreateSnapshot"]["required"] == ["volume_id"]
    assert schemas["CreateVolume"]["properties"]["name"]["anyOf"][0]["maxLength"] == 255


def test_prefixes_differ_by_two_keys_alone() -> None:
    assert keys(answers.Volume) - keys(answers.VolumeV1Alpha1) == {"kms_key_id"}
    assert keys(answers.Snapshot) - keys(answers.SnapshotV1Alpha1) == {"public"}
    aside = {"error", "deleted_at", "attachments"}
    assert keys(answers.HostVolume) - keys(answers.Volume) == aside
    aside = {"error", "deleted_at", "content_digest", "consistency", "frozen_ms"}
    aside |= {"group_id", "suspended_ms", "attachments"}
    assert keys(answers.HostSnapshot) - keys(answers.Snapshot) == aside


def test_answers_forbid_keys_that_are_not_described() -> None:
    models = [
        model
        for model in vars(answers).values()
        if isinstance(model, type) and issubclass(model, answers.Answer)
    ]
    assert len(models) > 15
    assert all(model.model_config.get("extra") == "forbid" for model in models)


@pytest.mark.parametrize("prefix_", [V1, V1ALPHA1])
async def test_every_answer_fits_its_model(api: Api, prefix_: str) -> None:
    v1 = prefix_ == V1
    volume_model = answers.Volume if v1 else answers.VolumeV1Alpha1
    snapshot_model = answers.Snapshot if v1 else answers.SnapshotV1Alpha1
    volume = await api.volume(prefix_, tags=["é"])
    snapshot = await api.snapshot(volume["id"], prefix_)
    volume_path, snapshot_path = f"volumes/{volume['id']}", f"snapshots/{snapshot['id']}"
    host = "/host/v1"
    exchanges: list[tuple[type[BaseModel], str, str, object]] = [
        (volume_model, "POST", f"{prefix_}/volumes", {"from_empty": {"size": MIB}}),
        (
            volume_model,
            "POST",
            f"{prefix_}/volumes",
            {"from_snapshot": {"snapshot_id": snapshot["id"]}},
        ),
        (volume_model, "GET", f"{prefix_}/{volume_path}", None),
        (volume_model, "PATCH", f"{prefix_}/{volume_path}", {"name": "n"}),
        (snapshot_model, "POST", f"{prefix_}/snapshots", {"volume_id": volume["id"]}),
        (snapshot_model, "GET", f"{prefix_}/{snapshot_path}", None),
        (snapshot_model, "PATCH", f"{prefix_}/{snapshot_path}", {"name": "n"}),
        (answers.Volumes if v1 else answers.VolumesV1Alpha1, "GET", f"{prefix_}/volumes", None),
        (
            answers.Snapshots if v1 else answers.SnapshotsV1Alpha1,
            "GET",
            f"{prefix_}/snapshots",
            None,
        ),
        (answers.VolumeTypes, "GET", f"{prefix_}/volume-types", None),
        (answers.HostVolume, "GET", f"{host}/{volume_path}", None),
        (answers.HostSnapshot, "GET", f"{host}/{snapshot_path}", None),
        (answers.Device, "GET", f"{host}/{volume_path}/device", None),
        (answers.Pools, "GET", f"{host}/pools", None),
        (answers.Health, "GET", f"{host}/health", None),
        (answers.Metadata, "GET", "/metadata", None),
        (
            answers.HostVolume,
            "POST",
            f"{host}/{volume_path}/revert",
            {"snapshot_id": snapshot["id"]},
        ),
    ]
    for model, method, path, body in exchanges:
        found = await api.ok(method, path, body)
        assert found.keys() == keys(model), (method, path)
        model.model_validate(found)
    problem = await api("GET", f"{prefix_}/volumes/{NOBODY}")
    answers.Problem.model_validate(problem.body)
