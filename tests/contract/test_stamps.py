"""The judge judged: stamps find what is wrong, and say where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import stamps

SIZES = [8192, 8192 + 512, 1024 * 1024 + 3584]


@pytest.fixture(params=SIZES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A stamped file."""
    file = tmp_path / "file"
    file.write_bytes(bytes(request.param))
    stamps.stamp(file, 7)
    return file


def damage(path: Path, offset: int, data: bytes) -> None:
    """Overwrite a few bytes."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_expect_of_whole_stamps_passes(path: Path) -> None:
    stamps.expect(path, 7)
    with stamps.opened(path) as file:
        assert set(file.generations()) == {7}


@pytest.mark.parametrize("place", [0, 31, 4096, -1])
def test_expect_with_one_wrong_byte_names_its_offset(path: Path, place: int) -> None:
    offset = place % path.stat().st_size
    damage(path, offset, bytes([path.read_bytes()[offset] ^ 1]))
    with pytest.raises(AssertionError, match=rf"offset {offset}: expected generation 7"):
        stamps.expect(path, 7)
    with pytest.raises(AssertionError), stamps.opened(path) as file:
        file.generations()


def test_expect_of_another_generation_tells_which_was_found(path: Path) -> None:
    with pytest.raises(AssertionError, match="expected generation 8, found generation 7 of"):
        stamps.expect(path, 8)


def test_expect_of_zeros_where_a_stamp_is_fails(path: Path) -> None:
    with pytest.raises(AssertionError, match="expected zeros, found generation 7"):
        stamps.expect(path, 0)


def test_expect_of_a_block_that_went_elsewhere_fails(path: Path) -> None:
    damage(path, 4096, stamps.block(0, 7)[: path.stat().st_size - 4096])
    with pytest.raises(AssertionError, match="found generation 7 of offset 0"):
        stamps.expect(path, 7)


def test_expect_same_names_the_first_offset_that_differs(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(path.read_bytes())
    stamps.expect_same(path, other)
    assert stamps.digest(path) == stamps.digest(other)
    damage(other, 5000, b"!")
    with pytest.raises(AssertionError, match="offset 5000"):
        stamps.expect_same(path, other)
    assert stamps.digest(path) != stamps.digest(other)
