"""What an image may hold beside its disk and still be plain: nothing that is not checked here."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.domain.units import MIB
from blockd.transfer.qcow2_extents import NotPlain
from tests.support.image_file import extents_of, word

# Where fields lie: docs/interop/qcow2.txt.
SNAPSHOTS_OFFSET, AUTOCLEAR, EXTENSIONS = 64, 88, 112
BACKING_FORMAT, FEATURE_NAMES, BITMAPS = 0xE2792ACA, 0x6803F857, 0x23852875


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", path, 16 * MIB)
    qemu("qemu-io", "-f", "qcow2", "-c", "write -P 3 1M 1M", path)
    return path


def qemu(*argv: object) -> None:
    subprocess.run([*map(str, argv)], check=True, timeout=60, stdout=subprocess.DEVNULL)


def put(path: Path, at: int, form: str, *values: object) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack(f">{form}", *values))


def extensions(*those: tuple[int, bytes]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        packed = (
            struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)
            for kind, data in those
        )
        whole = b"".join(packed) + bytes(8)
        put(path, EXTENSIONS, f"{len(whole)}s", whole)

    return change


def bitmaps(count: int) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        put(path, AUTOCLEAR, "Q", 1)
        # What they are, and how large their directory is and where.
        extensions((BITMAPS, struct.pack(">IIQQ", count, 0, 24, 65536)))(path)

    return change


def bitmap(path: Path) -> None:
    qemu("qemu-img", "bitmap", "--add", path, "one")


def snapshot(path: Path) -> None:
    qemu("qemu-img", "snapshot", "-c", "one", path)


def large_snapshot(path: Path) -> None:
    """Its entry claims 4 GiB of what is not known."""
    snapshot(path)
    put(path, word(path.read_bytes(), SNAPSHOTS_OFFSET) + 36, "I", (1 << 32) - 1)


REFUSED = {
    "2^31 bitmaps": bitmaps(1 << 31),
    "no bitmaps": bitmaps(0),
    "bitmaps that are none": bitmaps(1),
    "bitmaps too short": extensions((BITMAPS, bytes(16))),
    "large snapshot": large_snapshot,
    "long backing format": extensions((BACKING_FORMAT, bytes(16))),
}

LEFT = {
    "a bitmap": bitmap,
    "a snapshot": snapshot,
    "bitmaps without their bit": extensions((BITMAPS, bytes(24))),
    "backing format": extensions((BACKING_FORMAT, b"raw")),
    "unknown extension": extensions((0x1234, b"1234567")),
    "unknown behind names": extensions((FEATURE_NAMES, bytes(48)), (0x1234, b"")),
}

PLAIN = {
    "as it was made": lambda _: None,
    "no extensions": extensions(),
    "names of features": extensions((FEATURE_NAMES, b"\0\0dirty".ljust(48, b"\0"))),
    "autoclear bits": lambda path: put(path, AUTOCLEAR, "Q", (1 << 64) - 1 - 2),
    "compatible bits": lambda path: put(path, AUTOCLEAR - 8, "Q", (1 << 64) - 1),
}


def is_accepted(path: Path) -> bool:
    """Whether qemu-img makes a disk of it."""
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, path.with_suffix(".raw")]
    return subprocess.run(convert, check=False, timeout=60, stderr=subprocess.PIPE).returncode == 0


@pytest.mark.parametrize("name", REFUSED)
async def test_image_that_qemu_img_refuses_for_what_is_not_looked_at_is_not_plain(
    image: Path, name: str
) -> None:
    REFUSED[name](image)
    assert not is_accepted(image)
    with pytest.raises(NotPlain, match=r"snapshots|header extension"):
        await extents_of(image)


@pytest.mark.parametrize("name", LEFT)
async def test_image_with_what_is_not_looked_at_is_left_to_qemu_img(image: Path, name: str) -> None:
    LEFT[name](image)
    assert is_accepted(image)
    with pytest.raises(NotPlain, match=r"snapshots|header extension"):
        await extents_of(image)


@pytest.mark.parametrize("name", PLAIN)
async def test_image_with_what_means_nothing_for_its_disk_is_plain(image: Path, name: str) -> None:
    PLAIN[name](image)
    assert is_accepted(image)
    assert len(await extents_of(image)) == 1


async def test_extensions_that_go_on_behind_what_was_read_are_left_to_qemu_img(
    tmp_path: Path,
) -> None:
    path = tmp_path / "image"
    qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=2M", path, 16 * MIB)
    assert len(await extents_of(path)) == 0
    names = bytes(65536 - EXTENSIONS - 8)  # the next one begins where the reader stops
    extensions((FEATURE_NAMES, names), (BITMAPS, bytes(16)))(path)
    assert not is_accepted(path)
    with pytest.raises(NotPlain, match="header extension"):
        await extents_of(path)
