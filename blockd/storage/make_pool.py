"""A volume group and thin pool fit for blockd, on devices that hold nothing."""

from __future__ import annotations

from collections.abc import Sequence

from blockd.domain.errors import StartError, StorageError
from blockd.domain.units import GIB, MIB, format_size
from blockd.storage.lvm_commands import LvmCommands, LvmFailed

#: Small enough that a 4 KiB write to a shared chunk copies little, large enough that the pool's
#: metadata stays small (measured: docs/decisions/0002-lvm-config.md).
CHUNK_BYTES = 64 * 1024

#: dm-thin uses no more than this (thin-provisioning.rst).
_MAX_METADATA_BYTES = 15 * GIB + 896 * MIB


def pool_metadata_bytes(pool_bytes: int) -> int:
    """One percent of the pool, but 1 GiB at most while that is enough, and 64 MiB at least.

    dm-thin needs about 19 bytes for each chunk of 64 KiB that is mapped once, and again for each
    snapshot that diverges from its neighbours: 1 GiB holds 3.4 TiB mapped once.
    """
    one_percent = pool_bytes // 100
    needed = pool_bytes // CHUNK_BYTES * 48
    wanted = max(64 * MIB, min(one_percent, GIB), needed)
    return min(wanted // MIB * MIB, _MAX_METADATA_BYTES)


async def make_pool(lvm: LvmCommands, pool: str, devices: Sequence[str]) -> str:
    """Make what is missing of volume group and pool; answers what was done, in one line.

    Raises:
        StartError: LVM refuses, e.g. because a device holds something.
    """
    try:
        existing = await lvm.lvs()
    except LvmFailed:
        existing = None
    if existing is not None:
        found = next((lv for lv in existing if lv.name == pool), None)
        if found is not None:
            if found.kind != "thin-pool":
                raise StartError(f"{lvm.vg}/{pool} exists and is no thin pool: name another")
            return f"{lvm.vg}/{pool} exists: {format_size(found.size_bytes)}"
    try:
        if existing is None:
            if not devices:
                raise StartError(
                    f"there is no volume group {lvm.vg}: name the devices to make it on"
                )
            await lvm.create_vg(devices)
        group = await lvm.vg_facts()
        free_bytes, extent_bytes = group.free_bytes, group.extent_bytes
        # A hundredth stays free for the pool's spare metadata and for repairs.
        metadata_bytes = pool_metadata_bytes(free_bytes)
        size_bytes = (free_bytes - 2 * metadata_bytes) * 99 // 100
        size_bytes = size_bytes // extent_bytes * extent_bytes
        if size_bytes < 64 * MIB:
            raise StartError(
                f"volume group {lvm.vg} has only {format_size(free_bytes)} free: "
                "a pool needs 256 MiB at least"
            )
        await lvm.create_thin_pool(pool, size_bytes, metadata_bytes, CHUNK_BYTES)
    except StorageError as err:
        raise StartError(str(err)) from err
    return f"{lvm.vg}/{pool} made: {format_size(size_bytes)}"


async def make_group(lvm: LvmCommands, devices: Sequence[str]) -> str:
    """Make the volume group of a thick class, if it is missing; answers what was done.

    Raises:
        StartError: LVM refuses, e.g. because a device holds something.
    """
    try:
        await lvm.lvs()
    except LvmFailed:
        done = "made"
    else:
        done = "exists"
    try:
        if done == "made":
            if not devices:
                raise StartError(
                    f"there is no volume group {lvm.vg}: name the devices to make it on"
                )
            await lvm.create_vg(devices)
        group = await lvm.vg_facts()
    except StorageError as err:
        raise StartError(str(err)) from err
    return (
        f"volume group {lvm.vg} {done}: {format_size(group.size_bytes)}, "
        f"{format_size(group.free_bytes)} free; a thick class needs no pool"
    )
