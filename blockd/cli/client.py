"""How `blockctl` talks to the daemon: HTTP/1.1 over its Unix socket."""

from __future__ import annotations

import grp
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from blockd.domain.listing import MAX_PAGE_SIZE

from .failures import Code, Failure, explain

#: A volume, a snapshot, a pool…: a JSON object as the API sent it.
Resource = dict[str, Any]
Query = Sequence[tuple[str, str]]

#: How long one answer may take. A delete may have to queue behind slow LVM commands.
ANSWER_TIMEOUT_S = 60.0


class UnixConnection(http.client.HTTPConnection):
    """An HTTP connection to a socket in the filesystem."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=ANSWER_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        """Raises OSError as `socket.connect` does."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Client:
    """One run's connection to the daemon.

    Attributes:
        labels: what to call the resources met so far, by id: `volume "data"`.
        patience_s: how long one answer may take, where a request says nothing else.
        changing: something was asked of the daemon that goes on without us.
    """

    def __init__(
        self, socket_path: str, zone: str | None = None, patience_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        self.socket_path = socket_path
        self.patience_s = patience_s
        self.labels: dict[str, str] = {}
        self.changing = False
        self._zone = zone
        self._connection = UnixConnection(socket_path)

    def close(self) -> None:
        """Safe to call twice; the next request opens a new connection."""
        self._connection.close()

    def zone(self) -> str:
        """The daemon's zone, asked for once per run unless it was given."""
        if self._zone is None:
            self._zone = str(self.health().get("zone"))
        return self._zone

    def block(self, path: str) -> str:
        """The route of `path` (`/volumes`, say) in the cloud-style API."""
        return f"/block/v1/zones/{quote(self.zone(), safe='')}{path}"

    def health(self) -> Resource:
        """`GET /host/v1/health`, whose answer counts whatever its HTTP status is."""
        status, body, request_id = self._exchange("GET", "/host/v1/health", None, self.patience_s)
        if status != 200 and "zone" not in body:
            raise explain(status, body, self.labels, request_id)
        return body

    def get(self, path: str, query: Query = (), *, timeout_s: float | None = None) -> Resource:
        """The JSON object at `path`. Raises Failure."""
        return self._request(
            "GET", f"{path}?{urlencode(query)}" if query else path, None, timeout_s
        )

    def post(
        self, path: str, body: Mapping[str, Any], *, timeout_s: float | None = None
    ) -> Resource:
        """Ask for something new, or for a verb. Raises Failure."""
        return self._request("POST", path, body, timeout_s)

    def patch(self, path: str, body: Mapping[str, Any]) -> Resource:
        """Change what `body` names. Raises Failure."""
        return self._request("PATCH", path, body)

    def delete(self, path: str) -> None:
        """Raises Failure."""
        self._request("DELETE", path, None)

    def each(
        self, path: str, key: str, query: Query = (), limit: int | None = None
    ) -> Iterator[Resource]:
        """All items of a list, page after page, each id once; at most `limit` of them."""
        size = min(limit or MAX_PAGE_SIZE, MAX_PAGE_SIZE)
        seen: set[str] = set()
        for number in count(1):
            paging = [("page", str(number)), ("page_size", str(size))]
            answer = self.get(path, [*query, *paging])
            for item in answer[key]:
                if item["id"] not in seen:  # somebody may add or remove between two pages
                    seen.add(item["id"])
                    yield item
                if len(seen) == limit:
                    return
            if len(answer[key]) < size or number * size >= answer["total_count"]:
                return

    def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float | None = None,
    ) -> Resource:
        exchange_s = self.patience_s if timeout_s is None else timeout_s
        status, answer, request_id = self._exchange(method, path, body, exchange_s)
        if status >= 400:
            raise explain(status, answer, self.labels, request_id)
        return answer

    def _exchange(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        timeout_s: float,
    ) -> tuple[int, Resource, str]:
        """Send, and read the answer: HTTP status, JSON object ({} when empty), request id.

        A connection that breaks is tried once more where repeating does no harm: for GET, and
        for POST, which the daemon knows again by its key.
        """
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if method == "POST":
            headers["Idempotency-Key"] = os.urandom(16).hex()
        self.changing |= method != "GET"
        data = None if body is None else json.dumps(body).encode()
        tries = 2 if method in ("GET", "POST") else 1
        while True:
            tries -= 1
            self._connect(timeout_s)
            try:
                self._connection.request(method, path, data, headers)
                answer = self._connection.getresponse()
                request_id = answer.headers.get("X-Request-Id", "")
                return answer.status, self._decode(answer.read()), request_id
            except TimeoutError:
                self.close()
                text = f"the daemon has not answered within {timeout_s:.3g} s; it may still do it"
                raise Failure(Code.TIMED_OUT, text) from None
            except (OSError, http.client.HTTPException) as err:
                self.close()
                if not tries:
                    text = "the daemon closed the connection before it answered: see what was done"
                    raise Failure(Code.UNREACHABLE, text) from err

    def _decode(self, data: bytes) -> Resource:
        try:
            answer = json.loads(data) if data else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            text = f"{self.socket_path} does not answer as blockd does: is it blockd's socket?"
            raise Failure(Code.UNREACHABLE, text)
        return answer

    def _connect(self, timeout_s: float) -> None:
        """Make sure of a connection that waits `timeout_s` for what is read next."""
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
            return
        try:
            self._connection.connect()
        except OSError as err:
            self.close()
            raise Failure(Code.UNREACHABLE, self.why_unreachable(err)) from err

    def why_unreachable(self, err: OSError) -> str:
        """A line for people: what is wrong with the socket, and the next step."""
        path, start = self.socket_path, "start it with: systemctl start blockd"
        match err:
            case FileNotFoundError():
                return f"cannot reach blockd: there is no socket {path}: {start}"
            case ConnectionRefusedError():
                return f"cannot reach blockd: it does not run (nobody listens on {path}): {start}"
            case PermissionError():
                return (
                    f"cannot reach blockd: you may not use {path}: join the group"
                    f' "{_group_of(path)}" and log in again, or use sudo'
                )
        return f"cannot reach blockd at {path}: {err.strerror or err}"


def _group_of(path: str) -> str:
    """The group that owns the socket, or its directory where we may not look inside."""
    for place in (Path(path), Path(path).parent):
        try:
            group = grp.getgrgid(place.stat().st_gid).gr_name
        except (OSError, KeyError):
            continue
        if group != "root":
            return group
    return "blockd"
