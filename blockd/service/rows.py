"""The rows that a request may use, or the error that says why it may not."""

from __future__ import annotations

from blockd.catalog import Transaction
from blockd.domain.errors import NotFound, PreconditionFailed, TransientState
from blockd.domain.job import JobKind
from blockd.domain.snapshot import Snapshot
from blockd.domain.states import AVAILABLE, DELETED, TRANSIENT
from blockd.domain.volume import Volume


def living_volume(tx: Transaction, volume_id: str) -> Volume:
    """A volume that is not deleted. Raises NotFound."""
    volume = tx.volume(volume_id)
    if volume is None or volume.status is DELETED:
        raise NotFound("volume", volume_id)
    return volume


def deleted_volume(tx: Transaction, volume_id: str) -> Volume:
    """A volume in the trash.

    Raises:
        NotFound: there is none, or it is erased.
        PreconditionFailed: it is not deleted.
    """
    volume = tx.volume(volume_id)
    if volume is None:
        raise NotFound("volume", volume_id)
    if volume.status is not DELETED:
        raise PreconditionFailed("resource_not_usable", f"volume {volume_id} is not deleted")
    return volume


def volume_at_rest(tx: Transaction, volume_id: str) -> Volume:
    """A volume that nothing is being done to.

    Raises:
        NotFound, TransientState: it is gone, or not ready.
        PreconditionFailed: it is in error.
    """
    volume = living_volume(tx, volume_id)
    if volume.status in TRANSIENT:
        raise TransientState("volume", volume_id, volume.status)
    if volume.status is not AVAILABLE:
        raise PreconditionFailed("resource_not_usable", f"volume {volume_id} is in error")
    return volume


def living_snapshot(tx: Transaction, snapshot_id: str) -> Snapshot:
    """A snapshot that is not deleted. Raises NotFound."""
    snapshot = tx.snapshot(snapshot_id)
    if snapshot is None or snapshot.status is DELETED:
        raise NotFound("snapshot", snapshot_id)
    return snapshot


def readable_snapshot(tx: Transaction, snapshot_id: str) -> Snapshot:
    """A snapshot whose bytes are whole and at rest.

    Raises:
        NotFound, TransientState: it is gone, or not ready.
        PreconditionFailed: it is in error.
    """
    snapshot = living_snapshot(tx, snapshot_id)
    if snapshot.status in TRANSIENT:
        raise TransientState("snapshot", snapshot_id, snapshot.status)
    if snapshot.held_by is JobKind.REVERT:
        raise TransientState("snapshot", snapshot_id, "in_use")
    if snapshot.status is not AVAILABLE:
        reason = f": {snapshot.error}" if snapshot.error else ""
        raise PreconditionFailed(
            "resource_not_usable", f"snapshot {snapshot_id} is in error{reason}"
        )
    return snapshot
