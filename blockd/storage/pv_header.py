"""What the first sectors of a physical volume tell without a process: whose it is, and which state
of its volume group's metadata is the current one.

LVM writes each new state of the metadata elsewhere in a ring, and then one sector that says where:
as long as that sector is the same, nobody has changed the volume group.

Source: lvm2, lib/format_text/layout.h and lib/label/label.h (all integers little-endian).
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_SECTOR_BYTES = 512
_PAGE_BYTES = 4096  # direct reads are aligned to this, whatever the disk's sectors

_LABEL = struct.Struct("<8s Q I I 8s")  # label_header: id, sector, crc, offset of pv_header, type
_UUID_BYTES = 32
_PV_HEADER_BYTES = _UUID_BYTES + 8  # pv_uuid, device_size; two lists of areas follow
_AREA = struct.Struct("<Q Q")  # disk_locn: offset, size
_MDA_HEADER = struct.Struct("<I 16s I Q Q")  # checksum, magic, version, start, size
_MAGIC = b" LVM2 x[5A%r0N*>"
_LOCATION = struct.Struct("<Q Q I I")  # raw_locn: offset, size, checksum, flags
_SECTORS_WITH_LABEL = 4
_MOST_BYTES = 2**62  # an offset beyond this is damage

_GROUP = re.compile(rb'^[\w+.-]+ \{\s*id = "([\w-]+)"')


@dataclass(frozen=True, slots=True)
class PvHeader:
    """Of one disk.

    Attributes:
        pv_uuid: its own, whatever name the disk has.
        vg_uuid: of the group it belongs to; empty if that is not told here.
        state: changes with every change of the group's metadata; empty if not told here.
        state_at: its offset on the disk.
    """

    pv_uuid: str
    vg_uuid: str
    state: bytes
    state_at: int = 0


def read_pv_header(path: Path) -> PvHeader | None:
    """Read from the disk itself, past every cache; None when it is no physical volume.

    Raises:
        OSError: it cannot be read. A disk that hangs is waited for.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    try:
        return parse_pv_header(lambda offset: _read(descriptor, offset))
    finally:
        os.close(descriptor)


def read_state(path: Path, state_at: int, *, wait: bool) -> bytes | None:
    """`PvHeader.state` as the kernel's cache has it; None if that is not there, and not waited for.

    The cache misses no change: LVM writes past it, which takes out of it what it holds of the same
    place (Linux, mm/filemap.c, kiocb_invalidate_pages). It lasts, as device-mapper holds the disk
    open.

    Raises:
        OSError: it cannot be read.
    """
    state = bytearray(_LOCATION.size)
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.preadv(descriptor, [state], state_at, 0 if wait else os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    finally:
        os.close(descriptor)
    return bytes(state)


def parse_pv_header(read: Callable[[int], bytes]) -> PvHeader | None:
    """The same of anything; `read` gives a page or more from an offset on, less at the end."""
    label = _label(read(0))
    if label is None:
        return None
    begin = _LABEL.unpack_from(label)[3]
    pv_uuid = label[begin : begin + _UUID_BYTES].decode(errors="replace")
    for offset, size in _metadata_areas(label, begin + _PV_HEADER_BYTES):
        group = _current(read, offset, size)
        if group is not None:
            return PvHeader(pv_uuid, *group)
    return PvHeader(pv_uuid, "", b"")


def _read(descriptor: int, offset: int) -> bytes:
    """The page that `offset` lies in, from there on, and the next."""
    begin = offset // _PAGE_BYTES * _PAGE_BYTES
    with mmap.mmap(-1, 2 * _PAGE_BYTES) as page:  # aligned, as O_DIRECT wants it
        count = os.preadv(descriptor, [page], begin)
        return page[offset - begin : count]


def _label(start: bytes) -> bytes | None:
    """The sector of the label, from its beginning."""
    for number in range(_SECTORS_WITH_LABEL):
        sector = start[number * _SECTOR_BYTES : (number + 1) * _SECTOR_BYTES]
        if sector.startswith(b"LABELONE") and sector[24:32] == b"LVM2 001":
            return sector
    return None


def _metadata_areas(label: bytes, offset: int) -> list[tuple[int, int]]:
    """Offset and size of each: the second list from `offset` on, behind that of the data areas."""
    lists: list[list[tuple[int, int]]] = [[], []]
    for areas in lists:
        while offset + _AREA.size <= len(label):
            area = _AREA.unpack_from(label, offset)
            offset += _AREA.size
            if not area[0] or area[0] >= _MOST_BYTES:
                break
            areas.append((area[0], area[1]))
    return lists[1]


def _current(read: Callable[[int], bytes], offset: int, size: int) -> tuple[str, bytes, int] | None:
    """The group's uuid, state, and where that is; None if there are no metadata in this area."""
    header = read(offset)
    if len(header) < _SECTOR_BYTES or _MDA_HEADER.unpack_from(header)[1] != _MAGIC:
        return None
    state = header[_MDA_HEADER.size : _MDA_HEADER.size + _LOCATION.size]
    at, length, _, _ = _LOCATION.unpack(state)
    if not at or not length or at >= size or offset + at >= _MOST_BYTES:
        return None
    match = _GROUP.match(read(offset + at))
    return "" if match is None else match[1].decode(), state, offset + _MDA_HEADER.size
