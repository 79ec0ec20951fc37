"""The one table: what each error is over HTTP. Bodies as in the API's published error types."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from aiohttp import web

from blockd.domain import errors as e

#: Go clients dispatch on `type`, Python's on the status; both print `message`.
INVALID_ARGUMENTS: Final = ("invalid_arguments", "invalid argument(s)")
NOT_FOUND: Final = ("not_found", "resource is not found")
INTERNAL: Final = ("internal_server_error", "Internal error")

MAX_BODY_BYTES: Final = 1024**2


class Row(NamedTuple):
    """How one error is answered. `fields` gives what the body holds besides type and message."""

    status: int
    type: str
    message: str
    fields: Callable[[Any], dict[str, object]]


def _details(error: e.InvalidArguments) -> dict[str, object]:
    return {
        "details": [
            {"argument_name": d.name, "reason": d.reason, "help_message": d.help}
            for d in error.details
        ]
    }


def _resource(error: Any) -> dict[str, object]:
    return {"resource": error.resource, "resource_id": error.resource_id}


def _authentication(error: e.AuthenticationDenied) -> dict[str, object]:
    return {"method": "api_key", "reason": error.reason}


def _permission(error: e.PermissionDenied) -> dict[str, object]:
    return {"details": [{"resource": error.resource, "action": error.action}]}


def _quota(error: e.NoRoom) -> dict[str, object]:
    detail = {"resource": error.resource, "quota": error.quota, "current": error.current}
    return {"details": [detail], "help_message": str(error)}


def _exists(error: e.AlreadyExists) -> dict[str, object]:
    return {**_resource(error), "help_message": str(error)}


def _transient(error: e.TransientState) -> dict[str, object]:
    return {**_resource(error), "current_state": error.state}


def _precondition(error: e.PreconditionFailed) -> dict[str, object]:
    return {"precondition": error.precondition, "help_message": str(error)}


def _not_usable(error: e.WrongState) -> dict[str, object]:
    return {"precondition": "resource_not_usable", "help_message": str(error)}


def _argument(name: str) -> Callable[[e.BlockdError], dict[str, object]]:
    """The fields of a request whose argument `name` names what cannot be used."""
    return lambda error: _details(e.InvalidArguments.one(name, "constraint", str(error)))


def _store(error: e.ObjectStoreError) -> dict[str, object]:
    return {"precondition": "resource_not_usable", "help_message": str(error)}


def _backup(error: e.BackupFailed) -> dict[str, object]:
    return {"precondition": "resource_not_usable", "help_message": str(error)}


def _group(error: e.GroupFailed) -> dict[str, object]:
    return {"precondition": "resource_not_usable", "help_message": str(error)}


def _later(error: e.Unavailable) -> dict[str, object]:
    return {"help_message": f"{error}; nothing was changed, try again later"}


def _line(error: e.BlockdError) -> dict[str, object]:
    return {"help_message": str(error)}


def _nothing(_error: e.BlockdError) -> dict[str, object]:
    return {}


_PRECONDITION = "precondition_failed", "precondition is not respected"
_UNAVAILABLE = "service_unavailable", "service is temporarily unavailable"

#: The reason of a 500 is for the log; clients must not learn of devices and paths.
TABLE: Final[Mapping[type[e.BlockdError], Row]] = {
    e.InvalidArguments: Row(400, *INVALID_ARGUMENTS, _details),
    e.AuthenticationDenied: Row(
        401, "denied_authentication", "authentication is denied", _authentication
    ),
    e.PermissionDenied: Row(403, "permissions_denied", "insufficient permissions", _permission),
    e.NoRoom: Row(403, "quotas_exceeded", "quota(s) exceeded for this resource", _quota),
    e.PoolUnfit: Row(403, "quotas_exceeded", "quota(s) exceeded for this resource", _quota),
    e.NotFound: Row(404, *NOT_FOUND, _resource),
    e.AlreadyExists: Row(409, "already_exists", "resource already exists", _exists),
    e.TransientState: Row(409, "transient_state", "resource is in a transient state", _transient),
    e.WrongState: Row(412, *_PRECONDITION, _not_usable),
    e.PreconditionFailed: Row(412, *_PRECONDITION, _precondition),
    e.InUse: Row(412, *_PRECONDITION, _precondition),
    e.GuestRefused: Row(412, *_PRECONDITION, _precondition),
    e.FreezeNotBegun: Row(412, *_PRECONDITION, _precondition),
    e.ImageRefused: Row(400, *INVALID_ARGUMENTS, _argument("key")),
    e.ObjectMissing: Row(400, *INVALID_ARGUMENTS, _argument("key")),
    e.BucketUnfit: Row(400, *INVALID_ARGUMENTS, _argument("bucket")),
    e.ObjectStoreError: Row(412, *_PRECONDITION, _store),
    e.StoreUnavailable: Row(412, *_PRECONDITION, _store),
    e.ObjectChanged: Row(412, *_PRECONDITION, _store),
    e.UploadGone: Row(412, *_PRECONDITION, _store),
    # Clients try a 503 again by themselves, which is right: nothing was done.
    e.Unavailable: Row(503, *_UNAVAILABLE, _later),
    e.CatalogUnavailable: Row(503, *_UNAVAILABLE, _later),
    e.HostExhausted: Row(503, *_UNAVAILABLE, _later),
    e.HypervisorUnreachable: Row(503, *_UNAVAILABLE, _line),
    e.StorageBusy: Row(503, *_UNAVAILABLE, _later),
    e.StorageError: Row(500, *INTERNAL, _nothing),
    e.StorageOverdue: Row(500, *INTERNAL, _nothing),
    e.NoSpace: Row(500, *INTERNAL, _nothing),
    # As the rows of a snapshot that failed tell it, too; there are none left to tell it.
    e.GroupFailed: Row(412, *_PRECONDITION, _group),
    # As health tells it, too: whoever asks for a backup must know why there is none.
    e.BackupFailed: Row(412, *_PRECONDITION, _backup),
    e.RollbackFailed: Row(500, *INTERNAL, _nothing),
    e.StartError: Row(500, *INTERNAL, _nothing),
    e.BlockdError: Row(500, *INTERNAL, _nothing),
}


def row_of(error: type[BaseException]) -> Row:
    """The row of an error's class, or of its nearest base; a stranger is a 500."""
    for base in error.__mro__:
        if (row := TABLE.get(base)) is not None:
            return row
    return TABLE[e.BlockdError]


