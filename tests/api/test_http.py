"""HTTP itself: JSON whatever happens, ids, limits, odd requests."""

from __future__ import annotations

import asyncio
import json
import os
import re
from typing import Any

import pytest
from structlog.testing import capture_logs

from blockd.api.peer import Peer
from blockd.domain.units import MIB
from tests.api.rig import NOBODY, V1, Api, Rig, exchange

ROUTES = [
    ("/metadata", "GET"),
    ("/metrics", "GET"),
    ("/openapi.json", "GET"),
    (f"{V1}/volumes", "GET, POST"),
    (f"{V1}/volumes/{NOBODY}", "DELETE, GET, PATCH"),
    (f"{V1}/volume-types", "GET"),
    (f"{V1}/snapshots", "GET, POST"),
    (f"{V1}/snapshots/{NOBODY}", "DELETE, GET, PATCH"),
    (f"/host/v1/volumes/{NOBODY}", "GET"),
    (f"/host/v1/volumes/{NOBODY}/device", "GET"),
    (f"/host/v1/volumes/{NOBODY}/revert", "POST"),
    (f"/host/v1/volumes/{NOBODY}/undelete", "POST"),
    (f"/host/v1/snapshots/{NOBODY}", "GET"),
    (f"/host/v1/snapshots/{NOBODY}/undelete", "POST"),
    ("/host/v1/pools", "GET"),
    ("/host/v1/health", "GET"),
]


def parsed(answer: bytes) -> tuple[int, Any]:
    """Status and body of raw bytes that must be a JSON error with an id."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.search(rb"\r\nX-Request-Id: [0-9a-f-]{36}", head, re.IGNORECASE), head
    assert re.search(rb"\r\nContent-Type: application/json", head, re.IGNORECASE), head
    error = json.loads(body)
    assert isinstance(error["type"], str)
    assert isinstance(error["message"], str)
    return int(head.split()[1]), error


@pytest.mark.parametrize(("path", "allowed"), ROUTES)
async def test_other_methods_are_405_with_allow(api: Api, path: str, allowed: str) -> None:
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(allowed.split(", ")):
        reply = await api(method, path, raw=b"{}")
        assert (reply.status, reply.headers["Allow"]) == (405, allowed)
        assert reply.body == {
            "type": "invalid_arguments",
            "message": "invalid argument(s)",
            "details": [
                {
                    "argument_name": "method",
                    "reason": "constraint",
                    "help_message": f"{method} is not allowed here, {allowed} is",
                }
            ],
        }


async def test_head_is_405(api: Api) -> None:
    async with api.session.head(f"http://blockd{V1}/volumes") as answer:
        assert answer.status == 405
        assert answer.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nope"),
        ("GET", f"{V1}"),
        ("GET", f"{V1}/"),
        ("GET", f"{V1}/volumes/"),
        ("GET", f"{V1}/volumes/{NOBODY}/x"),
        ("GET", "/block/v2/zones/xx-lab-1/volumes"),
        ("GET", "/block/v1/zones"),
        ("POST", f"{V1}/snapshots/import-from-s3"),
        ("POST", f"{V1}/snapshots/{NOBODY}/export-to-tape"),
        ("GET", "/host/v1/volumes"),
        ("GET", "/host/v1/zones/xx-lab-1/health"),
    ],
)
async def test_unknown_route_is_404_json(api: Api, method: str, path: str) -> None:
    reply = await api(method, path)
    assert reply.status == 404
    assert reply.body == {
        "type": "not_found",
        "message": "resource is not found",
        "resource": "route",
        "resource_id": path,
    }


async def test_body_of_one_mib_is_read_and_one_more_byte_is_413(api: Api) -> None:
    body = json.dumps({"from_empty": {"size": MIB}}).encode()
    fits = body + b" " * (MIB - len(body))
    assert (await api("POST", f"{V1}/volumes", raw=fits)).status == 200
    for method, path in (
        ("POST", f"{V1}/volumes"),
        ("PATCH", f"{V1}/volumes/{NOBODY}"),
        ("POST", f"/host/v1/volumes/{NOBODY}/undelete"),
        ("GET", f"{V1}/volumes"),
    ):
        reply = await api(method, path, raw=fits + b" ")
        assert reply.status == 413, (method, path)
        assert reply.body == {
            "type": "invalid_arguments",
            "message": "invalid argument(s)",
            "details": [
                {
                    "argument_name": "body",
                    "reason": "constraint",
                    "help_message": f"body must be lower or equal to {MIB} bytes",
                }
            ],
        }


async def test_chunked_body_over_one_mib_is_413(rig: Rig) -> None:
    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 65536

    url = f"http://blockd{V1}/volumes"
    async with rig.api.session.post(url, data=chunks()) as answer:
        assert answer.status == 413
        assert (await answer.json())["type"] == "invalid_arguments"


async def test_body_of_reads_and_deletes_is_ignored(rig: Rig) -> None:
    """Python's client sends `{}` with each, and no content type (wire.md, details)."""
    volume = await rig.api.volume()
    path = f"{V1}/volumes/{volume['id']}"
    for raw in (b"{}", b"junk", b"[" * 1000, b"\xff\xfe", b" " * 100_000):
        assert (await rig.api("GET", path, raw=raw)).status == 200
    # Both on one connection: the body must not be taken for the next request.
    lines = f"GET {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}" * 2
    answer = await exchange(rig.socket, lines.encode())
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert (await rig.api("DELETE", path, raw=b"{}")).status == 204


