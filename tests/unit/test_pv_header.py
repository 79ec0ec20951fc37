"""The first sectors of a physical volume as LVM 2.03.16 wrote them, and of other disks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from blockd.storage.pv_header import PvHeader, parse_pv_header, read_state

IMAGE = (Path(__file__).parents[1] / "data" / "pv-2.03.16.img").read_bytes()
#: Where the one sector is that says which state of the group is the current one.
STATE_AT = 4096 + 40


def parse(image: bytes) -> PvHeader | None:
    return parse_pv_header(lambda offset: image[offset : offset + 8192])


def test_header_of_a_physical_volume_tells_its_group_and_state() -> None:
    header = parse(IMAGE)
    assert header is not None
    assert len(header.pv_uuid) == 32
    assert header.vg_uuid == "V0Q916-3dr4-Oi1G-VFYE-nlTJ-At9Q-HJxUMa"
    assert header.state == IMAGE[STATE_AT : STATE_AT + 24]
    assert header.state_at == STATE_AT


def test_state_is_read_without_waiting_when_it_is_in_the_cache(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    path.write_bytes(IMAGE)
    known = read_state(path, STATE_AT, wait=True)
    assert known == IMAGE[STATE_AT : STATE_AT + 24]
    assert read_state(path, STATE_AT, wait=False) in (known, None)


@pytest.mark.parametrize("image", [b"", bytes(8192), IMAGE[:600], b"x" * 9000])
def test_other_disk_is_no_physical_volume_or_of_no_group(image: bytes) -> None:
    header = parse(image)
    assert header is None or (header.vg_uuid, header.state) == ("", b"")


def test_physical_volume_of_no_group_says_so() -> None:
    image = bytearray(IMAGE)
    image[STATE_AT : STATE_AT + 24] = bytes(24)
    header = parse(bytes(image))
    assert header is not None
    assert (header.vg_uuid, header.state) == ("", b"")


def test_damaged_header_is_never_more_than_wrong() -> None:
    chance = random.Random(1)
    for _ in range(2000):
        image = bytearray(IMAGE)
        for _ in range(8):
            image[chance.choice((512, 4096)) + chance.randrange(160)] = chance.randrange(256)
        parse(bytes(image))
