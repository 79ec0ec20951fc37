"""One connection to `/host/v1/events`, read block by block: server-sent events.

The request is HTTP/1.0, so that the answer is not cut into chunks, and the socket is read here, so
that waiting for a while and going on is possible: `http.client` gives up once it has timed out.
"""

from __future__ import annotations

import json
import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

from .client import Query

ROUTE = "/host/v1/events"
#: The daemon says something every 15 s.
SILENCE_S = 45.0
#: From the request to the head of its answer.
_HEAD_S = 10.0
_MOST_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class Told:
    """One block. `name` is empty where it only tells the place, `id`, from which to go on."""

    name: str
    id: str
    data: dict[str, Any]


class StreamEnded(Exception):
    """The daemon ended it, or is gone; from the last id it can be gone on with."""


class StreamRefused(Exception):
    """The daemon answered with something else than a stream."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(f"HTTP {status}")
        self.status, self.body = status, body


class EventStream:
    """An open stream, for the length of a block. `last_id` is where a later one may go on."""

    def __init__(self, socket_path: str, query: Query, last_id: str = "") -> None:
        """Ask for it, and wait for the head of the answer.

        Raises:
            OSError: nobody listens, or nobody answers.
            StreamEnded: the connection was closed before there was an answer.
            StreamRefused: it is no stream that was answered.
        """
        self.last_id = last_id
        self._rest = b""
        self._heard_s = time.monotonic()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(_HEAD_S)
            self._sock.connect(socket_path)
            self._ask(query, last_id)
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave; safe to call twice."""
        self._sock.close()

    def next(self, timeout_s: float) -> Told | None:
        """The next block; None if none is whole within `timeout_s`, which loses nothing.

        Raises:
            StreamEnded: there are no more, or the daemon has been silent for too long.
        """
        until_s = time.monotonic() + timeout_s
        while (end := self._rest.find(b"\n\n")) < 0:
            now_s = time.monotonic()
            if now_s >= self._heard_s + SILENCE_S:
                raise StreamEnded(f"nothing was heard for {SILENCE_S:.0f} s")
            if now_s >= until_s:
                return None
            self._receive(min(until_s, self._heard_s + SILENCE_S) - now_s)
        block, self._rest = self._rest[:end], self._rest[end + 2 :]
        told = _parse(block.decode("utf-8", "replace"))
        self.last_id = told.id or self.last_id
        return told

    def _ask(self, query: Query, last_id: str) -> None:
        lines = [f"GET {ROUTE}{f'?{urlencode(query)}' if query else ''} HTTP/1.0"]
        lines += ["Host: localhost", "Accept: text/event-stream, application/json"]
        if last_id:
            lines.append(f"Last-Event-ID: {last_id}")
        self._sock.sendall("\r\n".join([*lines, "", ""]).encode("ascii"))
        until_s = time.monotonic() + _HEAD_S
        while b"\r\n\r\n" not in self._rest:
            self._receive_before(until_s)
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        status_line, *headers = head.decode("latin-1").lower().split("\r\n")
        words = status_line.split()
        status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
        if status == 200 and any(h.startswith("content-type: text/event-stream") for h in headers):
            return
        try:
            while True:
                self._receive_before(until_s)
        except (StreamEnded, OSError):
            raise StreamRefused(status, _json(self._rest)) from None

    def _receive_before(self, until_s: float) -> None:
        left_s = until_s - time.monotonic()
        if left_s <= 0 or not self._receive(left_s):
            raise TimeoutError("the daemon does not answer")

    def _receive(self, timeout_s: float) -> bool:
        """Read what there is; False if there is nothing within the time. Raises StreamEnded."""
        try:
            self._sock.settimeout(max(timeout_s, 0.001))
            data = self._sock.recv(65536)
        except TimeoutError:
            return False
        except OSError as err:
            raise StreamEnded(err.strerror or str(err)) from err
        if not data or len(self._rest) > _MOST_BYTES:
            raise StreamEnded("the daemon closed the connection")
        self._heard_s = time.monotonic()
        self._rest += data
        return True


def _parse(block: str) -> Told:
    fields = {"event": "", "id": "", "data": ""}
    for line in block.split("\n"):
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] = value.removeprefix(" ")
    return Told(fields["event"], fields["id"], _json(fields["data"].encode()))


def _json(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
