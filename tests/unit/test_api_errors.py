"""Every error has a row of its own in the one table."""

from __future__ import annotations

import importlib
import json
import pkgutil

import pytest
from aiohttp import web

import blockd
from blockd.api.errors import TABLE, error_answer, http_answer, row_of
from blockd.domain import errors

#: Rooms that the API stands on; errors of the others must derive from one that has a row.
OWN_ROW = ("blockd.domain", "blockd.service")

SAMPLES: list[errors.BlockdError] = [
    errors.BlockdError("x"),
    errors.InvalidArguments([errors.BadArgument("size", "constraint", "too small")]),
    errors.NotFound("volume", "id"),
    errors.AuthenticationDenied("not_found"),
    errors.PermissionDenied("volume", "write"),
    errors.NoRoom("volume", 10, 9, "pool is full"),
    errors.PoolUnfit("volume", 10, 9, "pool is ro"),
    errors.AlreadyExists("volume", "id", "other content"),
    errors.TransientState("volume", "id", "creating"),
    errors.WrongState("volume", "id", "error", "change"),
    errors.PreconditionFailed("protected_resource", "in use"),
    errors.InUse("id", "delete"),
    errors.GuestRefused("domain web: no more PCI slots"),
    errors.FreezeNotBegun("domain web: freeze: it has been disabled"),
    errors.HypervisorUnreachable("libvirt qemu:///system: no answer"),
    errors.ImageRefused("it has a backing file"),
    errors.ObjectMissing("bucket", "key"),
    errors.BucketUnfit("there is no bucket"),
    errors.ObjectStoreError("refused"),
    errors.StoreUnavailable("away"),
    errors.ObjectChanged("bucket", "key"),
    errors.UploadGone("gone"),
    errors.Unavailable("busy"),
    errors.CatalogUnavailable("no room"),
    errors.StorageBusy("busy"),
    errors.HostExhausted("no descriptor"),
    errors.StorageError("secret"),
    errors.StorageOverdue("secret"),
    errors.NoSpace("secret"),
    errors.GroupFailed("no snapshot was taken: no room"),
    errors.BackupFailed("class sbs: thin_dump failed"),
    errors.RollbackFailed(ValueError("secret"), ValueError("secret")),
    errors.StartError("secret"),
]

#: What bodies hold besides type and message (wire.md, c).
FIELDS = {
    "denied_authentication": {"method", "reason"},
    "invalid_arguments": {"details"},
    "permissions_denied": {"details"},
    "quotas_exceeded": {"details", "help_message"},
    "not_found": {"resource", "resource_id"},
    "already_exists": {"resource", "resource_id", "help_message"},
    "transient_state": {"resource", "resource_id", "current_state"},
    "precondition_failed": {"precondition", "help_message"},
    "service_unavailable": {"help_message"},
    "internal_server_error": set(),
}
STATUSES = {
    "denied_authentication": 401,
    "invalid_arguments": 400,
    "permissions_denied": 403,
    "quotas_exceeded": 403,
    "not_found": 404,
    "already_exists": 409,
    "transient_state": 409,
    "precondition_failed": 412,
    "service_unavailable": 503,
    "internal_server_error": 500,
}


def descendants(error: type[errors.BlockdError]) -> list[type[errors.BlockdError]]:
    """The class and everything below it."""
    return [error, *(found for sub in error.__subclasses__() for found in descendants(sub))]


def test_every_subclass_has_a_row() -> None:
    for module in pkgutil.walk_packages(blockd.__path__, "blockd."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found = [c for c in descendants(errors.BlockdError) if c.__module__.startswith("blockd.")]
    assert len(found) >= len(SAMPLES)
    without = [c for c in found if c.__module__.startswith(OWN_ROW) and c not in TABLE]
    assert not without
    # A driver's own error may do with its base's row, though not with the root's.
    strangers = [c for c in found if c not in TABLE]
    assert not [c for c in strangers if row_of(c) is TABLE[errors.BlockdError]]


def test_every_row_is_sampled_here() -> None:
    assert {type(sample) for sample in SAMPLES} == set(TABLE)


@pytest.mark.parametrize("error", SAMPLES, ids=lambda error: type(error).__name__)
def test_body_has_the_fields_of_its_type(error: errors.BlockdError) -> None:
    answer = error_answer(error)
    assert answer.content_type == "application/json"
    assert isinstance(answer.body, bytes)
    body = json.loads(answer.body)
    assert body.keys() == {"type", "message"} | FIELDS[body["type"]]
    assert answer.status == STATUSES[body["type"]]
    assert "secret" not in json.dumps(body)
    for detail in body.get("details", []):
        assert all(detail[key] is not None for key in detail)


def test_subclass_without_a_row_takes_its_base_s() -> None:
    class Odd(errors.PreconditionFailed):
        pass

    assert row_of(Odd) is TABLE[errors.PreconditionFailed]
    assert row_of(KeyError) is TABLE[errors.BlockdError]


@pytest.mark.parametrize(
    ("error", "status", "type_"),
    [
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "invalid_arguments"),
        (web.HTTPRequestEntityTooLarge(1, 2), 413, "invalid_arguments"),
        (web.HTTPExpectationFailed(), 417, "invalid_arguments"),
        (web.HTTPBadRequest(), 400, "invalid_arguments"),
    ],
)
def test_answers_of_aiohttp_become_json(error: web.HTTPException, status: int, type_: str) -> None:
    answer = http_answer(error, "PUT", "/\udcff")
    assert answer.status == status
    assert isinstance(answer.body, bytes)
    assert json.loads(answer.body)["type"] == type_
