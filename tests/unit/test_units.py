"""Sizes, durations and instants: what is written is read back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockd.domain.units import (
    format_size,
    format_timestamp,
    now_timestamp,
    parse_duration_s,
    parse_size,
    parse_timestamp,
)

UNITS = {
    "": 1, "B": 1,
    "K": 1024, "KiB": 1024, "KB": 1000,
    "M": 1024**2, "MiB": 1024**2, "MB": 1000**2,
    "G": 1024**3, "GiB": 1024**3, "GB": 1000**3,
    "T": 1024**4, "TiB": 1024**4, "TB": 1000**4,
}  # fmt: skip
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZES = st.integers(min_value=0, max_value=10 * 1000**4)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20G", 20 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("10GB", 10 * 1000**3),
        ("1048576", 1048576),
        (" 1.5 gib ", 3 * 512 * 1024**2),
        ("0.1KB", 100),
        ("0", 0),
    ],
)
def test_parse_size_reads_what_a_person_writes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@given(
    number=st.integers(0, 10**6),
    unit=st.sampled_from(sorted(UNITS)),
    gap=st.sampled_from(["", " "]),
)
def test_parse_size_of_whole_numbers_multiplies_by_the_unit(
    number: int, unit: str, gap: str
) -> None:
    assert parse_size(f"{number}{gap}{unit}") == number * UNITS[unit]
    assert parse_size(f"{number}{gap}{unit.lower()}") == number * UNITS[unit]


@given(
    whole=st.integers(0, 10**6),
    decimals=st.text("0123456789", min_size=1, max_size=9),
    unit=st.sampled_from(sorted(UNITS)),
)
def test_parse_size_of_fractions_is_exact_or_refused(whole: int, decimals: str, unit: str) -> None:
    text = f"{whole}.{decimals}{unit}"
    exact = Fraction(f"{whole}.{decimals}") * UNITS[unit]
    if exact.denominator == 1:
        assert parse_size(text) == exact
    else:
        with pytest.raises(ValueError, match="not a whole number of bytes"):
            parse_size(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "G", "-1", "+1", "1.", ".5", "1 2", "1X", "1e3", "1,5G", "0x10", "١G", "1.0.0G"],
)
def test_parse_size_of_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write for example"):
        parse_size(text)


@given(SIZES)
def test_format_size_of_an_exact_unit_reads_back_the_same(size_bytes: int) -> None:
    text = format_size(size_bytes)
    if "." not in text:
        assert parse_size(text) == size_bytes
    else:  # rounded for people: two decimals of the unit
        number, unit = text.split()
        assert abs(Fraction(number) * UNITS[unit] - size_bytes) <= Fraction(UNITS[unit], 200)


@given(number=st.integers(1, 999), unit=st.sampled_from(["KiB", "MiB", "GiB", "TiB"]))
def test_format_size_keeps_the_unit_it_was_likely_asked_in(number: int, unit: str) -> None:
    assert format_size(number * UNITS[unit]) == f"{number} {unit}"


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(0, "0 B"), (512, "512 B"), (1000**2, "1 MB"), (10 * 1000**3, "10 GB")]
)
def test_format_size_of_known_sizes(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (3 * 1024**3 // 2, "1.5 GiB"),
        (1048577, "1.00 MiB"),
        (33 * 1024**2 + 768 * 1024, "33.75 MiB"),
    ],
)
def test_format_size_has_two_decimals_at_most(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(number=st.integers(0, 10**9), unit=st.sampled_from(sorted(SECONDS)))
def test_parse_duration_multiplies_by_the_unit(number: int, unit: str) -> None:
    assert parse_duration_s(f"{number}{unit}") == pytest.approx(number * SECONDS[unit])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("1.5 h", 5400.0), ("0", 0.0), ("0.0", 0.0), ("7d", 604800.0)],
)
def test_parse_duration_of_known_durations(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "s", "-1s", "1y", "1 h 5 m", "1e3s", "nan", "infs"])
def test_parse_duration_of_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write for example"):
        parse_duration_s(text)


ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.builds(
    lambda micros, zone: (
        datetime(1970, 1, 2, tzinfo=UTC) + timedelta(microseconds=micros)
    ).astimezone(zone),
    st.integers(0, 8000 * 365 * 86400 * 10**6),
    ZONES,
)


@given(INSTANTS)
def test_timestamp_of_any_instant_reads_back_the_same(instant: datetime) -> None:
    text = format_timestamp(instant)
    assert len(text) == 27
    assert text.endswith("Z")
    assert parse_timestamp(text) == instant
    assert format_timestamp(parse_timestamp(text)) == text


@given(INSTANTS, INSTANTS)
def test_timestamps_sort_as_their_instants(one: datetime, other: datetime) -> None:
    assert (format_timestamp(one) < format_timestamp(other)) == (one < other)


def test_now_timestamp_is_this_instant() -> None:
    before = datetime.now(UTC)
    assert before <= parse_timestamp(now_timestamp()) <= datetime.now(UTC)


def test_timestamp_is_written_as_the_api_writes_it() -> None:
    instant = datetime(2026, 8, 17, 15, 11, 16, 146987, timezone(timedelta(hours=2)))
    assert format_timestamp(instant) == "2026-08-17T13:11:16.146987Z"
