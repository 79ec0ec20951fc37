"""The API over its Unix socket, as plainly as can be."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ZONE = "xx-lab-1"
PROJECT = "22222222-2222-4222-8222-222222222222"
ORGANIZATION = "11111111-1111-4111-8111-111111111111"

#: A question takes the daemon 20 ms of the one CPU on which it has something else to do.
_POLL_S = 0.1


class ApiError(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path, self._timeout_s = path, timeout_s

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout_s)
        self.sock.connect(str(self._path))


class Api:
    """Verbs of `/block/v1` and `/host/v1`; every call is a connection of its own."""

    def __init__(self, socket_path: Path, *, timeout_s: float = 120) -> None:
        self._path, self._timeout_s = socket_path, timeout_s

    @contextmanager
    def following(self, resource_id: str) -> Iterator[Iterator[Any]]:
        """The data of each event of a resource from now on, as it comes."""
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request("GET", f"/host/v1/events?resource_id={resource_id}")
            response = connection.getresponse()
            lines = iter(response.readline, b"")
            # The first block is no event, and tells that the stream is open.
            assert any(line.startswith(b"id: ") for line in lines)
            yield (json.loads(line[6:]) for line in lines if line.startswith(b"data: "))
        finally:
            connection.close()

    def last_status(self, path: str) -> str:
        """The status that came with the last event of a stream that ends."""
        connection = _Connection(self._path, self._timeout_s)
        try:
            connection.request("GET", path)
            lines = connection.getresponse().read().splitlines()
        finally:
            connection.close()
        data = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
        return str([one["status"] for one in data if "status" in one][-1])

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """The decoded answer.

        Raises:
            ApiError: the status is 400 or more.
            OSError, http.client.HTTPException: the daemon is gone.
        """
        connection = _Connection(self._path, self._timeout_s)
        try:
            payload = None if body is None else json.dumps(body)
            headers = {} if body is None else {"Content-Type": "application/json"}
            connection.request(method, path, payload, headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        answer = json.loads(text) if text else None
        if response.status >= 400:
            raise ApiError(response.status, answer)
        return answer

    def block(self, method: str, path: str, body: object | None = None) -> Any:
        """A call below `/block/v1/zones/{zone}`."""
        return self.call(method, f"/block/v1/zones/{ZONE}/{path}", body)

    def host(self, method: str, path: str, body: object | None = None) -> Any:
        """A call below `/host/v1`."""
        return self.call(method, f"/host/v1/{path}", body)

    def create_volume(self, name: str, size_bytes: int) -> str:
        """A volume that is available; its id."""
        body = {"name": name, "from_empty": {"size": size_bytes}}
        return self.settled("volumes", self.block("POST", "volumes", body)["id"])

    def clone(self, name: str, snapshot_id: str, size_bytes: int | None = None) -> str:
        """A volume from a snapshot that is available; its id."""
        source = {"snapshot_id": snapshot_id, "size": size_bytes}
        body = {"name": name, "from_snapshot": source}
        return self.settled("volumes", self.block("POST", "volumes", body)["id"])

    def snapshot(self, name: str, volume_id: str) -> str:
        """A snapshot that is available; its id."""
        body = {"name": name, "volume_id": volume_id}
        return self.settled("snapshots", self.block("POST", "snapshots", body)["id"])

    def export(self, snapshot_id: str, key: str, **more: str) -> None:
        """Begin to export a snapshot into the bucket of the tests."""
        body = {"bucket": "backups", "key": key, **more}
        self.block("POST", f"snapshots/{snapshot_id}/export-to-object-storage", body)

    def import_snapshot(self, name: str, key: str) -> str:
        """Begin to import a snapshot from there; its id."""
        body = {"bucket": "backups", "key": key, "name": name}
        made = self.block("POST", "snapshots/import-from-object-storage", body)
        return str(made["id"])

    def job_of(self, snapshot_id: str) -> Any:
        """The latest job of a snapshot, once it has ended."""
        deadline = time.monotonic() + 120
        while True:
            (job,) = self.host("GET", f"jobs?snapshot_id={snapshot_id}&page_size=1")["jobs"]
            if job["finished_at"]:
                return job
            assert time.monotonic() < deadline, job
            time.sleep(_POLL_S)

    def settled(self, kind: str, resource_id: str) -> str:
        """Wait until a volume or snapshot is in no passing state; its id."""
        deadline = time.monotonic() + 60
        while (status := self.block("GET", f"{kind}/{resource_id}")["status"]) in (
            "creating",
            "updating",
            "exporting",
        ):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{kind} {resource_id} is still {status}")
            time.sleep(_POLL_S)
        assert status in ("available", "in_use"), (kind, resource_id, status)
        return resource_id

    def idle(self, despite: str | None = None) -> None:
        """Wait until no operation is under way, and none is being tried again.

        Args:
            despite: health may tell of problems with these words in them, and of no other.
        """
        deadline = time.monotonic() + 60
        while (health := self.host("GET", "health"))["queued"]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"operations do not end: {health}")
            time.sleep(_POLL_S)
        assert [line for line in health["problems"] if not despite or despite not in line] == [], (
            health
        )

    def all(self, kind: str, query: str = "") -> list[dict[str, Any]]:
        """Every volume or snapshot, page by page."""
        found: list[dict[str, Any]] = []
        page = 1
        while True:
            part = self.block("GET", f"{kind}?page_size=100&page={page}{query}")
            found += part[kind]
            if len(found) >= part["total_count"]:
                return found
            page += 1

    def device(self, volume_id: str) -> Path:
        """Where a volume's bytes are."""
        return Path(self.host("GET", f"volumes/{volume_id}/device")["path"])
