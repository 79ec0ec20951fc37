"""Images that qemu-img wrote, and images that lie, on their way into a disk."""

from __future__ import annotations

import asyncio
import os
import struct
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import ImageRefused, StorageError
from blockd.domain.transfer import Progress
from blockd.domain.units import GIB, MIB
from blockd.domain.volume import OpenDisk
from blockd.transfer.bandwidth import Bandwidth
from blockd.transfer.images import Images, TransferSettings
from blockd.transfer.qemu_img import QemuImg
from blockd.transfer.s3 import Endpoint, Keys, open_object_store
from tests.support.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, Server, object_store

SIZE = 40 * MIB + 512
KEY = "images/one.qcow2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with object_store(tmp_path_factory.mktemp("store"), looks_again=True) as running:
        yield running


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse disk: noise, text that packs well, a run of zeros, and the last sector."""
    path = tmp_path_factory.mktemp("raw") / "disk"
    path.touch()
    with path.open("r+b") as file:
        file.truncate(SIZE)
        for at, data in (
            (0, b"boot" * 4096),
            (5 * MIB + 512, os.urandom(MIB)),
            (20 * MIB, b"the same again " * 100_000),
            (30 * MIB, bytes(MIB) + b"x"),
            (SIZE - 512, b"end " * 128),
        ):
            file.seek(at)
            file.write(data)
    return path


@asynccontextmanager
async def _images(server: Server, scratch: Path) -> AsyncIterator[Images]:
    async with open_object_store(
        Endpoint(server.url),
        Keys(ACCESS_KEY, SECRET_KEY),
        SideEffects(),
        patience_s=5,
        bandwidth=Bandwidth(0),
        connections=8,
    ) as store:
        settings = TransferSettings(5 * MIB, 10_000, 4, scratch, GIB)
        yield Images(store, QemuImg(GIB), settings)


async def _restore(server: Server, scratch: Path, target: Path) -> None:
    async with _images(server, scratch) as images:
        image = await images.look(BUCKET, KEY)
        target.touch()
        with target.open("r+b") as file:
            file.truncate(image.virtual_size_bytes)
        async with asyncio.timeout(60):
            await images.restore(image, OpenDisk(str(target), SIZE), Progress())


WRITTEN = {
    "v3": [],
    "v2": ["-o", "compat=0.10"],
    "zlib": ["-c"],
    "zstd": ["-c", "-o", "compression_type=zstd"],
    "clusters of 512": ["-o", "cluster_size=512"],
    "clusters of 4k": ["-o", "cluster_size=4k"],
    "clusters of 2M": ["-o", "cluster_size=2M"],
    "clusters of 2M, zlib": ["-c", "-o", "cluster_size=2M"],
    "extended l2": ["-o", "extended_l2=on,cluster_size=128k"],
    "preallocation metadata": ["-o", "preallocation=metadata"],
    "preallocation full": ["-o", "preallocation=full"],
    "lazy refcounts": ["-o", "lazy_refcounts=on"],
    "nothing sparse": ["-S", "0"],
}


def _write(server: Server, raw: Path, options: list[str]) -> Path:
    path = server.object(KEY)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path]
    subprocess.run(convert, check=True, timeout=60)
    return path


@pytest.mark.parametrize("name", WRITTEN)
async def test_image_of_qemu_img_arrives_byte_for_byte_and_thin(
    server: Server, raw: Path, tmp_path: Path, name: str
) -> None:
    _write(server, raw, WRITTEN[name])
    target = tmp_path / "target"
    await _restore(server, tmp_path, target)
    # The file may be longer: qemu-img writes whole blocks past the page cache.
    subprocess.run(["cmp", "-n", str(SIZE), raw, target], check=True, timeout=60)
    allocated = target.stat().st_blocks * 512
    assert allocated <= raw.stat().st_blocks * 512 + 2 * MIB


async def test_image_with_internal_snapshots_arrives_as_it_is_now(
    server: Server, raw: Path, tmp_path: Path
) -> None:
    path = _write(server, raw, [])
    subprocess.run(["qemu-img", "snapshot", "-c", "before", path], check=True, timeout=60)
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 9 7M 64k", path]
    subprocess.run(write, check=True, timeout=60, stdout=subprocess.DEVNULL)
    target = tmp_path / "target"
    await _restore(server, tmp_path, target)
    assert target.read_bytes()[7 * MIB : 7 * MIB + 65536] == b"\x09" * 65536


def _l1(image: bytes) -> int:
    return int(struct.unpack_from(">Q", image, 40)[0])


def _l2(image: bytes) -> int:
    return int(struct.unpack_from(">Q", image, _l1(image))[0] & 0x00FFFFFFFFFFFE00)


COPIED, PACKED = 1 << 63, 1 << 62

#: Where 8 bytes are changed, and to what. The header stays as it was.
LIES = {
    "L1 points at itself": lambda i: (_l1(i), COPIED | _l1(i)),
    "L1 points at the header": lambda i: (_l1(i), COPIED),
    "L1 points outside": lambda i: (_l1(i), COPIED | 1 << 45),
    "L1 off the grid": lambda i: (_l1(i), COPIED | _l2(i) + 512),
    "L2 points at itself": lambda i: (_l2(i), COPIED | _l2(i)),
    "L2 points at L1": lambda i: (_l2(i), COPIED | _l1(i)),
    "L2 points outside": lambda i: (_l2(i), COPIED | 1 << 45),
    "L2 off the grid": lambda i: (_l2(i), COPIED | _l2(i) + 512),
    "two clusters in one place": lambda i: (_l2(i) + 8, struct.unpack_from(">Q", i, _l2(i))[0]),
    "packed garbage": lambda i: (_l2(i), PACKED | _l2(i)),
    "packed, outside": lambda i: (_l2(i), PACKED | (1 << 45)),
    "packed, very long": lambda i: (_l2(i), (1 << 62) - 1 | PACKED),
    "reserved bits": lambda i: (_l2(i), (1 << 64) - 1),
}


@pytest.mark.parametrize("name", LIES)
async def test_image_whose_tables_lie_fails_or_gives_only_bytes_of_its_own(
    server: Server, raw: Path, tmp_path: Path, name: str
) -> None:
    path = _write(server, raw, [])
    image = bytearray(path.read_bytes())
    at, value = LIES[name](bytes(image))
    struct.pack_into(">Q", image, at, value)
    path.write_bytes(image)
    target = tmp_path / "target"
    try:
        await _restore(server, tmp_path, target)
    except StorageError as err:
        assert str(err).startswith("qemu-img: ")  # noqa: PT017 - both ends are right
    # Whatever came of it came from the object: the jail holds no other file.
    first = target.read_bytes()[:65536]
    assert first in (bytes(65536), raw.read_bytes()[:65536]) or first in bytes(image)


async def test_image_names_no_host_file_that_could_be_read(
    server: Server, raw: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 10_000)
    path = server.object(KEY)
    for options in (
        ["-b", str(secret), "-F", "raw"],
        ["-o", f"data_file={tmp_path}/data,data_file_raw=on"],
    ):
        path.unlink(missing_ok=True)
        create = ["qemu-img", "create", "-q", "-f", "qcow2", *options, path, "1M"]
        subprocess.run(create, check=True, timeout=60)
        with pytest.raises(ImageRefused):
            await _restore(server, tmp_path, tmp_path / "target")
