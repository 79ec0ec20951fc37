"""The superblock of a thin pool's metadata, as far as its held root goes. Pure.

Source: Linux, drivers/md/dm-thin-metadata.c (`struct thin_disk_superblock`, `sb_prepare_for_write`)
and drivers/md/persistent-data/dm-block-manager.c (`dm_bm_checksum`).
"""

from __future__ import annotations

import struct

BLOCK_BYTES = 4096

_MAGIC, _CSUM_XOR = 27022010, 160774
_CSUM, _BLOCK, _MAGIC_AT, _HELD_ROOT = 0, 8, 32, 56
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, reflected


def is_superblock(block: bytes, number: int = 0) -> bool:
    """Whether a block of the metadata is their superblock, or a copy of it at block `number`."""
    if len(block) != BLOCK_BYTES or struct.unpack_from("<Q", block, _MAGIC_AT)[0] != _MAGIC:
        return False
    (told,) = struct.unpack_from("<I", block, _CSUM)
    (at,) = struct.unpack_from("<Q", block, _BLOCK)
    return int(at) == number and int(told) == _checksum(block)


def held_root(block: bytes) -> int:
    """The block where a metadata snapshot begins; 0: there is none."""
    (number,) = struct.unpack_from("<Q", block, _HELD_ROOT)
    return int(number)


def with_held_root(block: bytes, number: int) -> bytes:
    """The same superblock with another held root; all that differs is in its first 64 bytes."""
    changed = bytearray(block)
    struct.pack_into("<Q", changed, _HELD_ROOT, number)
    struct.pack_into("<I", changed, _CSUM, _checksum(changed))
    return bytes(changed)


def _checksum(block: bytes | bytearray) -> int:
    crc = 0xFFFFFFFF
    for byte in block[4:]:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ _CSUM_XOR


def _row(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = tuple(_row(value) for value in range(256))
