"""The status line of a thin pool as a value. Pure.

Source: Linux, admin-guide/device-mapper/thin-provisioning.rst, "Status".
"""

from __future__ import annotations

from dataclasses import dataclass

from blockd.domain.errors import StorageError

_METADATA_BLOCK_BYTES = 4096
_WHEN_FULL = {"queue_if_no_space": "queue", "error_if_no_space": "error"}


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Data in blocks of the pool's chunk size, metadata in bytes.

    Attributes:
        transaction_id: counts what LVM made and removed; tells whether the kernel took part.
        mode: `rw`, `ro`, `out_of_data_space`, or `fail` when the kernel gave the pool up.
        holds_snapshot: of its metadata (the held root): somebody reserved it.
        when_full: `queue` or `error`: what becomes of writes when no data are left; empty if not
            told.
    """

    transaction_id: int
    metadata_used_bytes: int
    metadata_bytes: int
    data_used_blocks: int
    data_blocks: int
    mode: str
    needs_check: bool
    holds_snapshot: bool = False
    when_full: str = ""


def parse_pool_status(params: str) -> PoolStatus:
    """Parse `<transaction> <used>/<total> <used>/<total> <held root> <mode> …`.

    A failed pool says just `Fail`: all its numbers are 0.

    Raises:
        StorageError: a field is missing.
    """
    fields = params.split()
    if fields in (["Fail"], ["Error"]):
        return PoolStatus(0, 0, 0, 0, 0, "fail", True)
    try:
        metadata_used, _, metadata_total = fields[1].partition("/")
        data_used, _, data_total = fields[2].partition("/")
        return PoolStatus(
            transaction_id=int(fields[0]),
            metadata_used_bytes=int(metadata_used) * _METADATA_BLOCK_BYTES,
            metadata_bytes=int(metadata_total) * _METADATA_BLOCK_BYTES,
            data_used_blocks=int(data_used),
            data_blocks=int(data_total),
            mode=fields[4],
            needs_check="needs_check" in fields,
            holds_snapshot=fields[3] != "-",
            when_full=_WHEN_FULL.get(next((f for f in fields if f in _WHEN_FULL), ""), ""),
        )
    except (IndexError, ValueError) as err:
        raise StorageError(f"the kernel's status of the pool cannot be read: {params!r}") from err
