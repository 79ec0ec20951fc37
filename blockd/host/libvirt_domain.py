"""What is asked of a libvirt domain, in a thread. Errors are libvirt's own."""

from __future__ import annotations

from typing import Any

from blockd.domain.errors import GuestRefused
from blockd.domain.guest import DiskOrder, Guest, GuestDisk, GuestKey
from blockd.host.domain_xml import (
    FrontDisk,
    disk_xml,
    free_target,
    front_disks,
    has_agent_channel,
    targets,
)
from blockd.host.libvirt_connection import bindings, is_cut


def describe(uri: str, domain: Any) -> Guest | None:
    """What libvirt tells of a domain; None if it went away meanwhile."""
    libvirt = bindings()
    try:
        is_active, is_persistent = bool(domain.isActive()), bool(domain.isPersistent())
        now = domain.XMLDesc(0)
        defined = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if is_persistent else None
        state = domain.state()[0] if is_active else libvirt.VIR_DOMAIN_SHUTOFF
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise
    live = front_disks(now) if is_active else {}
    kept = front_disks(defined) if defined is not None else {}
    disks = []
    for volume_id in sorted(live.keys() | kept.keys()):
        disk = (live.get(volume_id) or kept[volume_id])[0]
        disks.append(
            GuestDisk(volume_id, disk.target, volume_id in live, volume_id in kept, disk.iops)
        )
    return Guest(
        key=GuestKey(uri, domain.UUIDString()),
        name=domain.name(),
        is_active=is_active,
        is_paused=is_active and state != libvirt.VIR_DOMAIN_RUNNING,
        has_agent=is_active and has_agent_channel(now),
        disks=tuple(disks),
    )


def find(domain: str, connection: Any) -> Any:
    """A domain by its UUID, else by its name; None: there is none."""
    libvirt = bindings()
    for look in (connection.lookupByUUIDString, connection.lookupByName):
        try:
            return look(domain)
        except libvirt.libvirtError as err:
            # The latter of what is no UUID.
            if err.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                raise
    return None


def attach(domain: Any, order: DiskOrder) -> str:
    """See `Hypervisors.attach`."""
    libvirt = bindings()
    descriptions = [domain.XMLDesc(0)]
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    if domain.isPersistent():
        descriptions.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    taken = set().union(*map(targets, descriptions))
    if order.target in taken:
        raise GuestRefused(f"domain {domain.name()} has another disk {order.target}: choose one")
    target = order.target or free_target(taken)
    domain.attachDeviceFlags(disk_xml(order, target), flags)
    return target


def detach(domain: Any, volume_id: str, *, live: bool) -> None:
    """See `Hypervisors.detach`."""
    libvirt = bindings()
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
    for disk in _disks(domain, volume_id, live=live):
        try:
            domain.detachDeviceFlags(disk.element, flags)
        except libvirt.libvirtError as err:
            if err.get_error_code() != libvirt.VIR_ERR_DEVICE_MISSING:  # it has gone meanwhile
                raise


def resize(domain: Any, volume_id: str, size_bytes: int) -> None:
    """See `Hypervisors.resize`."""
    for disk in _disks(domain, volume_id, live=True):
        domain.blockResize(disk.target, size_bytes, bindings().VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def limit(domain: Any, volume_id: str, iops: int | None) -> None:
    """See `Hypervisors.limit`."""
    libvirt = bindings()
    for live, flag in (
        (True, libvirt.VIR_DOMAIN_AFFECT_LIVE),
        (False, libvirt.VIR_DOMAIN_AFFECT_CONFIG),
    ):
        for disk in _disks(domain, volume_id, live=live):
            if disk.iops != iops:
                domain.setBlockIoTune(disk.target, {"total_iops_sec": iops or 0}, flag)


def ask_agent(domain: Any) -> None:
    """See `Hypervisors.ask_agent`: it is asked for the time.

    Only silence counts. An agent that is frozen, or may not tell the time, says so.
    """
    libvirt = bindings()
    try:
        domain.getTime()
    except libvirt.libvirtError as err:
        if is_cut(err) or err.get_error_code() == libvirt.VIR_ERR_AGENT_UNRESPONSIVE:
            raise


def _disks(domain: Any, volume_id: str, *, live: bool) -> list[FrontDisk]:
    """Its disks of the volume, as it is now: a name may be another disk's than it was."""
    if live:
        return front_disks(domain.XMLDesc(0)).get(volume_id, []) if domain.isActive() else []
    if not domain.isPersistent():
        return []
    description = domain.XMLDesc(bindings().VIR_DOMAIN_XML_INACTIVE)
    return front_disks(description).get(volume_id, [])
