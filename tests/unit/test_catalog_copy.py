"""The slots of a catalog's copy: whatever a power cut leaves of a write, one copy is whole."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blockd.catalog import open_catalog
from blockd.catalog.copy import CatalogImage, CopySpace, Heading, copies, newest_heading, pack
from blockd.domain.units import MIB

ID = "00000000-0000-4000-8000-00000000000a"
OTHER_ID = "00000000-0000-4000-8000-00000000000b"
SIZE = 8 * MIB


def image(generation: int, length: int = 5000, catalog_id: str = ID) -> CatalogImage:
    """Bytes that differ with the generation, and that gzip makes no smaller."""
    return CatalogImage(catalog_id, generation, random.Random(generation).randbytes(length))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A space with what was on the disk before."""
    found = tmp_path / "space"
    found.write_bytes(random.Random(0).randbytes(SIZE))
    return found


@pytest.fixture
def space(path: Path) -> Iterator[CopySpace]:
    opened = CopySpace(str(path), SIZE, ID)
    yield opened
    opened.close()


def found(path: Path, catalog_id: str = ID) -> list[tuple[int, bytes]]:
    """Generation and bytes of each whole copy, newest first."""
    read = copies(str(path), path.stat().st_size, catalog_id)
    return [(heading.generation, content) for heading, content in read]


def expected(*images: CatalogImage) -> list[tuple[int, bytes]]:
    return [(one.generation, one.content) for one in images]


def test_space_with_what_was_there_before_holds_no_copy(path: Path, space: CopySpace) -> None:
    assert found(path) == []
    assert space.newest is None


def test_copies_are_written_to_two_slots_in_turn_and_read_newest_first(
    path: Path, space: CopySpace
) -> None:
    for generation in (1, 2, 3):
        space.write(pack(image(generation)))
    assert found(path) == expected(image(3), image(2))
    assert space.newest is not None
    assert space.newest.generation == 3


def test_space_that_is_opened_again_goes_on_behind_the_newest_copy(
    path: Path, space: CopySpace
) -> None:
    space.write(pack(image(1)))
    space.write(pack(image(2)))
    again = CopySpace(str(path), SIZE, ID)
    try:
        assert again.newest == space.newest
        again.write(pack(image(3)))
    finally:
        again.close()
    assert found(path) == expected(image(3), image(2))


@pytest.mark.parametrize("order", ["forwards", "backwards", "random"])
def test_power_cut_in_the_middle_of_a_write_leaves_the_copy_before_it(
    path: Path, space: CopySpace, order: str
) -> None:
    """A disk persists sectors of one write in any order."""
    for generation in (1, 2):
        space.write(pack(image(generation, 16_000)))
    before = path.read_bytes()
    space.write(pack(image(3, 16_000)))
    after = path.read_bytes()
    changed = [at for at in range(0, SIZE, 512) if before[at : at + 512] != after[at : at + 512]]
    if order == "backwards":
        changed.reverse()
    elif order == "random":
        random.Random(7).shuffle(changed)
    torn = bytearray(before)
    for count, at in enumerate(changed, 1):
        assert found(path.with_name("torn") if count > 1 else path)[0][0] in (2, 3)
        torn[at : at + 512] = after[at : at + 512]
        path.with_name("torn").write_bytes(torn)
        whole = expected(image(3, 16_000), image(2, 16_000))
        assert found(path.with_name("torn")) == (whole if count == len(changed) else whole[1:])


@pytest.mark.parametrize("at", [0, 70, 4000, 4096, 8000])
def test_garbled_slot_is_passed_over_and_written_next(
    path: Path, space: CopySpace, at: int
) -> None:
    for generation in (1, 2):
        space.write(pack(image(generation)))
    damaged = bytearray(path.read_bytes())
    offset = SIZE // 2 + at  # the second slot, where the newest is
    damaged[offset] ^= 0xFF
    path.write_bytes(damaged)
    is_harmless = at == 4000  # behind the heading's text, and before the copy
    assert found(path) == expected(*([image(2)] if is_harmless else []), image(1))
    again = CopySpace(str(path), SIZE, ID)
    try:
        again.write(pack(image(3)))
    finally:
        again.close()
    assert found(path) == expected(image(3), image(2) if is_harmless else image(1))


