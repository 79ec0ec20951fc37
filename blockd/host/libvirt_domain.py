"""What is asked of a libvirt domain, in a thread. Errors are libvirt's own."""

from __future__ import annotations

from typing import Any

from blockd.domain.errors import GuestRefused
from blockd.domain.guest import DiskOrder, Guest, GuestDisk, GuestKey
from blockd.host.domain_xml import (
    disk_element,
    disk_xml,
    free_target,
    front_disks,
    has_agent_channel,
    targets,
)
from blockd.host.libvirt_connection import bindings


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
    return Guest(
        key=GuestKey(uri, domain.UUIDString()),
        name=domain.name(),
        is_active=is_active,
        is_paused=is_active and state != libvirt.VIR_DOMAIN_RUNNING,
        has_agent=is_active and has_agent_channel(now),
        disks=tuple(
            GuestDisk(volume_id, live.get(volume_id) or kept[volume_id], volume_id in live, is_kept)
            for volume_id in sorted(live.keys() | kept.keys())
            for is_kept in [volume_id in kept]
        ),
    )


def affected(domain: Any) -> int:
    """The flags for both what runs and what is defined, as far as there is either."""
    libvirt = bindings()
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if domain.isActive() else 0
    if domain.isPersistent():
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG
    return int(flags)


def attach(domain: Any, order: DiskOrder) -> str:
    """See `Hypervisors.attach`."""
    libvirt = bindings()
    descriptions = [domain.XMLDesc(0)]
    if domain.isPersistent():
        descriptions.append(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    taken = set().union(*map(targets, descriptions))
    if order.target in taken:
        raise GuestRefused(f"domain {domain.name()} has another disk {order.target}: choose one")
    target = order.target or free_target(taken)
    domain.attachDeviceFlags(disk_xml(order, target), affected(domain))
    return target


def detach(domain: Any, target: str, *, live: bool) -> None:
    """See `Hypervisors.detach`."""
    libvirt = bindings()
    if live:
        element, flags = disk_element(domain.XMLDesc(0), target), libvirt.VIR_DOMAIN_AFFECT_LIVE
    else:
        description = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
        element, flags = disk_element(description, target), libvirt.VIR_DOMAIN_AFFECT_CONFIG
    if element is not None:
        domain.detachDeviceFlags(element, flags)
