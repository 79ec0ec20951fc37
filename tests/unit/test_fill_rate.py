"""The rate at which a pool fills, and what follows from it."""

from __future__ import annotations

import pytest

from blockd.domain.units import GIB, MIB
from blockd.service.fill_rate import FillRate


def test_steady_writing_gives_its_rate_and_the_time_left() -> None:
    rate = FillRate(100.0 * MIB)
    for second in range(0, 120, 10):
        rate.take(1000.0 + second, second * MIB)
    assert rate.bytes_s() == MIB
    assert rate.full_in_s(GIB) == pytest.approx(1024)


def test_only_the_last_ten_minutes_count() -> None:
    rate = FillRate(1.0)
    for second in range(0, 3600, 30):
        rate.take(second, min(second, 1800) * MIB)
    assert rate.bytes_s() == 0
    assert rate.full_in_s(GIB) is None


def test_nothing_is_foretold_from_a_few_seconds() -> None:
    rate = FillRate(1.0)
    assert rate.full_in_s(GIB) is None
    rate.take(0.0, 0)
    rate.take(4.9, GIB)
    assert rate.bytes_s() is None
    rate.take(5.0, GIB)
    assert rate.bytes_s() == GIB / 5


def test_pool_that_empties_is_never_full_and_a_full_one_is_full_now() -> None:
    rate = FillRate(1.0)
    rate.take(0.0, GIB)
    rate.take(60.0, MIB)
    assert rate.full_in_s(GIB) is None
    assert rate.full_in_s(0) == 0.0


def test_fastest_is_kept_and_never_taken_from_an_instant() -> None:
    rate = FillRate(10.0 * MIB)
    rate.take(0.0, 0)
    rate.take(1.0, 50 * MIB)
    assert rate.fastest_bytes_s == 50 * MIB
    rate.take(1.0001, 51 * MIB)
    assert rate.fastest_bytes_s == 50 * MIB
    rate.take(100.0, 51 * MIB)
    assert rate.fastest_bytes_s == 50 * MIB


def test_memory_is_bounded_however_often_it_is_looked() -> None:
    rate = FillRate(1.0)
    for tenth in range(100_000):
        rate.take(tenth / 10, tenth)
    assert len(rate._samples) <= 302