@pytest.mark.parametrize(
    "head",
    [
        "GET\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\r\n\r\n",
        "FOO /metadata HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metadata HTTP/9.9\r\nHost: x\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nno colon here\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        "GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\n" + "X: y\r\n" * 2000 + "\r\n",
        "GET /" + "x" * 200_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: junk\r\n\r\n",
        "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET /metadata HTTP/1.1\r\nHost: x\r\nExpect: the unexpected\r\n\r\n",
    ],
    ids=lambda head: repr(head[:44]),
)
async def test_what_is_no_http_is_answered_in_json(rig: Rig, head: str) -> None:
    status, error = parsed(await exchange(rig.socket, head.encode("latin-1")))
    assert status in (400, 417)
    assert error["type"] == "invalid_arguments"
    assert error["details"][0]["argument_name"] == "request"


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("Content-Encoding: gzip", b"junk"),
        ("Content-Encoding: deflate", b"\xff" * 40),
    ],
)
async def test_body_that_cannot_be_decoded_is_400(rig: Rig, coding: str, body: bytes) -> None:
    lines = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\n{coding}\r\nContent-Length: {len(body)}"
    status, error = parsed(await exchange(rig.socket, f"{lines}\r\n\r\n".encode() + body))
    assert (status, error["type"]) == (400, "invalid_arguments")


async def test_broken_chunks_are_400(rig: Rig) -> None:
    lines = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, error = parsed(await exchange(rig.socket, lines.encode() + b"zz\r\n{}\r\n0\r\n\r\n"))
    assert (status, error["type"]) == (400, "invalid_arguments")


async def test_expect_continue_is_continued(rig: Rig) -> None:
    body = json.dumps({"from_empty": {"size": MIB}}).encode()
    reader, writer = await asyncio.open_unix_connection(rig.socket)
    head = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    writer.write(body)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    "path",
    [
        "/\xff\xfe",
        f"{V1}/volumes/%ff%fe",
        f"{V1}/volumes/%",
        f"{V1}/volumes/%zz",
        f"{V1}/volumes/..%2f..%2fetc",
        f"{V1}/volumes/\xff",
        "/block/v1/zones/\xff/volumes",
        "/block/v1/zones/%00/volumes",
        "/%2e%2e/%2e%2e",
        "*",
        "//",
    ],
)
async def test_odd_paths_are_answered_in_json(rig: Rig, path: str) -> None:
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1")
    status, _ = parsed(await exchange(rig.socket, request))
    assert status in (400, 404)


async def test_query_that_is_no_utf8_is_answered_in_json(rig: Rig) -> None:
    request = f"GET {V1}/volumes?name=\xff HTTP/1.1\r\nHost: x\r\n\r\n".encode("latin-1")
    status, error = parsed(await exchange(rig.socket, request))
    assert (status, error["type"]) == (400, "invalid_arguments")


async def test_key_that_is_no_ascii_is_400(rig: Rig) -> None:
    body = json.dumps({"from_empty": {"size": MIB}}).encode()
    head = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = f"{head}Idempotency-Key: \xff\r\n\r\n".encode("latin-1") + body
    status, error = parsed(await exchange(rig.socket, request))
    assert (status, error["details"][0]["argument_name"]) == (400, "Idempotency-Key")


