"""libvirt's domain XML, as far as disks go: https://libvirt.org/formatdomain.html#disk-devices."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase
from typing import Final
from xml.etree import ElementTree as ET

from blockd.domain.errors import GuestRefused
from blockd.domain.guest import DiskOrder

_AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"
_FRONT: Final = re.compile(
    r"(?:/dev/blockd/|/dev/mapper/blockd-)([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
)
_TARGET: Final = re.compile(r"(vd|sd)[a-z]{1,2}")
_BUSES: Final[Mapping[str, str]] = {"vd": "virtio", "sd": "scsi"}
#: As libvirt writes them itself when it lists disks: vda to vdz, vdaa to vdzz.
_LETTERS: Final = (*ascii_lowercase, *(a + b for a in ascii_lowercase for b in ascii_lowercase))


@dataclass(frozen=True, slots=True)
class FrontDisk:
    """A disk whose source is a front.

    Attributes:
        target: its name in the domain, e.g. `vdb`.
        iops: the most operations a second, as its `iotune` says; None: no limit.
        element: as the domain describes it.
    """

    target: str
    iops: int | None
    element: str


def front_disks(description: str) -> dict[str, list[FrontDisk]]:
    """A domain's disks whose source is a front, by volume id: one, as a rule.

    A source may be any name of the front's: its link, its node in /dev/mapper, /dev/dm-N.
    """
    found: dict[str, list[FrontDisk]] = {}
    for disk in _disks(description):
        source, target = disk.find("source"), disk.find("target")
        if source is None or target is None:
            continue
        path = source.get("dev") or source.get("file") or ""
        if (volume_id := _volume_of(path)) is not None:
            iops = disk.findtext("./iotune/total_iops_sec") or ""
            found.setdefault(volume_id, []).append(
                FrontDisk(
                    target=target.get("dev", ""),
                    iops=int(iops) or None if iops.isdecimal() else None,
                    element=ET.tostring(disk, encoding="unicode"),
                )
            )
    return found


def _volume_of(path: str) -> str | None:
    if (named := _FRONT.fullmatch(path)) is not None:
        return named[1]
    if not path.startswith("/dev/"):  # another's file, wherever its links lead
        return None
    try:
        device = Path(path).resolve()
        if not device.name.startswith("dm-"):
            return None
        name = Path(f"/sys/class/block/{device.name}/dm/name").read_text("ascii").strip()
    except (OSError, RuntimeError, ValueError):  # links in a circle; no file's name; none of dm's
        return None
    mapped = _FRONT.fullmatch(f"/dev/mapper/{name}")
    return None if mapped is None else mapped[1]


def has_agent_channel(description: str) -> bool:
    """Whether a guest agent may be asked: it has a channel, and libvirt sees it connected.

    Not every driver of libvirt's tells the state; then it is worth a try.
    """
    channels = _parsed(description).iterfind("./devices/channel/target")
    return any(
        channel.get("name") == _AGENT_CHANNEL and channel.get("state", "connected") == "connected"
        for channel in channels
    )


def targets(description: str) -> set[str]:
    """The targets of all disks, whatever they are."""
    found = (disk.find("target") for disk in _disks(description))
    return {target.get("dev", "") for target in found if target is not None}


def free_target(taken: Collection[str]) -> str:
    """The first name of a virtio disk that is not taken.

    Raises:
        GuestRefused: none is left.
    """
    for letters in _LETTERS:
        if (target := f"vd{letters}") not in taken:
            return target
    raise GuestRefused("all names of disks, vda to vdzz, are taken: detach one")


def check_target(target: str) -> None:
    """See that a disk can have this name.

    Raises:
        ValueError: it cannot.
    """
    if _TARGET.fullmatch(target) is None:
        raise ValueError("a name like vdb (virtio) or sda (SCSI)")


def disk_xml(order: DiskOrder, target: str) -> str:
    """The element to attach.

    No cache on the host, which would hold back what the guest has flushed, and acknowledged writes
    in memory twice; native asynchronous I/O, which that allows.
    """
    disk = ET.Element("disk", type="block", device="disk")
    driver = ET.SubElement(disk, "driver", name="qemu", type="raw", cache="none", io="native")
    if order.discards:
        driver.set("discard", "unmap")
    ET.SubElement(disk, "source", dev=order.path)
    ET.SubElement(disk, "target", dev=target, bus=_BUSES[target[:2]])
    ET.SubElement(disk, "serial").text = order.serial
    if order.is_read_only:
        ET.SubElement(disk, "readonly")
    if order.iops is not None:
        tune = ET.SubElement(disk, "iotune")
        ET.SubElement(tune, "total_iops_sec").text = str(order.iops)
    return ET.tostring(disk, encoding="unicode")


def _disks(description: str) -> list[ET.Element]:
    return _parsed(description).findall("./devices/disk")


def _parsed(description: str) -> ET.Element:
    try:
        # libvirt writes it itself, whatever it was given: without a DTD, so without entities.
        return ET.fromstring(description)  # noqa: S314
    except ET.ParseError as err:
        # Not passed over: what that domain has must not look as if nobody had it.
        raise GuestRefused(f"libvirt's description of a domain cannot be read: {err}") from err
