"""One keep-alive HTTP connection on the daemon's Unix socket, and the waits of the benchmarks."""

from __future__ import annotations

import http.client
import json
import re
import socket
import time
from pathlib import Path
from typing import Any, Self

from tests.support.client import ZONE, ApiError

#: Pause between two looks at a resource that is being made: adds half of it to a figure.
POLL_S = 0.002
DEADLINE_S = 120.0
SNAPSHOTS = f"/block/v1/zones/{ZONE}/snapshots"
VOLUMES = f"/block/v1/zones/{ZONE}/volumes"


class Connection(http.client.HTTPConnection):
    """HTTP/1.1 over a Unix socket, one connection for all requests."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=DEADLINE_S)
        self._path = path

    def connect(self) -> None:
        """Called by the base class at the first request."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(DEADLINE_S)
        self.sock.connect(str(self._path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text(self, method: str, path: str, body: object | None = None) -> bytes:
        """The body of the answer.

        Raises:
            ApiError: the status is 400 or more.
        """
        payload = None if body is None else json.dumps(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        self.request(method, path, payload, headers)
        response = self.getresponse()
        text = response.read()
        if response.status >= 400:
            raise ApiError(response.status, text)
        return text

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        """The decoded answer, None when it is empty."""
        text = self.text(method, path, body)
        return json.loads(text) if text else None

    def until(
        self, path: str, statuses: tuple[str, ...] = ("available",), *, poll_s: float = POLL_S
    ) -> None:
        """Look every `poll_s` until the resource has one of `statuses`."""
        deadline = time.monotonic() + DEADLINE_S
        while (seen := self.call("GET", path)["status"]) not in statuses:
            if seen == "error" or time.monotonic() > deadline:
                raise RuntimeError(f"{path} is {seen}")
            time.sleep(poll_s)

    def lvm_processes(self) -> tuple[dict[str, int], int]:
        """LVM processes started so far, by command, and how many operations are under way."""
        page = self.text("GET", "/metrics").decode()
        counts = re.findall(r'(?m)^blockd_lvm_processes_total\{command="(\w+)"\} (\S+)$', page)
        under_way = re.search(r"(?m)^blockd_operations (\S+)$", page)
        return {name: int(float(value)) for name, value in counts}, int(
            float(under_way[1] if under_way else 0)
        )

    def until_erased(self, removed_before: int) -> None:
        """Look every `POLL_S` until one more `lvremove` was started, and nothing is under way."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            counts, under_way = self.lvm_processes()
            if counts.get("lvremove", 0) > removed_before and not under_way:
                return
            if time.monotonic() > deadline:
                raise RuntimeError("nothing was erased")
            time.sleep(POLL_S)