async def test_request_ids_are_fresh_whatever_the_client_sends(api: Api) -> None:
    seen = set()
    for _ in range(3):
        reply = await api("GET", "/metadata", headers={"X-Request-Id": NOBODY})
        seen.add(reply.headers["X-Request-Id"])
    assert len(seen) == 3
    assert NOBODY not in seen


async def test_metadata_and_metrics(api: Api) -> None:
    metadata = await api.ok("GET", "/metadata")
    assert metadata.keys() == {"domain", "partition", "platform"}
    assert all(isinstance(value, str) and value for value in metadata.values())
    reply = await api("GET", "/metrics")
    assert (reply.status, reply.raw) == (200, b"blockd_up 1\n")
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")


async def test_peer_that_is_not_admitted_is_403_on_every_route(rig: Rig) -> None:
    asked: list[Peer] = []

    def nobody(peer: Peer) -> bool:
        asked.append(peer)
        return False

    rig.admit = nobody
    for path, methods in [*ROUTES, ("/nope", "GET"), ("/block/v1/zones/a/b", "GET")]:
        for method in methods.split(", "):
            reply = await rig.api(method, path, raw=b"{}")
            assert reply.status == 403, (method, path)
            action = "read" if method == "GET" else "write"
            assert reply.body == {
                "type": "permissions_denied",
                "message": "insufficient permissions",
                "details": [{"resource": "api", "action": action}],
            }
    assert set(asked) == {Peer(os.getuid(), os.getgid(), os.getpid())}


async def test_each_request_is_one_event_reads_at_debug(rig: Rig) -> None:
    with capture_logs() as events:
        read = await rig.api("GET", f"{V1}/volumes?name=secret")
        missing = await rig.api("GET", f"{V1}/volumes/{NOBODY}")
        write = await rig.api("POST", f"{V1}/volumes", {"from_empty": {"size": MIB}})
    told = [event for event in events if event["event"] == "request"]
    assert [
        (e["log_level"], e["method"], e["path"], e["status"], e["request_id"]) for e in told
    ] == [
        ("debug", "GET", f"{V1}/volumes", 200, read.headers["X-Request-Id"]),
        ("info", "GET", f"{V1}/volumes/{NOBODY}", 404, missing.headers["X-Request-Id"]),
        ("info", "POST", f"{V1}/volumes", 200, write.headers["X-Request-Id"]),
    ]
    assert all(isinstance(event["duration_ms"], float) for event in told)


async def test_internal_error_is_logged_with_its_cause(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause = RuntimeError("the cause")

    async def fail(*_: object) -> None:
        raise cause

    monkeypatch.setattr(type(rig.service.volumes), "get", fail)
    with capture_logs() as events:
        await rig.api("GET", f"{V1}/volumes/{NOBODY}")
    (event,) = [event for event in events if event["event"] == "request"]
    assert (event["log_level"], event["exc_info"]) == ("error", cause)


async def test_client_that_leaves_does_not_stop_what_it_asked_for(rig: Rig) -> None:
    entered, gate = asyncio.Event(), asyncio.Event()
    done = asyncio.Event()
    real = rig.service.volumes.create

    async def slow(*arguments: Any) -> Any:
        entered.set()
        await gate.wait()
        made = await real(*arguments)
        done.set()
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(rig.service.volumes), "create", lambda _self, *a: slow(*a))
        body = json.dumps({"from_empty": {"size": MIB}}).encode()
        _, writer = await asyncio.open_unix_connection(rig.socket)
        head = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(10):
            await entered.wait()
            writer.transport.abort()
            await rig.api.ok("GET", "/metadata")  # the loop has seen the connection go
            gate.set()
            await done.wait()
    assert (await rig.api.ok("GET", f"{V1}/volumes"))["total_count"] == 1


async def test_client_that_leaves_amid_its_body_changes_nothing(rig: Rig) -> None:
    with capture_logs() as events:
        _, writer = await asyncio.open_unix_connection(rig.socket)
        head = f"POST {V1}/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{"
        writer.write(head.encode())
        await writer.drain()
        await rig.api.ok("GET", "/metadata")
        writer.transport.abort()
        for _ in range(5):
            await rig.api.ok("GET", "/metadata")
    assert not [event for event in events if event["log_level"] == "error"]
    assert (await rig.api.ok("GET", f"{V1}/volumes"))["total_count"] == 0
