"""What is erased when a row goes: its own disk, unless snapshots need it, and what it alone kept.

A snapshot of a thick class is a store over its origin. So the origin of an erased volume stays,
hidden, until the last snapshot that needs it is erased (ARCHITECTURE.md, "Kept origins").
"""

from __future__ import annotations

from collections.abc import Sequence

from blockd.catalog import Transaction
from blockd.domain.intent import Intent, Verb
from blockd.domain.snapshot import Snapshot
from blockd.domain.volume import Volume


def add_erase(tx: Transaction, storage_class: str, disks: list[str], fronts: list[str]) -> Intent:
    """Journal that `disks` are to be removed, after the fronts of these volumes and snapshots.

    One of the two lists may be empty.
    """
    return tx.add_intent(
        Verb.ERASE, [*disks, *fronts][0], storage_class, "", {"disks": disks, "fronts": fronts}
    )


def forget(tx: Transaction, storage_class: str, rows: Sequence[Volume | Snapshot]) -> Intent | None:
    """Exchange rows for the intent that erases what was theirs alone, if there is any.

    From this commit on nothing can bring them back. Rows in error have no disk any more.
    """
    volumes = [row for row in rows if isinstance(row, Volume)]
    snapshots = [row for row in rows if isinstance(row, Snapshot)]
    for snapshot in snapshots:
        tx.remove_snapshot(snapshot.id)
    disks = [row.disk for row in snapshots if row.error is None]
    fronts = []
    for volume in volumes:
        tx.remove_volume(volume.id)
        if volume.error is not None:
            continue
        fronts.append(volume.id)
        if tx.disks.snapshots_of(volume.disk):
            tx.disks.keep_origin(volume.disk, storage_class, volume.size_bytes)
        else:
            disks.append(volume.disk)
    disks += release(tx, snapshots)
    return add_erase(tx, storage_class, disks, fronts) if disks or fronts else None


def release(tx: Transaction, snapshots: Sequence[Snapshot]) -> list[str]:
    """The kept origins that were kept for these snapshots alone, which are gone or in error now.

    They are to be erased after the snapshots.
    """
    origins = dict.fromkeys(row.origin_disk for row in snapshots if row.origin_disk is not None)
    return tx.disks.release_origins([disk for disk in origins if disk is not None])
