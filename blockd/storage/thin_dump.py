"""What `thin_dump` writes of one thin device, as an allocation. Pure.

Source: thin_dump(8), thin-provisioning-tools 0.9 and 1.x: XML, an element on each line.
"""

from __future__ import annotations

import re
from typing import Final

from blockd.domain.allocation import Allocation
from blockd.domain.errors import StorageError
from blockd.domain.units import SECTOR_BYTES

_ATTRIBUTE: Final = re.compile(rb'([a-z_]+)="([0-9]{1,19})"')


class ThinDump:
    """Lines one after the other into an allocation of the device's first `size_bytes`."""

    def __init__(self, size_bytes: int) -> None:
        self.allocation = Allocation(size_bytes)
        self._block_bytes = 0
        self._ended = False

    def take(self, line: bytes) -> None:
        """One line.

        Raises:
            StorageError: it is not what thin_dump writes.
        """
        word = line.strip().partition(b" ")[0]
        if word == b"<superblock":
            self._block_bytes = self._number(line, "data_block_size") * SECTOR_BYTES
        elif word == b"<single_mapping":
            self._add(self._number(line, "origin_block"), 1)
        elif word == b"<range_mapping":
            self._add(self._number(line, "origin_begin"), self._number(line, "length"))
        elif word == b"</superblock>":
            self._ended = True

    def finish(self) -> Allocation:
        """After the last line.

        Raises:
            StorageError: it was not the last line of a whole dump.
        """
        if not self._ended:
            raise StorageError("thin_dump's output ends in the middle")
        return self.allocation

    def _add(self, block: int, count: int) -> None:
        if not self._block_bytes:
            raise StorageError("thin_dump names blocks before it says how large they are")
        self.allocation.add(block * self._block_bytes, count * self._block_bytes)

    def _number(self, line: bytes, name: str) -> int:
        for key, value in _ATTRIBUTE.findall(line):
            if key.decode() == name:
                return int(value)
        raise StorageError(f"thin_dump's output has no {name}: {line[:100]!r}")
