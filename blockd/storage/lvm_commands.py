"""The only place that knows LVM's flags.

An LVM command is never signalled: killed half-way it may leave devices suspended and metadata
that only a person can repair. At a deadline we leave, it keeps the queue, and its end is awaited.

Source: lvcreate(8), lvremove(8), lvchange(8), lvextend(8), lvconvert(8), lvs(8), LVM 2.03.16.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageError, StorageOverdue
from blockd.host.command import Child, Output, find_tool
from blockd.storage.lvm_report import (
    LV_FIELDS,
    PV_FIELDS,
    VG_FIELDS,
    LogicalVolume,
    PhysicalVolume,
    VolumeGroup,
    parse_lvs,
    parse_pvs,
    parse_vg,
)
from blockd.storage.vg_queue import VgQueue


class LvmFailed(StorageError):
    """An LVM command ended with another status than 0. The message is its own last complaint."""

    def __init__(self, verb: str, output: Output) -> None:
        super().__init__(f"{verb}: {_complaint(output)}")
        self.output = output
        #: Refused since a disk of the volume group is not among those that LVM may open.
        self.misses_disks = b"PVs are missing" in output.stderr
        collides = _COLLIDES.search(output.stderr)
        #: Refused since the kernel has this thin device already, and LVM was to make it.
        self.colliding_id = None if collides is None else int(collides[1])


class LvmCommands:
    """LVM on one volume group, with our configuration."""

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
        self._env = {
            "LVM_SYSTEM_DIR": str(system_dir),
            "LVM_SUPPRESS_FD_WARNINGS": "1",
            vg_marker(vg).partition("=")[0]: vg,
            **({} if udev else {"DM_DISABLE_UDEV": "1"}),
        }
        self._system_dir = system_dir
        #: Is asked to get a thin device out of LVM's way; whether it did (`thin_collision.py`).
        self.clear_way: Callable[[int], Awaitable[bool]] | None = None

    # making

    async def create_thin(self, lv: str, pool: str, size_bytes: int, tag: str) -> None:
        """A thin LV, active at once and never by anybody else (activation skip)."""
        await self._change(
            "lvcreate",
            *("--virtualsize", f"{size_bytes}b", "--thinpool", pool, "--wipesignatures", "n"),
            *("--setactivationskip", "y", "--ignoreactivationskip", "--activate", "y"),
            *("--addtag", tag, "--name", lv, self.vg),
        )

    async def snapshot_thin(
        self, lv: str, origin: str, tag: str, *, timeout_s: float | None = None
    ) -> None:
        """A read-only thin snapshot, inactive."""
        # Not `_change`, which tries remedies: the origin's front is suspended meanwhile.
        await self._run(
            "lvcreate",
            *("--yes", "--snapshot", "--permission", "r"),
            *("--setactivationskip", "y", "--activate", "n"),
            *("--addtag", tag, "--name", lv, f"{self.vg}/{origin}"),
            timeout_s=timeout_s,
        )

    async def clone_thin(self, lv: str, origin: str, tag: str) -> None:
        """A writable thin snapshot, active."""
        await self._change(
            "lvcreate",
            *("--snapshot", "--permission", "rw", "--setactivationskip", "y"),
            *("--ignoreactivationskip", "--activate", "y"),
            *("--addtag", tag, "--name", lv, f"{self.vg}/{origin}"),
        )

    async def create_linear(self, lv: str, size_bytes: int, tag: str) -> None:
        """A plain LV, active; what was on the disk shows in it."""
        await self._change(
            "lvcreate",
            *("--type", "linear", "--size", f"{size_bytes}b", "--zero", "n"),
            *("--wipesignatures", "n", "--setautoactivation", "n", "--activate", "y"),
            *("--addtag", tag, "--name", lv, self.vg),
        )

    async def snapshot_cow(
        self,
        lv: str,
        origin: str,
        tag: str,
        store_bytes: int,
        chunk_bytes: int,
        *,
        timeout_s: float | None = None,
    ) -> None:
        """A read-only classic snapshot with a store of its own; active, as its origin is."""
        # Not `_change`, which tries remedies: the origin's front is suspended meanwhile.
        await self._run(
            "lvcreate",
            *("--yes", "--snapshot", "--permission", "r", "--chunksize", f"{chunk_bytes}b"),
            *("--size", f"{store_bytes}b", "--addtag", tag, "--name", lv, f"{self.vg}/{origin}"),
            timeout_s=timeout_s,
        )

    # changing

    async def extend_in_metadata(self, lv: str, size_bytes: int) -> None:
        """As `extend`, but the kernel does not hear of it before `refresh`.

        The only way with an origin in use: `lvextend` refuses one that it sees active ("can be
        resized only while inactive"), and without activation it does not look. Its snapshots keep
        their length (docs/decisions/0010-thick.md).
        """
        await self._change(
            "lvextend",
            *("--config", "global{activation=0}", "--size", f"{size_bytes}b", f"{self.vg}/{lv}"),
        )

    async def refresh(self, lv: str) -> None:
        """Give the kernel the tables that the metadata say; starts a merge that is due."""
        await self._change("lvchange", "--refresh", "--poll", "n", f"{self.vg}/{lv}")

    async def mark_for_merging(self, snapshot: str, origin: int) -> None:
        """A classic snapshot is to be merged at the next `refresh` or activation of its origin.

        Args:
            origin: the origin, open. Were it not, LVM would start the merge at once, and a process
                of its own that polls it until it is done. LVM has it as its standard input, which
                it never reads: so it stays open while LVM runs, even if we are killed meanwhile
                (other descriptors LVM closes: lvm2, lvmcmdline.c, _close_stray_fds).
        """
        await self._change(
            "lvconvert",
            # Or it looks 25 times, for 5 s in all, whether the origin is still open.
            *("--config", "activation/retry_deactivation=0"),
            *("--merge", f"{self.vg}/{snapshot}"),
            stdin=origin,
        )

    async def forget_merged(self, origin: str) -> None:
        """Remove the snapshot that the kernel has merged; passes when there is none.

        What lvmpolld would call (lvm2, tools/lvpoll.c). It waits while the merge goes on.
        """
        await self._change(
            "lvpoll", "--polloperation", "merge", "--interval", "0", f"{self.vg}/{origin}"
        )

    async def extend(self, lv: str, size_bytes: int) -> None:
        """To at least `size_bytes`; LVM refuses when it is no larger than it was."""
        await self._change("lvextend", "--size", f"{size_bytes}b", f"{self.vg}/{lv}")

    async def seal(self, lv: str) -> None:
        """Read-only and inactive; LVM refuses when it is read-only already."""
        await self._change("lvchange", "--permission", "r", "--activate", "n", f"{self.vg}/{lv}")

    async def deactivate(self, lvs: Sequence[str]) -> None:
        """Inactive, all in one process; no-op for those that are."""
        await self._change("lvchange", "--activate", "n", *(f"{self.vg}/{lv}" for lv in lvs))

    async def activate(self, lvs: Sequence[str]) -> None:
        """All in one process."""
        await self._change(
            "lvchange",
            # Without polling: a merge that goes on by activation is watched by us.
            *("--activate", "y", "--ignoreactivationskip", "--poll", "n"),
            *(f"{self.vg}/{lv}" for lv in lvs),
        )

    async def remove(self, lvs: Sequence[str], tag: str, *, but_origins: bool = False) -> None:
        """Those of `lvs` that bear `tag`, in one process; others, and absent ones, are passed over.

        LVM itself compares the tags, under its lock: no name alone can cost anybody an LV. It goes
        on past those it cannot remove, and says so at the end.

        Args:
            but_origins: pass over those with a classic snapshot, which `lvremove` would take along.
        """
        names = " || ".join(f'lv_name="{lv}"' for lv in lvs)
        spared = ' && lv_role!="thickorigin"' if but_origins else ""
        await self._change(
            "lvremove", "--select", f'lv_tags={{"{tag}"}} && ({names}){spared}', self.vg
        )

    # making a volume group

    async def create_vg(self, devices: Sequence[str]) -> None:
        """A volume group whose metadata area has room for 5,000 LVs (the default: for 1,000).

        Without `--yes`: a device that holds a file system is refused, not wiped.
        """
        await self._run(
            "vgcreate",
            *("--metadatasize", "64m", "--setautoactivation", "n", self.vg, *devices),
        )

    async def create_thin_pool(
        self, pool: str, size_bytes: int, metadata_bytes: int, chunk_bytes: int
    ) -> None:
        """A pool that zeroes new chunks and passes discards on."""
        await self._change(
            "lvcreate",
            *("--type", "thin-pool", "--size", f"{size_bytes}b", "--zero", "y"),
            *("--poolmetadatasize", f"{metadata_bytes}b", "--chunksize", f"{chunk_bytes}b"),
            *("--discards", "passdown", "--name", pool, self.vg),
        )

    # asking: at start and after a failure, never for a read of the API

    async def lvs(self) -> list[LogicalVolume]:
        """Every LV of the volume group, hidden ones included.

        Raises:
            LvmFailed: e.g. there is no such volume group.
        """
        output = await self._run("lvs", "--all", *_JSON, "--options", LV_FIELDS, self.vg)
        return parse_lvs(output.stdout)

    async def pvs(self) -> list[PhysicalVolume]:
        """Every physical volume that LVM can see."""
        output = await self._run("pvs", *_JSON, "--options", PV_FIELDS)
        return parse_pvs(output.stdout)

    async def vg_facts(self) -> VolumeGroup:
        """Size and free space of the volume group."""
        output = await self._run("vgs", *_JSON, "--options", VG_FIELDS, self.vg)
        return parse_vg(output.stdout)

    async def text(self) -> bytes:
        """The volume group as LVM has it on its disks."""
        # A file, as LVM renames what it has written to its place.
        path = self._system_dir / f"{self.vg}.text"
        await self._run("vgcfgbackup", "--file", str(path), self.vg)
        return await asyncio.to_thread(path.read_bytes)

    async def remedy(self, err: LvmFailed) -> bool:
        """Do away with what made a command fail, if it is of a kind that we know.

        Returns:
            Whether the command is worth another try.
        """
        if err.misses_disks:
            if self._find_disks is not None:
                await self._find_disks()
            return True
        if err.colliding_id is not None and self.clear_way is not None:
            return await self.clear_way(err.colliding_id)
        return False

    async def _change(self, verb: str, *args: str, stdin: int | None = None) -> None:
        try:
            await self._run(verb, "--yes", *args, stdin=stdin)
        except LvmFailed as err:
            if not await self.remedy(err):
                raise
            await self._run(verb, "--yes", *args, stdin=stdin)

    async def _run(
        self,
        verb: str,
        *args: str,
        timeout_s: float | None = None,
        stdin: int | None = None,
    ) -> Output:
        name = f"lvm {verb}"
        self._effects.before(name)
        try:
            child = Child((self._lvm, verb, "-qq", *args), self._env, stdin=stdin)
            self._effects.started(name)
            deadline_s = self._timeout_s if timeout_s is None else timeout_s
            try:
                output = await child.wait(deadline_s)
            except TimeoutError:
                raise StorageOverdue(f"{verb} did not end within {deadline_s:g} s") from None
            finally:
                if not child.has_ended:
                    self._queue.keep_until(child.wait(None))
        except OSError as err:
            raise StorageError(f"{verb}: {err}") from err
        finally:
            self._effects.after(name)
        if output.returncode != 0:
            raise LvmFailed(verb, output)
        return output


def vg_marker(vg: str) -> str:
    """What marks the environment of our LVM commands, to find those that outlive a daemon."""
    return f"BLOCKD_LVM_VG={vg}"


_JSON = ("--reportformat", "json", "--units", "b", "--nosuffix")


_COLLIDES: Final = re.compile(rb"already contain thin device with device_id (\d+)")


def _complaint(output: Output) -> str:
    """The line of stderr that tells most: the last that is no mere warning."""
    if collides := _COLLIDES.search(output.stderr):
        return f"the pool has thin device {int(collides[1])} already, which LVM was to make"
    lines = [line.strip() for line in output.stderr.decode(errors="replace").splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if not line.startswith(("WARNING", "File descriptor"))]
    if telling or lines:
        return (telling or lines)[-1]
    if output.returncode < 0:
        return f"was ended by signal {-output.returncode}"
    return f"ended with status {output.returncode} and no word"
