"""thin_dump's output as an allocation; the sample is as 0.9.0 writes it, with 64 KiB blocks."""

from __future__ import annotations

import pytest

from blockd.domain.errors import StorageError
from blockd.domain.units import MIB
from blockd.storage.thin_dump import ThinDump

SAMPLE = b"""<superblock uuid="" time="1" transaction="2" version="2" data_block_size="128">
  <device dev_id="2" mapped_blocks="5" transaction="1" creation_time="1" snap_time="1">
    <single_mapping origin_block="0" data_block="0" time="0"/>
    <range_mapping origin_begin="3" data_begin="1" length="3" time="0"/>
    <single_mapping origin_block="127" data_block="4" time="0"/>
  </device>
</superblock>
"""


def _take(text: bytes) -> list[int]:
    dump = ThinDump(8 * MIB)
    for line in text.splitlines(keepends=True):
        dump.take(line)
    return list(dump.finish().clusters())


def test_dump_lists_single_blocks_and_runs() -> None:
    assert _take(SAMPLE) == [0, 3, 4, 5, 127]


def test_dump_with_larger_blocks_lists_all_clusters_of_each() -> None:
    assert _take(SAMPLE.replace(b'"128"', b'"256"'))[:4] == [0, 1, 6, 7]


def test_dump_beyond_the_size_is_cut() -> None:
    text = SAMPLE.replace(b'length="3"', b'length="9999999999"')
    assert _take(text) == [0, *range(3, 128)]


@pytest.mark.parametrize(
    "text",
    [
        SAMPLE.replace(b"</superblock>", b""),
        SAMPLE.replace(b"origin_block", b"origin"),
        SAMPLE.replace(b'origin_begin="3"', b'origin_begin="-3"'),
        SAMPLE.partition(b"\n")[2],
        b"",
    ],
)
def test_dump_that_is_none_raises(text: bytes) -> None:
    with pytest.raises(StorageError):
        _take(text)
