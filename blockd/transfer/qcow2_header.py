"""Whether an object is an image that may be imported: its header, read before anything is made.

The header is hostile until this says otherwise: an image can name files of the host (backing file,
data file), ask for keys, or for more memory than there is. Such images are refused by name.

Source: QEMU, docs/interop/qcow2.txt; CVE-2015-1850, CVE-2024-32498 and their like.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from blockd.domain.errors import ImageRefused
from blockd.domain.units import SECTOR_BYTES
from blockd.transfer.qcow2_layout import (
    COMPRESSION_TYPE,
    CORRUPT,
    DATA_FILE,
    DIRTY,
    EXTENDED_L2,
    MAGIC,
)

#: So much of an object's beginning is looked at.
HEAD_BYTES: Final = 65536

_V2: Final = struct.Struct(">4s I Q I I Q I I Q Q I I Q")
_V3: Final = struct.Struct(">Q Q Q I I")
_EXTENSION: Final = struct.Struct(">II")
_V3_BYTES: Final = _V2.size + _V3.size

_DATA_FILE_EXTENSION: Final = 0x44415441
_CRYPT_EXTENSION: Final = 0x0537BE77
_FEATURE_NAMES_EXTENSION: Final = 0x6803F857
_DATA_FILE_RAW: Final = 2  # an autoclear feature
_MOST_L1_BYTES: Final = 32 * 1024**2
_MOST_REFCOUNT_TABLE_BYTES: Final = 8 * 1024**2
_MOST_SNAPSHOTS: Final = 65536
_LARGEST_BYTES: Final = 2**63


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a header that may be imported says.

    Attributes:
        size_bytes: of the disk, as it stands there; virtual_size_bytes: in whole sectors.
        l1_offset: of the L1 table in the object, in bytes; it has the entries that the size needs.
        unchecked: what else it holds that qemu-img looks at and `check_header` does not, in words;
            empty when there is nothing.
    """

    version: int
    size_bytes: int
    virtual_size_bytes: int
    cluster_bytes: int
    l1_offset: int
    compression: str
    has_extended_l2: bool
    unchecked: str


def check_header(head: bytes, object_bytes: int) -> ImageHeader:
    """Parse the first `HEAD_BYTES` of an object of `object_bytes`.

    Raises:
        ImageRefused: it is no QCOW2, or one that is not imported; says which.
    """
    if len(head) < _V2.size or not head.startswith(MAGIC):
        raise ImageRefused("it is no QCOW2 image: convert it with qemu-img convert -O qcow2")
    (
        _,
        version,
        backing_offset,
        _,
        cluster_bits,
        size_bytes,
        crypt_method,
        l1_entries,
        l1_offset,
        refcount_offset,
        refcount_clusters,
        snapshots,
        snapshots_offset,
    ) = _V2.unpack_from(head)
    if version not in (2, 3):
        raise ImageRefused(f"it has QCOW2 version {version}: versions 2 and 3 are imported")
    if backing_offset:
        raise ImageRefused("it has a backing file: convert it with qemu-img convert, without one")
    if crypt_method:
        raise ImageRefused("it is encrypted: decrypt it with qemu-img convert")
    if not 9 <= cluster_bits <= 21:
        raise ImageRefused(f"its clusters have 2^{cluster_bits} bytes: 2^9 to 2^21 are possible")
    cluster_bytes = 1 << cluster_bits
    compression, extended_l2, extensions_at = "zlib", False, _V2.size
    if version == 3:
        compression, extended_l2, extensions_at = _check_v3(head, cluster_bytes)
    unchecked = _check_extensions(head, extensions_at, cluster_bytes)
    if not 0 < size_bytes < _LARGEST_BYTES:
        raise ImageRefused(f"its disk has {size_bytes} bytes: that cannot be")
    _check_l1(size_bytes, cluster_bytes, l1_entries, extended_l2=extended_l2)
    if not 0 < refcount_clusters * cluster_bytes <= max(_MOST_REFCOUNT_TABLE_BYTES, cluster_bytes):
        raise ImageRefused("its refcount table has no possible size")
    if snapshots > _MOST_SNAPSHOTS:
        raise ImageRefused(f"it claims to hold {snapshots} snapshots")
    _check_inside("L1 table", l1_offset, l1_entries * 8, cluster_bytes, object_bytes)
    refcount_bytes = refcount_clusters * cluster_bytes
    _check_inside("refcount table", refcount_offset, refcount_bytes, cluster_bytes, object_bytes)
    # Also without snapshots: so does qemu-img.
    if snapshots_offset % cluster_bytes or snapshots_offset >= _LARGEST_BYTES:
        raise ImageRefused(f"its snapshot table lies at byte {snapshots_offset}, which cannot be")
    if snapshots:
        unchecked = f"it holds snapshots ({snapshots})"
        # A snapshot's entry has 40 bytes at least.
        _check_inside(
            "snapshot table", snapshots_offset, snapshots * 40, cluster_bytes, object_bytes
        )
    whole = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    return ImageHeader(
        *(version, size_bytes, whole, cluster_bytes, l1_offset, compression, extended_l2),
        unchecked=unchecked,
    )


