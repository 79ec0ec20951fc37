"""How LVM is run: its environment, deadlines, failures, and what is tried again.

An LVM command is never signalled: killed half-way it may leave devices suspended and metadata
that only a person can repair. At a deadline we leave, it keeps the queue, and its end is awaited.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self, TypeVar

from blockd.domain.effects import SideEffects
from blockd.domain.errors import HostExhausted, StartError, StorageError, StorageOverdue
from blockd.host.command import EXHAUSTED, Child, Output, find_tool
from blockd.storage.lvm_lock import lock_holders, program_of
from blockd.storage.lvm_report import UnreadableReport
from blockd.storage.vg_queue import VgQueue

Report = TypeVar("Report")

_LAST_STATUS = 128

#: How often a report is asked for that LVM does not give in a form that can be read.
_ASKED = 3

#: After this, whoever asks how blockd does is told of a command that still runs.
_SLOW_S = 10.0

#: In LVM's scripts, with the end of line (lvm2, tools/lvmcmdline.c: CMD_LEN is 256).
_LONGEST_LINE = 254

_COMPLAINT_BYTES = 4096
_COLLIDES: Final = re.compile(rb"already contain thin device with device_id (\d+)")

_JSON = ("--reportformat", "json", "--units", "b", "--nosuffix")


class LvmFailed(StorageError):
    """An LVM command ended with another status than 0. The message is its own last complaint."""

    def __init__(self, verb: str, output: Output) -> None:
        super().__init__(f"{verb}: {_complaint(output)}")
        self.output = output
        #: It did not come to its end: what it did must be read back. A shell's way to say "signal"
        #: counts, too: Cinder gets 139 of its wrapper (cinder, brick/local_dev/lvm.py).
        self.crashed = not 0 <= output.returncode <= _LAST_STATUS
        #: Refused since a disk of the volume group is not among those that LVM may open.
        self.misses_disks = b"PVs are missing" in output.stderr
        collides = _COLLIDES.search(output.stderr)
        #: Refused since the kernel has this thin device already, and LVM was to make it.
        self.colliding_id = None if collides is None else int(collides[1])


class LvmRunner:
    """LVM on one volume group, with our configuration; `LvmCommands` says what it is to do."""

    def __init__(
        self,
        vg: str,
        system_dir: Path,
        queue: VgQueue,
        effects: SideEffects,
        *,
        udev: bool,
        timeout_s: float,
        find_disks: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Raises StartError when LVM is not installed.

        Args:
            find_disks: is called, once for each failure, when LVM misses a disk: the volume group
                was extended, or a disk has another name now.
        """
        self.vg = vg
        self._lvm = find_tool("lvm", "lvm2")
        self._queue, self._effects, self._timeout_s = queue, effects, timeout_s
        self._find_disks = find_disks
        self._running: set[_Running] = set()
        #: Those that nobody waits for any more. Until they end nothing else is begun.
        self._late: set[_Running] = set()
        self._env = {
            "LVM_SYSTEM_DIR": str(system_dir),
            "LVM_SUPPRESS_FD_WARNINGS": "1",
            vg_marker(vg).partition("=")[0]: vg,
            **({} if udev else {"DM_DISABLE_UDEV": "1"}),
        }
        self._system_dir = system_dir
        #: Is asked to get a thin device out of LVM's way; whether it did (`thin_collision.py`).
        self.clear_way: Callable[[int], Awaitable[bool]] | None = None

    def elsewhere(self, system_dir: Path) -> Self:
        """The same with another configuration; what either leaves behind is in the way of both."""
        other = copy(self)
        other._system_dir, other._find_disks = system_dir, None
        other._env = {**self._env, "LVM_SYSTEM_DIR": str(system_dir)}
        return other

    async def remedy(self, err: LvmFailed) -> bool:
        """Do away with what made a command fail, if it is of a kind that we know.

        Returns:
            Whether the command is worth another try. After a crash it is: if it had done its work,
            LVM refuses or does nothing, and whoever called looks what there is.

        Raises:
            StorageError: the disks of the volume group are not to be found.
        """
        if err.misses_disks:
            if self._find_disks is not None:
                try:
                    await self._find_disks()
                except StartError as none:
                    raise StorageError(str(none)) from err
            return True
        if err.colliding_id is not None and self.clear_way is not None:
            return await self.clear_way(err.colliding_id)
        return err.crashed

    @property
    def has_left_any(self) -> bool:
        """Whether a command still runs for which nobody waits any more."""
        return bool(self._late)

    def slow(self) -> list[str]:
        """A line for each command that runs for long, and who makes it wait. No process."""
        now = time.monotonic()
        lines = []
        for running in self._running:
            if (for_s := now - running.began) >= running.slow_after_s:
                holders = lock_holders(self.vg) - {running.pid}
                others = [f"pid {pid} ({program_of(pid)})" for pid in sorted(holders)]
                lines.append(
                    f"lvm {running.verb} (pid {running.pid}) has been running for {for_s:.0f} s, "
                    f"and what else changes in volume group {self.vg} waits for it"
                    + (f"; LVM's lock is held by {', '.join(others)}" if others else "")
                )
        return lines

    async def _report(self, verb: str, parse: Callable[[bytes], Report], *args: str) -> Report:
        """Asked again if LVM crashed, or if something else is in what it printed: it has only read.

        Hints and warnings within the JSON are an old story (lvmteam/lvm2 issue 137).
        """
        for left in reversed(range(_ASKED)):
            try:
                return parse((await self._run(verb, *_JSON, *args)).stdout)
            except LvmFailed as err:
                if not left or not err.crashed:
                    raise
            except UnreadableReport:
                if not left:
                    raise
        raise AssertionError("unreachable")

    async def _change(self, verb: str, *args: str, stdin: int | None = None) -> None:
        try:
            await self._run(verb, "--yes", *args, stdin=stdin)
        except LvmFailed as err:
            if not await self.remedy(err):
                raise
            await self._run(verb, "--yes", *args, stdin=stdin)

    async def _run_all(
        self, verb: str, commands: Sequence[Sequence[str]], *, timeout_s: float
    ) -> None:
        """Several commands of one verb in one process, up to the first that fails.

        Eight snapshots take a third of the time that eight processes do
        (docs/decisions/0023-group-snapshots.md).
        """
        if len(commands) == 1:
            await self._run(verb, *commands[0], timeout_s=timeout_s)
            return
        lines = [" ".join((verb, "-qq", *args)) + "\n" for args in commands]
        if max(map(len, lines)) <= _LONGEST_LINE:
            with _script(lines) as descriptor:
                argv = ("/dev/stdin",)
                await self._run(verb, argv=argv, stdin=descriptor, timeout_s=timeout_s)
            return
        deadline = time.monotonic() + timeout_s
        for args in commands:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise StorageOverdue(f"{verb}: not all were made within {timeout_s:g} s")
            await self._run(verb, *args, timeout_s=round(left_s, 3))

    async def _run(
        self,
        verb: str,
        *args: str,
        argv: Sequence[str] | None = None,
        timeout_s: float | None = None,
        stdin: int | None = None,
    ) -> Output:
        """`argv` instead of verb and arguments: the verb is for messages only."""
        for late in self._late:
            raise StorageOverdue(
                f"{verb} is not begun: lvm {late.verb} (pid {late.pid}) still runs"
            )
        name = f"lvm {verb}"
        self._effects.before(name)
        try:
            argv = argv or (verb, "-qq", *args)
            child = Child((self._lvm, *argv), self._env, stdin=stdin)
            self._effects.started(name)
            deadline_s = self._timeout_s if timeout_s is None else timeout_s
            running = _Running(verb, child.pid, time.monotonic(), min(_SLOW_S, deadline_s))
            self._running.add(running)
            try:
                output = await child.wait(deadline_s)
            except TimeoutError:
                raise StorageOverdue(f"{verb} did not end within {deadline_s:g} s") from None
            finally:
                if child.has_ended:
                    self._running.discard(running)
                else:
                    self._late.add(running)
                    self._queue.keep_until(self._end_of(child, running))
        except OSError as err:
            if err.errno in EXHAUSTED:  # nothing was begun, and it passes
                raise HostExhausted(f"{verb} cannot be started: {err.strerror}") from err
            raise StorageError(f"{verb}: {err}") from err
        finally:
            self._effects.after(name)
        if output.returncode != 0:
            raise LvmFailed(verb, output)
        return output

    async def _end_of(self, child: Child, running: _Running) -> None:
        await child.wait(None)
        self._late.discard(running)
        self._running.discard(running)


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A command under way; `began` by the monotonic clock."""

    verb: str
    pid: int
    began: float
    slow_after_s: float


@contextmanager
def _script(lines: Sequence[str]) -> Iterator[int]:
    """A descriptor of a script for LVM, in memory: no file system may have a part in it.

    LVM takes a file for one if it begins like this (lvm2, tools/lvmcmdline.c, _run_script).
    """
    descriptor = os.memfd_create("lvm-script", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, "".join(("#!lvm\n", *lines)).encode())
        yield descriptor
    finally:
        os.close(descriptor)


def vg_marker(vg: str) -> str:
    """What marks the environment of our LVM commands, to find those that outlive a daemon."""
    return f"BLOCKD_LVM_VG={vg}"


def _complaint(output: Output) -> str:
    """The line of stderr that tells most: the last that is no mere warning."""
    if collides := _COLLIDES.search(output.stderr):
        return f"the pool has thin device {int(collides[1])} already, which LVM was to make"
    # What cannot be printed goes: it ends up in answers, logs and terminals.
    text = output.stderr[-_COMPLAINT_BYTES:].decode(errors="replace")
    lines = ["".join(filter(str.isprintable, line)).strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if not line.startswith(("WARNING", "File descriptor"))]
    if telling or lines:
        return (telling or lines)[-1]
    if output.returncode < 0:
        return f"was ended by signal {-output.returncode}"
    return f"ended with status {output.returncode} and no word"
