"""Which images may be imported: all that qemu-img writes by itself, none that reaches further."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from blockd.domain.errors import ImageRefused
from blockd.transfer.qcow2_header import HEAD_BYTES, check_header

MIB = 1024**2

#: Options of `qemu-img create`, and the size.
WRITTEN = {
    "v3": ("", 64 * MIB),
    "v2": ("compat=0.10", 64 * MIB),
    "odd size": ("", 64 * MIB + 512),
    "clusters of 512": ("cluster_size=512", 64 * MIB),
    "clusters of 4k": ("cluster_size=4k", 64 * MIB),
    "clusters of 2M": ("cluster_size=2M", 64 * MIB),
    "zstd": ("compression_type=zstd", 64 * MIB),
    "zlib": ("compression_type=zlib", 64 * MIB),
    "extended l2": ("extended_l2=on,cluster_size=128k", 64 * MIB),
    "lazy refcounts": ("lazy_refcounts=on", 64 * MIB),
    "preallocation metadata": ("preallocation=metadata", 64 * MIB),
    "preallocation full": ("preallocation=full", 8 * MIB),
    "refcounts of 1 bit": ("refcount_bits=1", 64 * MIB),
    "refcounts of 64 bits": ("refcount_bits=64", 64 * MIB),
    "10 TB": ("", 10**13),
}


def _create(path: Path, options: str, size: int) -> bytes:
    chosen = ["-o", options] if options else []
    create = ["qemu-img", "create", "-q", "-f", "qcow2", *chosen, path, str(size)]
    subprocess.run(create, check=True, timeout=60)
    return path.read_bytes()[: 16 * MIB]


@pytest.mark.parametrize("name", WRITTEN)
def test_what_qemu_img_writes_is_accepted(tmp_path: Path, name: str) -> None:
    options, size = WRITTEN[name]
    path = tmp_path / "image.qcow2"
    image = _create(path, options, size)
    header = check_header(image[:HEAD_BYTES], path.stat().st_size)
    assert header.virtual_size_bytes == size
    assert header.version == (2 if "0.10" in options else 3)
    assert header.has_extended_l2 == ("extended" in options)
    assert header.compression == ("zstd" if "zstd" in options else "zlib")


def test_internal_snapshots_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    _create(path, "", 8 * MIB)
    subprocess.run(["qemu-img", "snapshot", "-c", "one", path], check=True, timeout=60)
    assert check_header(path.read_bytes()[:HEAD_BYTES], path.stat().st_size)


def _put(at: int, form: str, *values: object) -> list[tuple[int, bytes]]:
    return [(at, struct.pack(f">{form}", *values))]


# Where fields lie: docs/interop/qcow2.txt.
BACKING, CLUSTER_BITS, SIZE, CRYPT, L1_SIZE, L1_OFFSET = 8, 20, 24, 32, 36, 40
TABLE, TABLE_CLUSTERS, SNAPSHOTS, SNAPSHOTS_OFFSET = 48, 56, 60, 64
FEATURES, REFCOUNT_ORDER, HEADER_LENGTH, COMPRESSION = 72, 96, 100, 104


def _extension(kind: int, data: bytes, length: int | None = None) -> list[tuple[int, bytes]]:
    head = struct.pack(">II", kind, len(data) if length is None else length)
    return [(112, head + data.ljust(-(-len(data) // 8) * 8, b"\0") + bytes(16))]


def _backing(name: bytes) -> list[tuple[int, bytes]]:
    return [*_put(BACKING, "QI", 1024, len(name)), (1024, name)]


HOSTILE: dict[str, tuple[list[tuple[int, bytes]], str]] = {
    "backing file, absolute": (_backing(b"/etc/shadow"), "backing file"),
    "backing file, relative": (_backing(b"../../etc/shadow"), "backing file"),
    "backing file, json": (_backing(b'json:{"driver":"file"}'), "backing file"),
    "backing file, nbd": (_backing(b"nbd://host/x"), "backing file"),
    "backing file, no name": (_put(BACKING, "QI", 1024, 0), "backing file"),
    "data file, bit": (_put(FEATURES, "Q", 4), "another file"),
    "data file, extension": (_extension(0x44415441, b"/etc/shadow"), "data file"),
    "data file, both": (_put(FEATURES, "Q", 4) + _extension(0x44415441, b"/x"), "file"),
    "data file, bit that it is raw": (_put(FEATURES + 16, "Q", 2), "another file"),
    "LUKS extension": (_extension(0x0537BE77, bytes(16)), "encrypted"),
    "AES": (_put(CRYPT, "I", 1), "encrypted"),
    "LUKS": (_put(CRYPT, "I", 2), "encrypted"),
    "unknown encryption": (_put(CRYPT, "I", 99), "encrypted"),
    "dirty": (_put(FEATURES, "Q", 1), "closed properly"),
    "corrupt": (_put(FEATURES, "Q", 2), "corrupt"),
    "unknown feature 5": (_put(FEATURES, "Q", 32), "does not know"),
    "unknown feature 63": (_put(FEATURES, "Q", 1 << 63), "does not know"),
    "compression without its bit": (_put(COMPRESSION, "B", 1), "compression"),
    "compression bit without it": (_put(FEATURES, "Q", 8), "compression"),
    "compression 2": (_put(FEATURES, "Q", 8) + _put(COMPRESSION, "B", 2), "compression"),
    "clusters of 256": (_put(CLUSTER_BITS, "I", 8), "2\\^8"),
    "clusters of 4M": (_put(CLUSTER_BITS, "I", 22), "2\\^22"),
    "clusters of 2^255": (_put(CLUSTER_BITS, "I", 255), "2\\^255"),
    "extended L2, clusters of 4k": (
        _put(CLUSTER_BITS, "I", 12) + _put(FEATURES, "Q", 16),
        "too small|reaches|L1",
    ),
    "size 0": (_put(SIZE, "Q", 0), "cannot be"),
    "size 2^63": (_put(SIZE, "Q", 1 << 63), "cannot be"),
    "size 2^64 - 1": (_put(SIZE, "Q", (1 << 64) - 1), "cannot be"),
    "size beyond L1": (_put(SIZE, "Q", 1 << 40), "L1 table has"),
    "size for a huge L1": (_put(SIZE, "Q", (1 << 63) - 512), "larger than 32 MiB"),
    "huge L1": (_put(L1_SIZE, "I", (1 << 32) - 1), "larger than 32 MiB"),
    "L1 of nothing": (_put(L1_SIZE, "I", 0), "L1 table has 0"),
    "L1 at 0": (_put(L1_OFFSET, "Q", 0), "L1 table lies"),
    "L1 off the grid": (_put(L1_OFFSET, "Q", 65537), "L1 table lies"),
    "L1 outside": (_put(L1_OFFSET, "Q", 1 << 40), "L1 table lies"),
    "L1 at 2^64": (_put(L1_OFFSET, "Q", (1 << 64) - 65536), "L1 table lies"),
    "refcount table at 0": (_put(TABLE, "Q", 0), "refcount table lies"),
    "refcount table outside": (_put(TABLE, "Q", 1 << 40), "refcount table lies"),
    "refcount table of nothing": (_put(TABLE_CLUSTERS, "I", 0), "refcount table has"),
    "huge refcount table": (_put(TABLE_CLUSTERS, "I", 1 << 20), "refcount table has"),
    "refcount table reaching out": (_put(TABLE_CLUSTERS, "I", 100), "beyond the object"),
    "refcounts of 2^7 bits": (_put(REFCOUNT_ORDER, "I", 7), "refcounts"),
    "snapshot bomb": (_put(SNAPSHOTS, "IQ", (1 << 32) - 1, 65536), "snapshots"),
    "snapshots outside": (_put(SNAPSHOTS, "IQ", 3, 1 << 40), "snapshot table lies"),
    "snapshots reaching out": (_put(SNAPSHOTS, "IQ", 65536, 65536), "snapshot table reaches"),
    "no snapshots, off the grid": (_put(SNAPSHOTS, "IQ", 0, 65537), "snapshot table lies"),
    "no snapshots, at 2^63": (_put(SNAPSHOTS, "IQ", 0, 1 << 63), "snapshot table lies"),
    "header length 0": (_put(HEADER_LENGTH, "I", 0), "header claims"),
    "header length 103": (_put(HEADER_LENGTH, "I", 103), "header claims"),
    "header length 2^32 - 1": (_put(HEADER_LENGTH, "I", (1 << 32) - 1), "header claims"),
    "extension without end": (_extension(0x1234, b"", (1 << 32) - 1), "extensions"),
    "extension that ends them, with a length": (_extension(0, b"", 65536), "extensions"),
    "extension over the cluster": (_extension(0x1234, b"", 65536), "extensions"),
    "version 1": (_put(4, "I", 1), "version 1"),
    "version 4": (_put(4, "I", 4), "version 4"),
}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _create(tmp_path_factory.mktemp("q") / "image.qcow2", "", 64 * MIB)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_header_is_refused_by_name(image: bytes, name: str) -> None:
    edits, words = HOSTILE[name]
    edited = bytearray(image)
    for at, data in edits:
        edited[at : at + len(data)] = data
    with pytest.raises(ImageRefused, match=words):
        check_header(bytes(edited[:HEAD_BYTES]), len(image))


@pytest.mark.parametrize("length", [0, 3, 4, 71, 72, 103, 104, 111])
def test_header_that_is_cut_short_is_refused(image: bytes, length: int) -> None:
    with pytest.raises(ImageRefused):
        check_header(image[:length], length)


@pytest.mark.parametrize(
    "head",
    [
        bytes(HEAD_BYTES),
        b"KDMV" + bytes(1000),
        b"vhdxfile" + bytes(1000),
        b"conectix" + bytes(1000),
        b"<<< QEMU VM Virtual Disk Image >>>" + bytes(1000),
        bytes(510) + b"\x55\xaa" + b"EFI PART" + bytes(1000),
        bytes(32769) + b"CD001" + bytes(100),
        b"<html><body>404</body></html>" * 10,
        b"QFI\xfa" + bytes(1000),
    ],
)
def test_what_is_no_qcow2_is_refused(head: bytes) -> None:
    with pytest.raises(ImageRefused, match="no QCOW2"):
        check_header(head, 10**9)
