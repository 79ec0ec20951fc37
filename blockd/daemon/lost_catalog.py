"""Before the catalog is opened: is it there, whole, and the newest that there is?

A catalog that is not is restored from the newest whole copy in the volume groups, or the start is
refused. It is never begun anew where there are disks of an earlier one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from blockd.catalog import open_catalog
from blockd.catalog.copy import Heading, copies, newest_heading
from blockd.catalog.inspection import FoundCatalog, inspect_catalog
from blockd.catalog.restoring import make_anew, put_aside, restore_copy
from blockd.config import Config
from blockd.daemon.groups import Groups, open_groups
from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError, StorageError, StorageOverdue
from blockd.domain.volume import OpenDisk
from blockd.storage.catalog_lv import CatalogLv, catalogs_with_copies, disks_by_catalog

log = structlog.get_logger()

_HELP = "see docs/recovery.md"


@dataclass
class _Seen:
    """What the volume groups hold of catalogs, by the catalogs' ids."""

    disks: dict[str, int] = field(default_factory=dict)
    spaces: dict[str, list[OpenDisk]] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return sorted({*self.disks, *self.spaces})


async def secure_catalog(config: Config, groups: Groups) -> None:
    """At a start: have the newest catalog under its path, or none where there never was one.

    Raises:
        StartError: it cannot be decided here which catalog is to be served.
    """
    path = config.catalog.path
    found = await asyncio.to_thread(inspect_catalog, path)
    if found.fault is None:
        groups.resume(found.catalog_id)
        await groups.calm()
        spaces = await _spaces_of(config, groups, found.catalog_id)
        newest = await asyncio.to_thread(_newest, spaces, found.catalog_id)
        if newest is not None and newest.generation > found.generation:
            fault = f"is older than its copy of {newest.written_at}"
            await _restore(path, FoundCatalog(fault), found.catalog_id, spaces)
        return
    await groups.calm()
    seen = await _look(config, groups)
    if not seen.ids:
        await _begin_anew(path, found)
        return
    if len(seen.ids) > 1 or not seen.spaces:
        raise _undecided(path, found, seen)
    (catalog_id,) = seen.ids
    await _restore(path, found, catalog_id, seen.spaces[catalog_id])
    groups.resume(catalog_id)


async def recover_catalog(
    config: Config, catalog_id: str | None, *, from_volumes: bool, begin_anew: bool
) -> str:
    """By hand, where a start is refused; answers what was done, in one line.

    Args:
        catalog_id: which of several catalogs; None where there is one.
        from_volumes: without a copy, of what the LVs tell.
        begin_anew: an empty catalog beside the LVs of others, which stay as they are.

    Raises:
        StartError: the catalog is sound, or there is nothing to make it of.
    """
    path = config.catalog.path
    async with open_groups(config, SideEffects()) as groups:
        found = await asyncio.to_thread(inspect_catalog, path)
        if found.fault is None:
            raise StartError(f"catalog {path} is sound: move it away first, if it is the wrong one")
        await groups.calm()
        if begin_anew:
            await _begin_anew(path, found)
            return f"an empty catalog is made, as {path} {found.fault}; start blockd"
        seen = await _look(config, groups)
        chosen = catalog_id or (seen.ids[0] if len(seen.ids) == 1 else "")
        if chosen not in seen.ids:
            raise _undecided(path, found, seen)
        if from_volumes:
            told = f"{path} {found.fault}: made anew from {seen.disks.get(chosen, 0)} LVs alone"
            await asyncio.to_thread(make_anew, path, chosen, told)
            return f"catalog {chosen} is made anew from its LVs; start blockd"
        if chosen not in seen.spaces:
            raise _undecided(path, found, seen)
        await _restore(path, found, chosen, seen.spaces[chosen])
        return f"catalog {chosen} is restored from its copy; start blockd"


