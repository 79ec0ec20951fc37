"""Images that are copied without qemu-img: the same disk, and the same digest, as by qemu-img."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blockd.domain.units import MIB
from tests.support.image_file import Imported, header_of, import_file

KIB = 1024
SIZE = 40 * MIB + 512


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
            (12 * MIB, os.urandom(9 * MIB)),
            (24 * MIB, b"the same again " * 100_000),
            (30 * MIB, bytes(MIB) + b"x"),
            (SIZE - 512, b"end " * 128),
        ):
            file.seek(at)
            file.write(data)
    return path


def qemu(*argv: object) -> None:
    subprocess.run([*map(str, argv)], check=True, timeout=60, stdout=subprocess.DEVNULL)


def convert(*options: str) -> Callable[[Path, Path], None]:
    """As qemu-img writes it from front to back."""

    def make(raw: Path, path: Path) -> None:
        qemu("qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path)

    return make


def io(*commands: str, create: str = "cluster_size=64k") -> Callable[[Path, Path], None]:
    """As a guest writes it."""

    def make(_: Path, path: Path) -> None:
        qemu("qemu-img", "create", "-q", "-f", "qcow2", "-o", create, path, SIZE)
        given = [argument for command in commands for argument in ("-c", command)]
        qemu("qemu-io", "-f", "qcow2", *given, path)

    return make


def shuffled(cluster: int, count: int, order: str = "shuffled") -> list[str]:
    """Writes of single clusters in some order."""
    places = list(range(0, count * cluster, cluster))
    if order == "shuffled":
        random.Random(4).shuffle(places)
    else:
        places.reverse()
    return [f"write -P {place // cluster % 255 + 1} {place} {cluster}" for place in places]


def then(*makes: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    def make(raw: Path, path: Path) -> None:
        for one in makes:
            one(raw, path)

    return make


def more(*commands: str) -> Callable[[Path, Path], None]:
    """Written to an image that is there."""

    def make(_: Path, path: Path) -> None:
        given = [argument for command in commands for argument in ("-c", command)]
        qemu("qemu-io", "-f", "qcow2", *given, path)

    return make


def img(*command: str) -> Callable[[Path, Path], None]:
    """`qemu-img COMMAND … IMAGE`; `{}` is the image, else it comes last."""

    def make(_: Path, path: Path) -> None:
        names_it = any("{}" in part for part in command)
        filled = [part.replace("{}", str(path)) for part in command]
        qemu("qemu-img", *filled, *([] if names_it else [path]))

    return make


def trailer(_: Path, path: Path) -> None:
    with path.open("ab") as file:
        file.write(os.urandom(512))


def cut(_: Path, path: Path) -> None:
    """The last cluster, which is one of data, ends early."""
    os.truncate(path, path.stat().st_size - 60 * KIB)


def packed_and_cut(kind: str) -> Callable[[Path, Path], None]:
    """The last packed cluster claims whole sectors, and the object ends where its bytes do."""

    def make(_: Path, path: Path) -> None:
        text = path.with_suffix(".text")
        text.write_bytes(b"".join(b"line %d " % n for n in range(200_000))[:MIB])
        convert("-c", "-o", f"compression_type={kind}")(text, path)
        data = path.read_bytes().rstrip(b"\0")
        assert len(data) % 512, "it ends at a whole sector: the test shows nothing"
        path.write_bytes(data)

    return make


PLAIN = {
    "v3": convert(),
    "v2": convert("-o", "compat=0.10"),
    "clusters of 512": convert("-o", "cluster_size=512"),
    "clusters of 2k": convert("-o", "cluster_size=2k"),
    "clusters of 4k": convert("-o", "cluster_size=4k"),
    "clusters of 32k": convert("-o", "cluster_size=32k"),
    "clusters of 128k": convert("-o", "cluster_size=128k"),
    "clusters of 2M": convert("-o", "cluster_size=2M"),
    "preallocation metadata": convert("-o", "preallocation=metadata"),
    "preallocation falloc": convert("-o", "preallocation=falloc"),
    "preallocation full": convert("-o", "preallocation=full"),
    "lazy refcounts": convert("-o", "lazy_refcounts=on"),
    "refcounts of 1 bit": convert("-o", "refcount_bits=1"),
    "refcounts of 64 bits": convert("-o", "refcount_bits=64"),
    "nothing sparse": convert("-S", "0"),
    "nothing sparse, clusters of 4k": convert("-S", "0", "-o", "cluster_size=4k"),
    "written out of order": convert("-W", "-m", "16"),
    "with a trailer": then(convert(), trailer),
    "empty": img("create", "-q", "-f", "qcow2", "{}", "40M"),
    "empty and full of tables": img(
        "create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", "{}", "40M"
    ),
    "a sector": img("create", "-q", "-f", "qcow2", "{}", "512"),
    "shuffled": io(*shuffled(64 * KIB, 300)),
    "backwards": io(*shuffled(64 * KIB, 300, "backwards")),
    "shuffled, clusters of 256k": io(*shuffled(256 * KIB, 100), create="cluster_size=256k"),
    "shuffled, v2": io(*shuffled(64 * KIB, 100), create="compat=0.10"),
    "the last sector first": io(f"write -P 7 {SIZE - 512} 512", "write -P 8 1M 3M"),
    "zeros last sector first": io(f"write -P 0 {SIZE - 512} 512", "write -P 8 1M 3M"),
    "zeros on data": io(
        "write -P 5 0 4M", "write -z 1M 128k", "write -z -u 2M 128k", "discard 3M 128k"
    ),
    "zeros, v2": io("write -P 5 0 4M", "write -z 1M 128k", "discard 3M 128k", create="compat=0.10"),
    "data of zeros": io("write -P 0 0 2M", "write -P 3 3M 64k", "write -P 0 5M 64k"),
    "snapshot deleted": then(
        convert(),
        img("snapshot", "-c", "one"),
        more("write -P 9 0 9M"),
        img("snapshot", "-d", "one"),
    ),
    "grown": then(convert(), img("resize", "-q", "{}", "+30M"), more("write -P 9 65M 1M")),
    "shrunk": then(convert(), img("resize", "-q", "--shrink", "{}", "13M")),
    "cut short": then(io("write -P 6 3M 64k", "write -P 7 0 64k"), cut),
}

OTHERS = {
    "zlib": convert("-c"),
    "zstd": convert("-c", "-o", "compression_type=zstd"),
    "clusters of 2M, zlib": convert("-c", "-o", "cluster_size=2M"),
    "zlib, cut at an odd byte": packed_and_cut("zlib"),
    "zstd, cut at an odd byte": packed_and_cut("zstd"),
    "extended l2": convert("-o", "extended_l2=on,cluster_size=128k"),
    "one packed": then(convert("-c"), more("write -P 9 0 5M")),
    "a snapshot": then(
        convert(), img("snapshot", "-c", "one"), more("write -P 9 7M 64k", "write -P 8 0 512")
    ),
    "reverted": then(
        convert(),
        img("snapshot", "-c", "one"),
        more("write -P 9 7M 64k"),
        img("snapshot", "-a", "one"),
    ),
    "a bitmap": then(convert(), img("bitmap", "--add", "{}", "one"), more("write -P 9 7M 64k")),
    "shuffled, clusters of 4k": io(*shuffled(4 * KIB, 300), create="cluster_size=4k"),
}


async def both(path: Path, folder: Path) -> Imported:
    """Import both ways and compare; what came of the first one."""
    ours, theirs = folder / "ours", folder / "theirs"
    imported = await import_file(path, ours)
    compared = await import_file(path, theirs, by_qemu_img=True)
    assert compared.went_through_qemu_img
    size = header_of(path).virtual_size_bytes
    qemu("cmp", "-n", size, ours, theirs)
    for seen in (*imported.progress, *compared.progress):
        assert seen == sorted(seen)
        assert seen[-1] == path.stat().st_size
    digests = {imported.digest, imported.verified, compared.digest, compared.verified}
    assert len(digests) == 1
    # A cluster of the digest is written as a whole.
    assert ours.stat().st_blocks <= theirs.stat().st_blocks + 10 * 128
    return imported


@pytest.mark.parametrize("name", PLAIN)
async def test_plain_image_becomes_without_qemu_img_what_it_becomes_with_it(
    raw: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "image"
    PLAIN[name](raw, path)
    imported = await both(path, tmp_path)
    assert not imported.went_through_qemu_img
    # Once for each of both, and the first block with the tables; small clusters have many of these.
    times = 1 if header_of(path).cluster_bytes >= 64 * KIB else 2
    assert imported.store.fetched_bytes <= 2 * (times * path.stat().st_size + 4 * MIB)
    qemu("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, tmp_path / "ours")


@pytest.mark.parametrize("name", OTHERS)
async def test_image_that_is_not_plain_goes_through_qemu_img(
    raw: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "image"
    OTHERS[name](raw, path)
    async with asyncio.timeout(60):
        assert (await both(path, tmp_path)).went_through_qemu_img
    qemu("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, tmp_path / "ours")
