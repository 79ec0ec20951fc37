"""The text of a volume group as LVM 2.03.16 wrote it in the lab, and what is no such text."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.domain.errors import StorageError
from blockd.storage.vg_text import parse_pool

TEXT = (Path(__file__).parents[1] / "data" / "vg-2.03.16.text").read_bytes()


def test_pool_with_a_creation_that_the_kernel_has_not_confirmed() -> None:
    pool = parse_pool(TEXT, "pool")
    assert (pool.transaction_id, pool.awaited) == (2, ("snap",))
    one, snap = pool.lvs
    assert (one.name, one.device_id, one.transaction_id) == ("one", 1, 0)
    assert (snap.name, snap.device_id, snap.transaction_id) == ("snap", 2, 1)
    assert snap.tags == {"blockd.x"}
    assert one.tags == {"blockd.x", "foo"}
    assert pool.cut_short(1) == [snap]
    assert [pool.has_heard(kernel) for kernel in (1, 2, 3)] == [False, True, False]


@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        (2, {}),  # the kernel has followed
        (0, {}),  # the kernel is behind by more than LVM owes it
        (1, {b'message1 {\n\t\t\t\t\tcreate = "snap"': b"message1 {\n\t\t\t\t\tdelete = 2"}),
        (1, {b"message1": b"other"}),
        (1, {b'create = "snap"': b'create = "one"'}),  # made in an earlier transaction
        (1, {b"device_id = 1": b"device_id = 2"}),  # the number is another LV's as well
        (1, {b'thin_pool = "pool"\n\t\t\t\ttransaction_id = 1': b"transaction_id = 1"}),
    ],
)
def test_creation_that_is_not_proved_to_be_cut_short_is_none(
    kernel: int, changes: dict[bytes, bytes]
) -> None:
    text = TEXT
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    assert parse_pool(text, "pool").cut_short(kernel) == []


REMOVAL = TEXT.replace(b'create = "snap"', b"delete = 7")


def test_removal_that_the_kernel_has_not_confirmed_is_owed_until_it_has() -> None:
    pool = parse_pool(REMOVAL, "pool")
    assert pool.owed_removals(1) == (7,)
    assert pool.owed_removals(2) == pool.owed_removals(0) == ()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        REMOVAL.replace(b"delete = 7", b"delete = 2"),  # an LV's
        REMOVAL.replace(b"message1 {", b'message2 { create = "one" }\nmessage1 {'),
    ],
)
def test_removal_beside_anything_else_is_left_to_lvm(text: bytes) -> None:
    assert parse_pool(text, "pool").owed_removals(1) == ()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        TEXT[: len(TEXT) // 2],
        TEXT.replace(b"logical_volumes", b"others"),
        TEXT.replace(b"transaction_id = 2", b""),
        TEXT.replace(b"transaction_id = 2", b'transaction_id = "2"'),
        TEXT.replace(b"device_id = 2", b"device_id = two"),
        TEXT.replace(b"segment1 {", b"segment1 ="),
    ],
)
def test_text_that_lvm_does_not_write_is_refused(text: bytes) -> None:
    with pytest.raises(StorageError, match="LVM's text"):
        parse_pool(text, "pool")


def test_pool_that_is_not_in_the_text_is_refused() -> None:
    with pytest.raises(StorageError, match="LVM's text"):
        parse_pool(TEXT, "other")
