"""What is known of the space behind a storage class."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PoolUse:
    """A pool's size and use, in bytes, as the kernel tells it.

    Attributes:
        storage_class: the class that lives in it, e.g. `sbs`.
        name: `vg/pool`.
        mode: `rw`, `ro`, `out_of_data_space` or `fail` (kernel, thin-provisioning.rst).
    """

    storage_class: str
    name: str
    size_bytes: int
    used_bytes: int
    metadata_size_bytes: int
    metadata_used_bytes: int
    mode: str
    needs_check: bool