def error_answer(error: BaseException) -> web.Response:
    """The answer to a request that raised `error` (anything but aiohttp's own exceptions)."""
    row = row_of(type(error))
    return _answer(row.status, row.type, row.message, row.fields(error))


def http_answer(error: web.HTTPException, method: str, path: str) -> web.Response:
    """What aiohttp answers by itself (no route, no method, too large), as JSON.

    Of its headers `Allow` is kept.
    """
    if error.status == 404:
        return _answer(404, *NOT_FOUND, {"resource": "route", "resource_id": path})
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = _fault(405, "method", "constraint", f"{method} is not allowed here, {allowed} is")
        answer.headers["Allow"] = allowed
        return answer
    if error.status == 413:
        help_text = f"body must be lower or equal to {MAX_BODY_BYTES} bytes"
        return _fault(413, "body", "constraint", help_text)
    return malformed_answer(error.reason, error.status)


def malformed_answer(help_text: str, status: int = 400) -> web.Response:
    """The answer to something that is no HTTP request, or one that HTTP forbids."""
    return _fault(status, "request", "format", help_text)


def _fault(status: int, argument: str, reason: str, help_text: str) -> web.Response:
    fault = e.InvalidArguments.one(argument, reason, help_text)
    return _answer(status, *INVALID_ARGUMENTS, _details(fault))


def _answer(status: int, type_: str, message: str, fields: dict[str, object]) -> web.Response:
    # ASCII only: a path may hold bytes that are no UTF-8 (as lone surrogates), and is echoed.
    body = json.dumps({"type": type_, "message": message, **fields}).encode("ascii")
    return web.Response(status=status, body=body, content_type="application/json")