def test_copy_larger_than_a_slot_is_refused_and_touches_nothing(
    path: Path, space: CopySpace
) -> None:
    space.write(pack(image(1)))
    before = path.read_bytes()
    with pytest.raises(OSError, match="larger than a slot"):
        space.write(pack(image(2, SIZE // 2)))
    assert path.read_bytes() == before


def test_copy_of_another_catalog_is_passed_over(path: Path, space: CopySpace) -> None:
    space.write(pack(image(1, catalog_id=OTHER_ID)))
    assert found(path) == []
    assert found(path, OTHER_ID) == expected(image(1, catalog_id=OTHER_ID))


@contextmanager
def torn(path: Path, space: CopySpace) -> Iterator[None]:
    """The newest copy without its heading, for the length of the block."""
    assert space._newest is not None
    with path.open("r+b") as file:
        file.seek(space._newest[0])
        heading = file.read(4096)
        file.seek(space._newest[0])
        file.write(bytes(4096))
        file.flush()
        yield
        file.seek(space._newest[0])
        file.write(heading)


@settings(max_examples=5, deadline=None)
@given(
    sizes_mib=st.lists(st.integers(2, 8), min_size=1, max_size=4).map(sorted),
    shares=st.lists(st.floats(0.01, 0.99), min_size=5, max_size=5),
)
def test_space_that_grows_by_any_step_never_loses_the_newest_copy(
    tmp_path_factory: pytest.TempPathFactory, sizes_mib: list[int], shares: list[float]
) -> None:
    path = tmp_path_factory.mktemp("grows") / "space"
    path.touch()
    os.truncate(path, sizes_mib[0] * MIB)
    space = CopySpace(str(path), sizes_mib[0] * MIB, ID)
    generation = 0
    newest: CatalogImage | None = None
    try:
        for size_mib in sizes_mib:
            os.truncate(path, size_mib * MIB)
            space.grown(size_mib * MIB)
            for share in shares[:3]:
                generation += 1
                made = image(generation, int(share * (space.slot_bytes - 8192)))
                packed = pack(made)
                if packed.needed_bytes > space.slot_bytes:
                    continue
                try:
                    space.write(packed)
                except OSError:  # the newest lies where both slots are now: it stays
                    pass
                else:
                    if newest is not None:
                        with torn(path, space):
                            assert found(path)[0] == (newest.generation, newest.content)
                    newest = made
                if newest is not None:
                    assert found(path)[0] == (newest.generation, newest.content)
    finally:
        space.close()


async def test_catalog_that_is_packed_while_it_is_written_is_whole(tmp_path: Path) -> None:
    async with open_catalog(tmp_path / "c") as catalog:
        await catalog.write("noted", lambda tx: tx.put_meta("note", "before"))
        packed = await catalog.packed()
        assert packed.heading.generation == catalog.generation == 1
        await catalog.write("noted", lambda tx: tx.put_meta("note", "after"))
        assert catalog.generation == 2
    space_path = tmp_path / "space"
    space_path.touch()
    os.truncate(space_path, SIZE)
    space = CopySpace(str(space_path), SIZE, packed.heading.catalog_id)
    space.write(packed)
    space.close()
    heading = newest_heading(str(space_path), SIZE, packed.heading.catalog_id)
    assert isinstance(heading, Heading)
    ((_, content),) = copies(str(space_path), SIZE, packed.heading.catalog_id)
    (tmp_path / "again").write_bytes(content)
    async with open_catalog(tmp_path / "again") as catalog:
        assert await catalog.read(lambda tx: tx.meta("note")) == "before"
        assert catalog.generation == 1
