"""`qemu-img convert`, in its jail: what blockd asks of it, and how.

Every node names its driver, so nothing is ever probed, and every socket and disk is one that
blockd opened: no name in an image is a place that could be reached. Always `-n` and
`--target-is-zero`: the target is there, and what is not written reads as zeros.

Source: qemu-img(1), qemu-block-drivers(7), QEMU 7.2.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from blockd.domain.allocation import CLUSTER_BYTES
from blockd.domain.errors import StorageError
from blockd.domain.units import GIB
from blockd.domain.volume import OpenDisk
from blockd.host import jail
from blockd.host.command import Child, Output, find_tool, running
from blockd.host.idleness import context_switches
from blockd.transfer.nbd import Asked
from blockd.transfer.served import Link

log = structlog.get_logger()

_DISK_IN_JAIL = "/dev/disk"
_CPU_LEAST_S, _CPU_PER_GIB_S = 120, 60

#: Longer than a disk takes that answers at all: the kernel's own retries are over by then.
_IDLE_S = 600.0


@dataclass(frozen=True, slots=True)
class Nbd:
    """An export of ours behind `link`, which holds a `driver` image.

    Attributes:
        l2_entry_bytes: QCOW2: its L2 tables are read in pieces of so many bytes, a power of two
            from 512 to its cluster size; 0 leaves it to qemu-img, which takes 4 KiB for an image
            that is large.
    """

    link: Link
    driver: str
    l2_entry_bytes: int = 0

    def node(self, **_: str) -> str:
        """As an option of qemu-img."""
        cache = f",l2-cache-entry-size={self.l2_entry_bytes}" if self.l2_entry_bytes else ""
        return f"driver={self.driver}{cache},{_socket('file', self.link)}"


@dataclass(frozen=True, slots=True)
class View:
    """A `SourceView` behind a link, over a disk."""

    link: Link

    def node(self, *, disk_driver: str) -> str:
        """As an option of qemu-img."""
        disk = f"data-file.driver={disk_driver},data-file.filename={_DISK_IN_JAIL}"
        return ",".join(
            (
                # Whole L2 tables at once: qemu-img looks at each of them to its end, and would
                # otherwise read it in 16 pieces.
                f"driver=qcow2,l2-cache-entry-size={CLUSTER_BYTES}",
                _socket("file", self.link),
                # Past the page cache: it would push out what the host needs, and took twice as
                # long.
                f"{disk},data-file.cache.direct=on",
            )
        )


@dataclass(frozen=True, slots=True)
class Raw:
    """The first `size_bytes` of the disk."""

    size_bytes: int

    def node(self, *, disk_driver: str) -> str:
        """As an option of qemu-img."""
        return (
            f"driver=raw,size={self.size_bytes},"
            f"file.driver={disk_driver},file.filename={_DISK_IN_JAIL}"
        )


Node = Nbd | View | Raw


def cpu_s(count_bytes: int) -> int:
    """Processor time that is more than enough to copy so many bytes."""
    return _CPU_LEAST_S + _CPU_PER_GIB_S * -(-count_bytes // GIB)


class QemuImg:
    """Runs it. Raises StartError when it is not installed."""

    def __init__(self, memory_bytes: int) -> None:
        self._program = find_tool("qemu-img", "qemu-utils")
        self._memory_bytes = memory_bytes
        self._told: set[str] = set()

    async def convert(
        self,
        source: Node,
        target: Node,
        *,
        disk: OpenDisk | None = None,
        compress: bool = False,
        cpu_s: int,
    ) -> None:
        """Copy what is not zero. Our ends of the connections must be served meanwhile.

        Cancelling it ends the program.

        Args:
            disk: what `View` and `Raw` are about.
            cpu_s: the processor time it may use.

        Raises:
            StorageError: it failed, and says why in its own words; or it does nothing any more.
        """
        links = [node.link for node in (source, target) if not isinstance(node, Raw)]
        driver = "host_device" if disk is not None and _is_device(disk.path) else "file"
        argv = (
            *(self._program, "convert", "-n", "--target-is-zero", "-t", "none"),
            *(("-c",) if compress else ()),
            *("--image-opts", "--target-image-opts"),
            *(source.node(disk_driver=driver), target.node(disk_driver=driver)),
        )
        report = os.memfd_create("report")
        try:
            spec: dict[str, object] = {
                "parent": os.getpid(),
                "memory_bytes": self._memory_bytes,
                "cpu_s": cpu_s,
                "disk": None if disk is None else disk.path,
                "report": report,
            }
            await self._run((*_jail(spec), *argv), links, report)
        finally:
            os.close(report)
            for link in links:
                link.end.close()

    async def _run(self, argv: Sequence[str], links: Sequence[Link], report: int) -> None:
        descriptors = [report, *(link.end.fileno() for link in links)]
        async with running(argv, _ENVIRONMENT, descriptors) as child:
            output = await _attend(child, [link.asked for link in links])
        self._tell(os.pread(report, 65536, 0))
        if output.returncode != 0:
            raise StorageError(_complaint(output.returncode, output.stderr))

    def _tell(self, report: bytes) -> None:
        """What the jail lacks, once in the life of a daemon."""
        skipped = set(json.loads(report or b"[]"))
        for step in sorted(skipped - self._told):
            log.warning("qemu-img runs without a part of its jail", part=step)
        self._told |= skipped


async def _attend(child: Child, asked: Sequence[Asked]) -> Output:
    """Its end. That may be days away, but until then it does something, or waits for us."""
    had: int | None = None
    while True:
        try:
            return await child.wait(_IDLE_S)
        except TimeoutError:
            waits = any(one.count for one in asked)
            now = None if waits else context_switches(child.pid)
            if now is not None and now == had:
                raise StorageError(
                    f"qemu-img has done nothing for {_IDLE_S:.0f} s, and was ended"
                ) from None
            had = now


#: glibc reserves 64 MiB of addresses for each of so many heaps, which the jail's limit counts.
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}


def _jail(spec: dict[str, object]) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", str(Path(jail.__file__)), json.dumps(spec))


def _socket(node: str, link: Link) -> str:
    number = link.end.fileno()
    return f"{node}.driver=nbd,{node}.server.type=fd,{node}.server.str={number}"


def _is_device(path: str) -> bool:
    return stat.S_ISBLK(Path(path).stat().st_mode)


def _complaint(returncode: int, stderr: bytes) -> str:
    """The last of what it said, in one line; of one that was killed, above all that."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines()]
    # In its jail there is no /dev/null, by which it finds out what locks there are: it says so, at
    # some time or other, and goes on.
    lines = [line for line in lines if line and "OFD lock probing" not in line]
    told = (
        re.sub(r"Could not open '[^']*': ", "", lines[-1].removeprefix("qemu-img: "))
        if lines
        else ""
    )
    if returncode < 0:
        told = f"it was ended by signal {-returncode}{told and f', after: {told}'}"
    return f"qemu-img: {told or f'it ended with status {returncode}'}"