def _check_v3(head: bytes, cluster_bytes: int) -> tuple[str, bool, int]:
    """Compression, whether L2 entries are extended, and where the header ends."""
    if len(head) < _V3_BYTES:
        raise ImageRefused("it ends within its header")
    features, _, autoclear, refcount_order, header_bytes = _V3.unpack_from(head, _V2.size)
    if features & DATA_FILE or autoclear & _DATA_FILE_RAW:
        raise ImageRefused("its data lie in another file: convert it with qemu-img convert")
    if features & CORRUPT:
        raise ImageRefused("it is marked as corrupt: repair it with qemu-img check -r all")
    if features & DIRTY:
        raise ImageRefused("it was not closed properly: repair it with qemu-img check -r all")
    unknown = features & ~(COMPRESSION_TYPE | EXTENDED_L2)
    if unknown:
        raise ImageRefused(f"it has features that blockd does not know (bits {unknown:#x})")
    if refcount_order > 6:
        raise ImageRefused(f"its refcounts have 2^{refcount_order} bits: 2^6 are possible")
    if not _V3_BYTES <= header_bytes <= min(cluster_bytes, len(head)) or header_bytes % 8:
        raise ImageRefused(f"its header claims to have {header_bytes} bytes")
    kind = head[_V3_BYTES] if header_bytes > _V3_BYTES else 0
    if kind > 1 or bool(kind) != bool(features & COMPRESSION_TYPE):
        raise ImageRefused(f"it has an unknown kind of compression ({kind})")
    extended_l2 = bool(features & EXTENDED_L2)
    if extended_l2 and cluster_bytes < 16384:
        raise ImageRefused("its clusters are too small for extended L2 entries")
    return ("zstd" if kind else "zlib"), extended_l2, header_bytes


def _check_extensions(head: bytes, at: int, cluster_bytes: int) -> str:
    """None may name a file or a key, and all must lie in the first cluster.

    Returns:
        What of them is for qemu-img, as `ImageHeader.unchecked`. Bitmaps and the name of a format
        are refused by it if they are odd; names of features are all that it never reads.
    """
    unchecked, end = "", min(cluster_bytes, len(head))
    while at + _EXTENSION.size <= end:
        kind, length = _EXTENSION.unpack_from(head, at)
        if length > end - at - _EXTENSION.size:
            raise ImageRefused("its header's extensions do not end where the header does")
        if kind == 0:
            return unchecked
        if kind == _DATA_FILE_EXTENSION:
            raise ImageRefused("it names a data file: convert it with qemu-img convert")
        if kind == _CRYPT_EXTENSION:
            raise ImageRefused("it is encrypted: decrypt it with qemu-img convert")
        if kind != _FEATURE_NAMES_EXTENSION:
            unchecked = f"it has a header extension of kind {kind:#x}"
        at += _EXTENSION.size + -(-length // 8) * 8
    if end < cluster_bytes:
        return "its header extensions go on where its header was read to"
    return unchecked


def _check_l1(size_bytes: int, cluster_bytes: int, entries: int, *, extended_l2: bool) -> None:
    l2_entries = cluster_bytes // (16 if extended_l2 else 8)
    needed = -(-size_bytes // (cluster_bytes * l2_entries))
    if entries * 8 > _MOST_L1_BYTES or needed * 8 > _MOST_L1_BYTES:
        raise ImageRefused("its L1 table is larger than 32 MiB")
    if entries < needed:
        raise ImageRefused(f"its L1 table has {entries} entries, and its size needs {needed}")


def _check_inside(what: str, offset: int, length: int, cluster_bytes: int, end: int) -> None:
    if offset % cluster_bytes or not 0 < offset < end:
        raise ImageRefused(f"its {what} lies at byte {offset}, which cannot be")
    # The last cluster of an image may be cut short.
    if offset + length > -(-end // cluster_bytes) * cluster_bytes:
        raise ImageRefused(f"its {what} reaches beyond the object's end")