async def _spaces_of(config: Config, groups: Groups, catalog_id: str) -> list[OpenDisk]:
    """The copies of one catalog; what cannot be had is told when classes and copies are opened.

    Raises:
        StartError: LVM takes too long, and goes on: nothing may be begun beside it.
    """
    spaces = []
    for section in config.classes.values():
        try:
            space = await CatalogLv(catalog_id, groups.lvm(section.vg), groups.mapper).existing()
        except StorageOverdue as err:
            raise StartError(f"volume group {section.vg}: {err}") from err
        except StorageError as err:
            log.warning("no copy of the catalog seen", vg=section.vg, reason=str(err))
        else:
            spaces += [] if space is None else [space]
    return spaces


async def _look(config: Config, groups: Groups) -> _Seen:
    """What there is of any catalog. Raises StartError if a volume group cannot be seen."""
    seen = _Seen()
    for section in config.classes.values():
        lvm = groups.lvm(section.vg)
        try:
            lvs = await lvm.lvs()
            for id_, count in disks_by_catalog(lvs).items():
                seen.disks[id_] = seen.disks.get(id_, 0) + count
            for id_ in catalogs_with_copies(lvs):
                space = await CatalogLv(id_, lvm, groups.mapper).existing()
                if space is not None:
                    seen.spaces.setdefault(id_, []).append(space)
        except StorageOverdue as err:
            raise StartError(f"volume group {section.vg}: {err}") from err
        except StorageError as err:
            raise StartError(
                f"volume group {section.vg}: {err}; `blockd make-pool` makes the volume group"
            ) from err
    return seen


async def _begin_anew(path: Path, found: FoundCatalog) -> None:
    # A log without its database, too: it would be taken for the new one's.
    moved = await asyncio.to_thread(put_aside, path)
    if moved:
        log.error("catalog put aside", fault=found.fault, now=[str(one) for one in moved])
    async with open_catalog(path):
        pass


async def _restore(
    path: Path, found: FoundCatalog, catalog_id: str, spaces: Sequence[OpenDisk]
) -> None:
    """From the newest whole copy.

    Raises:
        StartError: none is whole.
    """
    heading, content = await asyncio.to_thread(_newest_whole, path, found, spaces, catalog_id)
    told = f"catalog {path} {found.fault}: restored from its copy of {heading.written_at}"
    moved = await asyncio.to_thread(restore_copy, path, content, told)
    log.error(
        "catalog restored from its copy",
        fault=found.fault,
        copy_of=heading.written_at,
        generation=heading.generation,
        kept=[str(one) for one in moved],
    )


def _newest(spaces: Sequence[OpenDisk], catalog_id: str) -> Heading | None:
    newest = None
    for space in spaces:
        try:
            heading = newest_heading(space.path, space.size_bytes, catalog_id)
        except OSError as err:
            log.warning("a copy of the catalog cannot be read", reason=str(err))
            continue
        if heading is not None and (newest is None or heading.generation > newest.generation):
            newest = heading
    return newest


def _newest_whole(
    path: Path, found: FoundCatalog, spaces: Sequence[OpenDisk], catalog_id: str
) -> tuple[Heading, bytes]:
    whole = []
    for space in spaces:
        try:
            whole += list(copies(space.path, space.size_bytes, catalog_id))
        except OSError as err:
            log.warning("a copy of the catalog cannot be read", reason=str(err))
    if not whole:
        raise StartError(
            f"catalog {path} {found.fault}, and no copy of {catalog_id} is whole: "
            f"`blockd recover-catalog --from-volumes` makes one of the LVs, without names and "
            f"tags; {_HELP}"
        )
    return max(whole, key=lambda one: one[0].generation)


def _undecided(path: Path, found: FoundCatalog, seen: _Seen) -> StartError:
    catalogs = ", ".join(
        f"{id_} ({seen.disks.get(id_, 0)} LVs, {'a' if id_ in seen.spaces else 'no'} copy)"
        for id_ in seen.ids
    )
    how = "--catalog ID" if len(seen.ids) > 1 else "--from-volumes"
    return StartError(
        f"catalog {path} {found.fault}, and the volume groups hold LVs of {catalogs or 'none'}: "
        f"bring the right file back, or say `blockd recover-catalog {how}`; {_HELP}"
    )
