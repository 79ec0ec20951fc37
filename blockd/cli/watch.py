"""Following a job to its end: a progress bar on a terminal, silence elsewhere, and Ctrl-C."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from blockd.domain.units import format_size

from .client import ANSWER_TIMEOUT_S, Resource
from .failures import Code, Failure
from .session import Session
from .text import clean
from .wait import FIRST_INTERVAL_S, GROWTH, RESTART_S

if TYPE_CHECKING:
    from rich.progress import Progress

ENDED = frozenset({"succeeded", "failed", "cancelled"})
LONGEST_INTERVAL_S = 0.5


def uri(job: Resource) -> str:
    """The object that a job is about."""
    return f"s3://{job['bucket']}/{job['key']}"


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
    began_s = answered_s = time.monotonic()
    interval_s = FIRST_INTERVAL_S
    with _bar(doing) as show:
        while job["state"] not in ENDED:
            show(job)
            if timeout_s is not None and time.monotonic() - began_s > timeout_s:
                raise Failure(
                    Code.TIMED_OUT, f"{doing} takes longer than {timeout_s:g} s: {_left(job)}"
                )
            try:
                time.sleep(interval_s)
                job = session.client.get(f"/host/v1/jobs/{job['id']}", timeout_s=ANSWER_TIMEOUT_S)
                answered_s = time.monotonic()
            except KeyboardInterrupt:
                _interrupted(session, job, doing, show)
            except Failure as failure:
                away_s = time.monotonic() - answered_s
                if failure.code is not Code.UNREACHABLE or away_s > RESTART_S:
                    raise
            interval_s = min(interval_s * GROWTH, LONGEST_INTERVAL_S)
        show(job)
    return job


def _left(job: Resource) -> str:
    return f"it goes on in the daemon: blockctl job wait {job['id']}, or job cancel {job['id']}"


def _interrupted(session: Session, job: Resource, doing: str, show: Show) -> None:
    """Ask what Ctrl-C is to mean. A second one, or no terminal, leaves the job running."""
    choice = "d"
    if sys.stdin.isatty() and sys.stderr.isatty():
        show.pause()
        asked = f"\n{doing}: [c]ancel it, [d]etach and leave it running, or [w]ait on? "
        try:
            print(asked, end="", file=sys.stderr, flush=True)
            choice = sys.stdin.readline().strip().lower()[:1] or "w"
        except KeyboardInterrupt:
            print(file=sys.stderr)
    if choice == "w":
        show.resume()
    elif choice == "c":
        session.client.post(f"/host/v1/jobs/{job['id']}/cancel", {})
    else:
        raise Failure(Code.INTERRUPTED, f"left {doing} running: {_left(job)}")


class Show(Protocol):
    """Shows how far a job is."""

    def __call__(self, job: Resource) -> None: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class _Nothing:
    """Where there is no terminal."""

    def __call__(self, job: Resource) -> None:
        pass

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


class _Bar:
    """A bar on stderr."""

    def __init__(self, progress: Progress, doing: str) -> None:
        self._progress = progress
        self._task = progress.add_task(doing, total=None, state="")

    def __call__(self, job: Resource) -> None:
        total = job["bytes_total"]
        self._progress.update(
            self._task, completed=job["bytes_done"], total=total, state=_state(job)
        )

    def pause(self) -> None:
        self._progress.stop()

    def resume(self) -> None:
        self._progress.start()


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


@contextmanager
def _bar(doing: str) -> Iterator[Show]:
    if not sys.stderr.isatty():
        yield _Nothing()
        return
    from rich.console import Console  # noqa: PLC0415 - slow to import, for terminals alone
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        DownloadColumn(binary_units=True),
        TextColumn("{task.fields[state]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, doing)
