"""Held roots and checksums of superblocks that a kernel wrote."""

from __future__ import annotations

import base64
import zlib

import pytest

from blockd.storage.superblock import BLOCK_BYTES, held_root, is_superblock, with_held_root

#: Of one pool (Linux 6.1): with a metadata snapshot, and in the first write of the next commit.
HELD, RELEASED = (
    zlib.decompress(base64.b64decode(text))
    for text in (
        (
            "eNpbHWmjyIAH7AqawwiimYCYFYjZoeIZUNpBGkKvgvJToXQKDvMUypsZqAocIBQ/lJsJpZmg9BHXBAZa"
            "giQoDbOlAYg5kNw1CkbBKBgFo2AUjIJRMApGwSgYBaNgFAwGAABEUgoW"
        ),
        (
            "eNrTbu2QYcADdgXNYQTRTEDMCsTsaPIO0hB6FZSfCqVTcJinUN7MQFXgAKH4odxMKM0EpY+4JjDQEiRB"
            "aZgtDUDMgeSuUTAKRsEoGAWjYBSMglEwCkbBKBgFo2AwAAAJ9Amh"
        ),
    )
)


def test_superblocks_of_a_kernel_are_known() -> None:
    assert (is_superblock(HELD), held_root(HELD)) == (True, 104)
    assert (is_superblock(RELEASED), held_root(RELEASED)) == (True, 0)


def test_another_held_root_makes_what_the_kernel_would_have_written() -> None:
    assert with_held_root(HELD, 0) == RELEASED
    assert with_held_root(RELEASED, 104) == HELD


@pytest.mark.parametrize(
    "block",
    [
        bytes(BLOCK_BYTES),
        b"",
        HELD[:-1],
        HELD[:100] + b"x" + HELD[101:],
        HELD[:8] + b"\1" + HELD[9:],
    ],
)
def test_other_blocks_are_none(block: bytes) -> None:
    assert not is_superblock(block)


def test_copy_is_known_at_its_own_block_only() -> None:
    assert not is_superblock(HELD, 104)
