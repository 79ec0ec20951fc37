"""Waiting until what the daemon does in the background has ended, well or badly."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .changes import Changes
from .client import ANSWER_TIMEOUT_S, Client, Resource
from .failures import Code, Failure
from .resolve import Kind
from .session import Session
from .text import clean

if TYPE_CHECKING:
    from rich.status import Status

#: Statuses that end by themselves (wire.md, d).
TRANSIENT = frozenset({"creating", "deleting", "resizing", "snapshotting", "updating", "exporting"})

#: A look is due after so long, whatever the daemon tells.
LOOK_S = 30.0
#: A daemon that is being restarted is back within this time.
RESTART_S = 10.0
#: What ends sooner needs no spinner.
SPINNER_AFTER_S = 0.3


def finish(
    session: Session, kind: Kind, answer: Resource, doing: str, timeout_s: float
) -> Resource:
    """Wait for the end of what `answer` says has begun.

    Args:
        answer: the resource as the request that began it was answered.
        doing: for messages: `growing volume "data"`.
        timeout_s: counted from now; the operation goes on in the daemon when it is over.

    Returns:
        The resource as it is at the end.

    Raises:
        Failure: the operation failed (1), it was deleted meanwhile (3), time is up (4).
    """
    resource = answer
    if answer["status"] in TRANSIENT:
        resource = _settled(session.client, kind, answer["id"], doing, timeout_s)
        if reason := host_view(session.client, kind, answer["id"]).get("error"):
            raise Failure(Code.FAILED, f"{doing} failed: {clean(str(reason))}")
    if resource["status"] == "error":
        reason = host_view(session.client, kind, answer["id"]).get("error")
        reason = clean(str(reason or "the daemon gives no reason: journalctl -u blockd"))
        raise Failure(Code.FAILED, f"{doing} failed: {reason}")
    return resource


def host_view(client: Client, kind: Kind, resource_id: str) -> Resource:
    """What only `/host/v1` tells: `error`, `device`, `deleted_at`; {} when it is gone."""
    try:
        return client.get(f"/host/v1/{kind.plural}/{resource_id}")
    except Failure as failure:
        if failure.code is Code.NOT_FOUND:
            return {}
        raise


def _settled(
    client: Client, kind: Kind, resource_id: str, doing: str, timeout_s: float
) -> Resource:
    path = client.block(f"/{kind.plural}/{resource_id}")
    began_s = answered_s = time.monotonic()
    status = "not known"
    with _spinner(doing) as spin, Changes(client.socket_path, resource_id) as changes:
        while (left_s := began_s + timeout_s - time.monotonic()) > 0:
            try:
                resource = client.get(path, timeout_s=min(left_s, ANSWER_TIMEOUT_S))
            except Failure as failure:
                if failure.code is Code.TIMED_OUT:
                    continue
                away_s = time.monotonic() - answered_s
                if failure.code is not Code.UNREACHABLE or away_s > RESTART_S:
                    raise
            else:
                answered_s = time.monotonic()
                status = resource["status"]
                if status not in TRANSIENT:
                    return resource
            waited_s = time.monotonic() - began_s
            spin(waited_s)
            pause_s = SPINNER_AFTER_S if waited_s < SPINNER_AFTER_S else LOOK_S
            changes.wait(min(pause_s, timeout_s - waited_s))
    raise Failure(
        Code.TIMED_OUT,
        f"{doing} takes longer than {timeout_s:g} s: it goes on in the daemon (status: {status}):"
        f" blockctl {kind.word} show {resource_id}",
    )


class _Spin:
    """Called with the seconds waited so far; shows a spinner on stderr once that is long."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._shown = not sys.stderr.isatty()
        self._status: Status | None = None

    def __call__(self, waited_s: float) -> None:
        if self._shown or waited_s < SPINNER_AFTER_S:
            return
        from rich.console import Console  # noqa: PLC0415 - slow to import, for terminals alone
        from rich.text import Text  # noqa: PLC0415

        self._shown = True
        self._status = Console(stderr=True).status(Text(self._doing))
        self._status.start()

    def stop(self) -> None:
        """Take the spinner away, if there is one."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def _spinner(doing: str) -> Iterator[_Spin]:
    spin = _Spin(doing)
    try:
        yield spin
    finally:
        spin.stop()
