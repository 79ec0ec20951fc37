"""Sizes, durations and instants, as numbers with a unit in their names."""

from __future__ import annotations

import re
from datetime import UTC, datetime

SECTOR_BYTES = 512
MIB = 1024**2
GIB = 1024**3

#: Smallest volume, and the largest that dm-thin and the API's 64-bit sizes allow us to promise.
MIN_VOLUME_BYTES = MIB
MAX_VOLUME_BYTES = 10 * 1000**4

_SIZE_UNITS = {
    "": 1,
    "B": 1,
    "K": 1024,
    "KIB": 1024,
    "KB": 1000,
    "M": 1024**2,
    "MIB": 1024**2,
    "MB": 1000**2,
    "G": 1024**3,
    "GIB": 1024**3,
    "GB": 1000**3,
    "T": 1024**4,
    "TIB": 1024**4,
    "TB": 1000**4,
}
_BINARY_UNITS = (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024))
_DECIMAL_UNITS = (("TB", 1000**4), ("GB", 1000**3), ("MB", 1000**2), ("KB", 1000))
_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def parse_size(text: str) -> int:
    """Bytes of a size as a person writes it: `20G`, `512MiB`, `10GB`, `1048576`.

    `K M G T` and `KiB MiB GiB TiB` are powers of 1024, `KB MB GB TB` powers of 1000.

    Raises:
        ValueError: no number, an unknown unit, or not a whole number of bytes.
    """
    match = re.fullmatch(r"\s*([0-9]{1,20})(?:\.([0-9]{1,9}))?\s*([A-Za-z]*)\s*", text)
    if match is None or match[3].upper() not in _SIZE_UNITS:
        raise ValueError(f"{text!r} is not a size: write for example 20G, 512MiB or 10GB")
    unit = _SIZE_UNITS[match[3].upper()]
    fraction = match[2] or ""
    scaled = int(match[1] + fraction) * unit
    if scaled % 10 ** len(fraction):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return scaled // int(10 ** len(fraction))


def format_size(size_bytes: int) -> str:
    """A size for people: `20 GiB`, `1.5 GiB`, `10 GB`, `500 B`; at most two decimals.

    A size that two decimals tell exactly keeps the unit it was likely asked in: powers of 1024
    first, then of 1000. Others are rounded: `1.00 MiB` for 1048577.
    """
    for units in (_BINARY_UNITS, _DECIMAL_UNITS):
        name, unit = next((pair for pair in units if size_bytes >= pair[1]), ("B", 1))
        if size_bytes * 100 % unit == 0:
            return f"{size_bytes / unit:.2f}".rstrip("0").rstrip(".") + f" {name}"
    name, unit = next((pair for pair in _BINARY_UNITS if size_bytes >= pair[1]), ("B", 1))
    return f"{size_bytes / unit:.2f} {name}"


def parse_duration_s(text: str) -> float:
    """Seconds of a duration such as `500ms`, `30s`, `15m`, `24h`, `7d`, `0`.

    Raises:
        ValueError: no number or an unknown unit.
    """
    match = re.fullmatch(r"\s*([0-9]{1,12}(?:\.[0-9]{1,6})?)\s*(ms|s|m|h|d|w)?\s*", text)
    if match is None or (match[2] is None and float(match[1]) != 0):
        raise ValueError(f"{text!r} is not a duration: write for example 500ms, 30s, 24h or 7d")
    return float(match[1]) * _DURATION_UNITS[match[2] or "s"]


def now_timestamp() -> str:
    """This instant as the API writes it: UTC, six decimals, `Z` (27 characters)."""
    return format_timestamp(datetime.now(UTC))


def format_timestamp(instant: datetime) -> str:
    """`instant` (aware) as `2026-08-17T13:11:16.146987Z`."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_timestamp(text: str) -> datetime:
    """The inverse of `format_timestamp`."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
