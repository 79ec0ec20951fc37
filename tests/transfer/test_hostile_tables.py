"""Tables that lie: whatever the reader makes of them is what qemu-img would, or is left to it."""

from __future__ import annotations

import itertools
import struct
import subprocess
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blockd.domain.errors import ImageRefused
from blockd.domain.units import GIB, MIB
from blockd.transfer import qcow2_extents
from blockd.transfer.qcow2_extents import NotPlain
from tests.support.image_file import disk_of, extents_of, header_of, word

SIZE = 4 * MIB + 512
COPIED, ZERO = 1 << 63, 1
OFFSETS = 0x00FFFFFFFFFFFE00


@dataclass(frozen=True, repr=False)
class Base:
    """An image that is whole, and where its tables are: offsets of entries of 8 bytes."""

    content: bytes
    l1: list[int]
    l2: list[int]
    header: list[int]


def _make(path: Path, options: str, commands: list[str]) -> Base:
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, str(SIZE)]
    subprocess.run(create, check=True, timeout=60)
    given_ = [part for command in commands for part in ("-c", command)]
    write = ["qemu-io", "-f", "qcow2", *given_, path]
    subprocess.run(write, check=True, timeout=60, stdout=subprocess.DEVNULL)
    content, header = path.read_bytes(), header_of(path)
    l1_entries = struct.unpack_from(">I", content, 36)[0]
    l1 = [header.l1_offset + 8 * number for number in range(l1_entries)]
    tables = [word(content, at) & OFFSETS for at in l1]
    l2 = [
        table + 8 * number
        for table in tables
        if table
        # Those that matter: about the disk's first clusters, and its end.
        for number in range(min(header.cluster_bytes // 8, SIZE // header.cluster_bytes + 3))
    ]
    return Base(content, l1, l2, list(range(8, 104, 8)))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Base]:
    folder = tmp_path_factory.mktemp("bases")
    writes = [f"write -P {n + 1} {n * 7 % 60 * 65536} 64k" for n in range(40)]
    writes += ["write -z 1M 128k", "discard 2M 64k", f"write -P 9 {SIZE - 512} 512"]
    upwards = ["write -P 1 0 300k", "write -P 2 1M 1M", f"write -P 9 {SIZE - 1024} 1024"]
    made = {
        "cluster_size=64k": writes,
        "cluster_size=64k,compat=0.10": writes,
        "cluster_size=2M": upwards,
        "cluster_size=4k": upwards,
        "cluster_size=512": upwards,
        "cluster_size=128k,preallocation=full": upwards,
    }
    return [_make(folder / f"{n}", options, what) for n, (options, what) in enumerate(made.items())]


Change = tuple[str, int, str, int]

changes: st.SearchStrategy[list[Change]] = st.lists(
    st.tuples(
        st.sampled_from(["l2", "l2", "l2", "l1", "header"]),
        st.integers(0, 2**20),
        st.sampled_from(["flip", "value", "same as", "cluster", "zero flag", "nothing"]),
        st.integers(0, 2**64 - 1),
    ),
    min_size=1,
    max_size=6,
)


def changed(base: Base, todo: list[Change]) -> bytes:
    """The image with some entries changed."""
    image = bytearray(base.content)
    cluster = 1 << struct.unpack_from(">I", base.content, 20)[0]
    for table, which, how, number in todo:
        places = {"l1": base.l1, "l2": base.l2, "header": base.header}[table]
        at = places[which % len(places)]
        old = word(image, at)
        new = {
            "flip": old ^ 1 << number % 64,
            "value": number,
            "same as": word(image, places[number % len(places)]),
            "cluster": COPIED | number % (len(image) // cluster + 2) * cluster,
            "zero flag": old | ZERO,
            "nothing": 0,
        }[how]
        struct.pack_into(">Q", image, at, new % 2**64)
    return bytes(image)


async def _look(path: Path) -> tuple[str, bytes]:
    """What the reader makes of an image, and the disk, if it is one."""
    try:
        extents = await extents_of(path)  # which fetches nothing outside, or fails
    except ImageRefused:
        return "refused", b""
    except NotPlain:
        return "not plain", b""
    if extents.size_bytes > 64 * MIB:
        return "large", b""
    return "plain", disk_of(path, extents)


def _by_qemu_img(path: Path) -> bytes:
    target = path.with_suffix(".raw")
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, target]
    subprocess.run(convert, check=True, timeout=60)
    return target.read_bytes()


_seen: Counter[str] = Counter()


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(number=st.integers(0, 5), todo=changes)
async def test_plain_image_with_changed_tables_is_the_disk_that_qemu_img_makes_of_it(
    bases: list[Base], tmp_path: Path, number: int, todo: list[Change]
) -> None:
    path = tmp_path / "image"
    path.write_bytes(changed(bases[number], todo))
    outcome, disk = await _look(path)
    _seen[outcome] += 1
    if outcome == "plain":
        assert disk == _by_qemu_img(path)


def test_changed_tables_were_of_all_kinds() -> None:
    assert min(_seen[outcome] for outcome in ("plain", "not plain", "refused")) >= 10, _seen


async def test_images_as_they_were_are_plain(bases: list[Base], tmp_path: Path) -> None:
    path = tmp_path / "image"
    for base in bases:
        path.write_bytes(base.content)
        assert (await _look(path))[0] == "plain"


def _image(path: Path, size: int, l1: bytes, tables: Iterator[bytes], object_bytes: int) -> None:
    """A sparse image with clusters of 64 KiB: header, L1 table at 64 KiB, L2 tables behind it."""
    head = struct.pack(
        ">4s I Q I I Q I I Q Q I I Q Q Q Q I I",
        *(b"QFI\xfb", 3, 0, 0, 16, size, 0, len(l1) // 8, 65536),
        *(object_bytes - 65536, 1, 0, 0, 0, 0, 0, 4, 104),
    )
    with path.open("wb") as file:
        file.write(head)
        file.seek(65536)
        file.write(l1)
        file.seek(-(-file.tell() // 65536) * 65536)
        for table in tables:
            file.write(table)
        file.truncate(object_bytes)


async def _memory_of_reading(path: Path) -> tuple[str, int]:
    tracemalloc.start()
    try:
        outcome = str(await _plain_or_why(path))
        return outcome, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


async def _plain_or_why(path: Path) -> str:
    try:
        return f"{len(await extents_of(path))} extents"
    except NotPlain as err:
        return str(err)


async def test_largest_l1_table_that_names_one_l2_table_is_given_up_soon(tmp_path: Path) -> None:
    path, entries = tmp_path / "image", 2**22
    l1 = struct.pack(">Q", COPIED | GIB) * entries
    _image(path, entries * 512 * MIB, l1, iter(()), 2 * GIB)
    why, memory = await _memory_of_reading(path)
    assert why == "its tables are too many for its data"
    assert memory <= 16 * MIB


@pytest.mark.parametrize("order", ["backwards", "with gaps"])
async def test_many_extents_take_bounded_memory(
    tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qcow2_extents, "MOST_EXTENTS", most := 100_000)
    path, groups = tmp_path / "image", 16
    first = 32 + 2  # behind the tables
    clusters = groups * 8192
    numbers = {
        "backwards": (first + clusters - n for n in range(clusters)),
        "with gaps": (first + 2 * n for n in range(clusters)),
    }[order]
    l1 = struct.pack(f">{groups}Q", *(COPIED | (2 + n) * 65536 for n in range(groups)))
    tables = (
        struct.pack(">8192Q", *(COPIED | n * 65536 for n in itertools.islice(numbers, 8192)))
        for _ in range(groups)
    )
    _image(path, groups * 512 * MIB, l1, tables, (first + 2 * clusters + 1) * 65536)
    why, memory = await _memory_of_reading(path)
    assert why == "its data lie in too many pieces"
    # 24 bytes each, arrays that grow, one answer in the making for each question, one table.
    assert memory <= 40 * most + 8 * MIB


async def test_order_that_is_far_from_the_disks_is_left_to_qemu_img(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qcow2_extents, "MOST_HELD_BYTES", 32 * 8192 + 256)
    path = tmp_path / "image"
    for clusters, expected in ((8192, "2 extents"), (8193, "too far from its disk's")):
        # The disk's first cluster comes last.
        entries = [COPIED | (6 + clusters) * 65536]
        entries += [COPIED | (5 + n) * 65536 for n in range(clusters)]
        padded = entries + [0] * (-len(entries) % 8192)
        tables = [struct.pack(">8192Q", *padded[at : at + 8192]) for at in (0, 8192)]
        l1 = struct.pack(">2Q", COPIED | 2 * 65536, COPIED | 3 * 65536)
        _image(path, GIB, l1, iter(tables), (8 + clusters) * 65536)
        assert expected in await _plain_or_why(path)
