"""Following a job to its end: a progress bar on a terminal, silence elsewhere, and Ctrl-C."""

from __future__ import annotations

import math
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from blockd.domain.units import format_size

from .changes import Changes
from .client import ANSWER_TIMEOUT_S, Resource
from .failures import Code, Failure
from .session import Session
from .text import clean
from .wait import LOOK_S, RESTART_S

if TYPE_CHECKING:
    from rich.progress import Progress

ENDED = frozenset({"succeeded", "failed", "cancelled"})
#: How far a job is is not told by events, so a bar asks.
BAR_INTERVAL_S = 0.5
#: For a last look, when time is up or Ctrl-C came.
MOMENT_S = 1.0


def uri(job: Resource) -> str:
    """The object that a job is about, harmless on a terminal."""
    return clean(f"s3://{job['bucket']}/{job['key']}")


def follow(session: Session, job: Resource, doing: str, timeout_s: float | None) -> Resource:
    """Wait until a job has ended well.

    Args:
        doing: for messages: `export of snapshot "monday"`.
        timeout_s: None waits for ever; the job goes on in the daemon when it is over.

    Raises:
        Failure: it failed or was cancelled (1), time is up (4), it was left running (130).
    """
    job = _ended(session, job, doing, timeout_s)
    if job["state"] == "failed":
        raise Failure(Code.FAILED, f"{doing} failed: {clean(str(job['error']))}")
    if job["state"] == "cancelled":
        raise Failure(Code.FAILED, f"{doing} was cancelled")
    return job


def moved(job: Resource) -> str:
    """`320 MiB in 4.2 s (76 MiB/s)`."""
    size = int(job["bytes_done"])
    took_s = max(_seconds(job["finished_at"]) - _seconds(job["started_at"]), 0.001)
    return f"{format_size(size)} in {took_s:.1f} s ({format_size(round(size / took_s))}/s)"


def _seconds(instant: str) -> float:
    from blockd.domain.units import parse_timestamp  # noqa: PLC0415

    return parse_timestamp(instant).timestamp()


def _ended(session: Session, job: Resource, doing: str, timeout_s: float | None) -> Resource:
    until_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
    show = _Bar(doing)
    try:
        while True:
            try:
                job = _polled(session, job, show, until_s)
            except KeyboardInterrupt:
                job = _interrupted(session, job, doing, show)
                continue
            if job["state"] in ENDED:
                return job
            raise Failure(
                Code.TIMED_OUT, f"{doing} takes longer than {timeout_s:g} s: {_left(job)}"
            )
    finally:
        show.stop()


def _polled(session: Session, job: Resource, show: _Bar, until_s: float) -> Resource:
    """The job once it has ended, or as it is when time is up."""
    answered_s = time.monotonic()
    pause_s = BAR_INTERVAL_S if sys.stderr.isatty() else LOOK_S
    with Changes(session.client.socket_path, job["id"]) as changes:
        while job["state"] not in ENDED and (left_s := until_s - time.monotonic()) > 0:
            show(job)
            changes.wait(min(pause_s, left_s))
            patience_s = min(max(until_s - time.monotonic(), MOMENT_S), ANSWER_TIMEOUT_S)
            try:
                job = session.client.get(_path(job), timeout_s=patience_s)
                answered_s = time.monotonic()
            except Failure as failure:
                if failure.code is Code.TIMED_OUT and until_s < math.inf:
                    continue
                away_s = time.monotonic() - answered_s
                if failure.code is not Code.UNREACHABLE or away_s > RESTART_S:
                    raise
    return job


def _path(job: Resource) -> str:
    return f"/host/v1/jobs/{job['id']}"


def _left(job: Resource) -> str:
    wait, cancel = (f"blockctl job {verb} {job['id']}" for verb in ("wait", "cancel"))
    return f"it goes on in the daemon: {wait}, or {cancel}"


def _interrupted(session: Session, job: Resource, doing: str, show: _Bar) -> Resource:
    """Do what Ctrl-C is to mean. A second one, or no terminal, leaves the job running.

    Raises:
        Failure: it is left running (130), or the daemon does not answer.
    """
    session.client.close()  # it may have been in the middle of an answer
    choice = "d"
    with suppress(KeyboardInterrupt):
        choice = _choice(doing, show)
    if choice == "w":
        return job
    if choice == "c":
        try:
            return session.client.post(f"{_path(job)}/cancel", {})
        except Failure as failure:
            if failure.code is not Code.REFUSED:
                raise
            return job  # it ended while we asked: how, the next look tells
    with suppress(Failure, KeyboardInterrupt):
        now = session.client.get(_path(job), timeout_s=MOMENT_S)
        if now["state"] in ENDED:
            return now
    raise Failure(Code.INTERRUPTED, f"left {doing} running: {_left(job)}")


def _choice(doing: str, show: _Bar) -> str:
    """`c`, `d` or `w`; an empty line is `w`. Raises KeyboardInterrupt."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "d"
    show.stop()
    asked = f"\n{doing}: [c]ancel it, [d]etach and leave it running, or [w]ait on? "
    while True:
        print(asked, end="", file=sys.stderr, flush=True)
        try:
            typed = sys.stdin.readline().strip().lower() or "w"
        except KeyboardInterrupt:
            print(file=sys.stderr)
            raise
        for word in ("cancel", "detach", "wait"):
            if word.startswith(typed):
                return typed[0]


class _Bar:
    """A bar on stderr, from the first call on; nothing where there is no terminal."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._progress: Progress | None = None

    def __call__(self, job: Resource) -> None:
        """Show how far the job is, also after `stop`."""
        if not sys.stderr.isatty():
            return
        if self._progress is None:
            self._progress = _progress()
            self._task = self._progress.add_task(self._doing, total=None, state="")
        done, total = job["bytes_done"], job["bytes_total"]
        self._progress.update(
            self._task, completed=done, total=total, state=_state(job), refresh=True
        )
        self._progress.start()

    def stop(self) -> None:
        """Take it away, if there is one."""
        if self._progress is not None:
            self._progress.stop()


def _progress() -> Progress:
    from rich.console import Console  # noqa: PLC0415 - slow to import, for terminals alone
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[state]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


def _state(job: Resource) -> str:
    if job["state"] != "running":
        return str(job["state"])
    told = []
    if job["rate"]:
        told.append(f"{format_size(job['rate'])}/s")
    if job["eta"] is not None:
        minutes, seconds = divmod(int(job["eta"]), 60)
        told.append(f"{minutes}:{seconds:02} left")
    if job["attempt"] > 1:
        told.append(f"attempt {job['attempt']}")
    return ", ".join(told)
