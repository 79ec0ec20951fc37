"""What a crash, or somebody's hand, left wrong with the devices and links of a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from blockd.domain.finding import Finding, FindingKind
from blockd.storage.dm import DeviceInfo, DeviceMapper, lv_device_name
from blockd.storage.fronts import Fronts

#: What device-mapper calls the layers of one LV (lvm2, lib/activate/dev_manager.c).
_LAYERS = ("", "-real", "-cow", "-tpool")


class DeviceExamination:
    """Looks by ioctls alone: no process. Within the class's turn, so that nothing is under way."""

    def __init__(self, vg: str, mapper: DeviceMapper, fronts: Fronts) -> None:
        self._vg, self._mapper, self._fronts = vg, mapper, fronts

    def find(self, lvs: Sequence[str]) -> list[Finding]:
        """Those of the fronts, of their links, and of the LVs named."""
        return [
            *(_suspended(info) for info in self._suspended(lvs)),
            *(_wrong(name, front) for name, front in self._fronts.wrong_links().items()),
        ]

    async def mend(self, finding: Finding, lvs: Sequence[str]) -> bool:
        """Put it right if it is so still; False if it is none of these."""
        match finding.kind:
            case FindingKind.DEVICE_SUSPENDED:
                for info in self._suspended(lvs):
                    if info.name == finding.subject:
                        await self._fronts.in_thread(partial(self._resume, info))
            case FindingKind.LINK_WRONG:
                self._fronts.mend_link(finding.subject)
            case _:
                return False
        return True

    def _suspended(self, lvs: Sequence[str]) -> Iterator[DeviceInfo]:
        names = {lv_device_name(self._vg, lv) + layer for lv in lvs for layer in _LAYERS}
        of_lvs = self._mapper.devices(lv_device_name(self._vg, ""))
        yield from (info for info in self._fronts.ours().values() if info.suspended)
        yield from (info for info in of_lvs if info.suspended and info.name in names)

    def _resume(self, info: DeviceInfo) -> None:
        # With the table that it had: one that was loaded is from a change that did not come about,
        # and whoever needs a later one loads it anew. LVM is not asked: `lvchange --refresh` waits
        # for ever where a pool's metadata are suspended (seen in the lab).
        self._mapper.clear(info.uuid)
        self._mapper.resume(info.uuid)


def _suspended(info: DeviceInfo) -> Finding:
    return Finding(
        FindingKind.DEVICE_SUSPENDED,
        info.name,
        f"device {info.name} is suspended, so whoever reads or writes it waits for ever",
        fix="resume it with the table that it has",
    )


def _wrong(name: str, front: DeviceInfo | None) -> Finding:
    path = f"/dev/blockd/{name}"
    if front is not None:
        return Finding(
            FindingKind.LINK_WRONG,
            name,
            f"{path} is missing, or leads elsewhere than to the volume's front",
            fix="make it lead there",
        )
    return Finding(
        FindingKind.LINK_WRONG,
        name,
        f"{path} is left of a front that is gone, and may lead to somebody else's device",
        fix="remove it",
    )


def left_active(disk: str) -> Finding:
    """A snapshot's LV that nobody reads any more."""
    return Finding(
        FindingKind.DISK_ACTIVE,
        disk,
        f"{disk} was made readable for somebody who is gone, and stays active",
        fix="deactivate it",
    )
