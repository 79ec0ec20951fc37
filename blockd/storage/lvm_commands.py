"""The only place that knows LVM's flags.

Source: lvcreate(8), lvremove(8), lvchange(8), lvextend(8), lvconvert(8), lvs(8), LVM 2.03.16.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

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
from blockd.storage.lvm_runner import LvmFailed, LvmRunner, vg_marker

__all__ = ["LvmCommands", "LvmFailed", "vg_marker"]


class LvmCommands(LvmRunner):
    """What LVM is asked to do in one volume group."""

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
        self, pairs: Sequence[tuple[str, str]], tag: str, *, timeout_s: float
    ) -> None:
        """Read-only thin snapshots, inactive, each with its origin; in order, in one process."""
        # Not `_change`, which tries remedies: the origins' fronts are suspended meanwhile.
        await self._run_all(
            "lvcreate",
            [
                (
                    *("--yes", "--snapshot", "-pr", "-ky", "-an"),
                    *("--addtag", tag, "--name", lv, f"{self.vg}/{origin}"),
                )
                for lv, origin in pairs
            ],
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
        stores: Sequence[tuple[str, str, int]],
        tag: str,
        chunk_bytes: int,
        *,
        timeout_s: float,
    ) -> None:
        """Read-only classic snapshots, active as their origins are; in order, in one process.

        Args:
            stores: of each its LV, its origin, and the size of its store.
        """
        # Not `_change`, which tries remedies: the origins' fronts are suspended meanwhile.
        await self._run_all(
            "lvcreate",
            [
                (
                    *("--yes", "--snapshot", "-pr", "-c", f"{chunk_bytes}b"),
                    *("-L", f"{store_bytes}b"),
                    *("--addtag", tag, "--name", lv, f"{self.vg}/{origin}"),
                )
                for lv, origin, store_bytes in stores
            ],
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

    async def extend_pool(self, pool: str, size_bytes: int, metadata_size_bytes: int) -> None:
        """A thin pool's data and metadata to at least so much, and LVM's spare of these along.

        0 leaves one of them alone; LVM refuses when one would be no larger than it was. The pool
        stands still for a moment; writes wait meanwhile.
        """
        data = ("--size", f"{size_bytes}b") if size_bytes else ()
        metadata = ("--poolmetadatasize", f"{metadata_size_bytes}b") if metadata_size_bytes else ()
        await self._change("lvextend", *data, *metadata, f"{self.vg}/{pool}")

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

    async def activate_tagged(self, lv: str, tag: str) -> None:
        """The LV of this name if it bears `tag`; passes when there is none."""
        selected = f'lv_name="{lv}" && lv_tags={{"{tag}"}}'
        await self._change("lvchange", "--activate", "y", "--select", selected, self.vg)

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
        return await self._report("lvs", parse_lvs, "--all", "--options", LV_FIELDS, self.vg)

    async def pvs(self) -> list[PhysicalVolume]:
        """Every physical volume that LVM can see."""
        return await self._report("pvs", parse_pvs, "--options", PV_FIELDS)

    async def vg_facts(self) -> VolumeGroup:
        """Size and free space of the volume group."""
        return await self._report("vgs", parse_vg, "--options", VG_FIELDS, self.vg)

    async def text(self) -> bytes:
        """The volume group as LVM has it on its disks; asked again if LVM crashed."""
        # A file, as LVM renames what it has written to its place.
        path = self._system_dir / f"{self.vg}.text"
        await asyncio.to_thread(path.unlink, missing_ok=True)  # what it held is of another time
        await self._change("vgcfgbackup", "--file", str(path), self.vg)
        return await asyncio.to_thread(path.read_bytes)
