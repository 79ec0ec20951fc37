"""Whether LVM and the kernel know the same thin devices, and what else is wrong with a pool."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from blockd.domain.errors import StorageError
from blockd.domain.finding import Finding, FindingKind
from blockd.storage.dm import lv_device_name
from blockd.storage.lvm_report import LogicalVolume
from blockd.storage.pool_status import PoolStatus
from blockd.storage.thin_collision import ThinCollision, is_kept
from blockd.storage.thin_reading import ThinReading


class ThinExamination:
    """Of one pool. Within the class's turn, so that nothing is under way."""

    def __init__(
        self,
        vg: str,
        pool: str,
        pool_uuid: str,
        reading: ThinReading,
        collision: ThinCollision,
        status: Callable[[], Awaitable[PoolStatus]],
    ) -> None:
        """`status` is the pool's, from the kernel."""
        self._vg, self._pool, self._pool_uuid = vg, pool, pool_uuid
        self._reading, self._collision, self._status = reading, collision, status

    async def find(self, lvs: Sequence[LogicalVolume], ours: frozenset[str]) -> list[Finding]:
        """One process, `thin_ls`; one of LVM more if its transaction id is not the kernel's.

        Args:
            lvs: all of the volume group.
            ours: the names of our disks.
        """
        status = await self._status()
        pool = next(lv for lv in lvs if lv.name == self._pool)
        cut_short = {}
        if pool.transaction_id != status.transaction_id:
            cut_short = {lv.device_id: lv.name for lv in await self._collision.cut_short()}
        if status.holds_snapshot and not self._reading.is_asking:
            return [self._held()]
        known = {lv.thin_id: lv.name for lv in lvs if lv.pool == self._pool and lv.thin_id}
        there = await self._reading.thin_ids(self._pool_uuid)
        # One that the pool does not have is in nobody's way: LVM's next command makes it.
        findings = [_cut_short(lv) for number, lv in cut_short.items() if number in there]
        findings += [self._unknown(number) for number in sorted(there - known.keys())]
        for number in sorted(known.keys() - there - cut_short.keys()):
            if known[number] in ours:
                findings.append(_missing(known[number], number))
        return findings

    async def mend(self, finding: Finding) -> bool:
        """Put it right if it is so still; False if it is none of these."""
        match finding.kind:
            case FindingKind.CREATION_CUT_SHORT:
                await self._collision.undo_cut_short()
            case FindingKind.METADATA_SNAPSHOT_HELD:
                if (await self._status()).holds_snapshot and not self._reading.is_asking:
                    await self._reading.release_leftover(self._pool_uuid)
            case FindingKind.THIN_DEVICE_UNKNOWN:
                if not await self._collision.set_aside_unknown(int(finding.subject)):
                    raise StorageError(f"thin device {finding.subject} belongs to an LV by now")
            case _:
                return False
        return True

    def _held(self) -> Finding:
        return Finding(
            FindingKind.METADATA_SNAPSHOT_HELD,
            self._pool,
            f"pool {self._vg}/{self._pool}: a snapshot of its metadata is left reserved, so no "
            "export can begin, and thin devices cannot be compared",
            fix="release it",
        )

    def _unknown(self, number: int) -> Finding:
        where = f"pool {self._vg}/{self._pool}"
        if not is_kept(number):
            return Finding(
                FindingKind.THIN_DEVICE_UNKNOWN,
                str(number),
                f"{where} has thin device {number}, of which LVM does not know, and which takes "
                "room; a new LV could be given the same number",
                fix="keep it under a number that LVM does not reach; nothing is lost",
            )
        device = f"{lv_device_name(self._vg, self._pool)}-tpool"
        return Finding(
            FindingKind.THIN_DEVICE_KEPT,
            str(number),
            f"{where} keeps thin device {number}, which was in LVM's way, and takes room",
            advice=(
                f"look at it: dmsetup create kept --readonly --table '0 SECTORS thin "
                f"/dev/mapper/{device} {number}'; once nobody needs it: dmsetup message {device} 0 "
                f"'delete {number}'"
            ),
        )


def _cut_short(lv: str) -> Finding:
    return Finding(
        FindingKind.CREATION_CUT_SHORT,
        lv,
        f"LVM was cut short while it made {lv}, of which nobody was told, and may refuse changes",
        fix="undo it; the journal makes it anew if it is wanted",
    )


def _missing(lv: str, number: int) -> Finding:
    return Finding(
        FindingKind.THIN_DEVICE_MISSING,
        lv,
        f"LVM has {lv}, but the pool's metadata have no thin device {number}: its data is not "
        "there",
        advice="were the pool's metadata restored from an older copy? restore the right one; else "
        "delete what lies on it, which frees the name",
    )
