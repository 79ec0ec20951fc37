"""The kinds of values that requests hold, each with its check and its JSON schema.

A check raises `PydanticCustomError` whose type is the API's `reason` and whose message is the
`help_message`; `faults.py` turns them into `InvalidArguments`.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from blockd.domain.group import MOST_VOLUMES
from blockd.domain.units import MAX_VOLUME_BYTES, MIN_VOLUME_BYTES, SECTOR_BYTES
from blockd.domain.volume import PERF_IOPS

MAX_NAME_RUNES: Final = 255
#: With `-64` behind it, it is still a name.
MAX_GROUP_NAME_RUNES: Final = MAX_NAME_RUNES - 3
MAX_TAGS: Final = 100
MAX_TAG_RUNES: Final = 128

_UUID = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_INTEGER = re.compile(r"-?[0-9]{1,100}")
#: Control characters break terminals and logs; lone surrogates are no Unicode text.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def wrong_format(help_text: str) -> PydanticCustomError:
    """It cannot be read."""
    return PydanticCustomError("format", help_text)


def out_of_bounds(help_text: str) -> PydanticCustomError:
    """It can be read, and cannot be had."""
    return PydanticCustomError("constraint", help_text)


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID as the API writes it (36 characters), in any letter case."""
    return _UUID.fullmatch(text) is not None


def _uuid(value: object) -> str:
    if not isinstance(value, str) or not is_uuid(value):
        raise wrong_format("value must be a valid UUID")
    return value.lower()


def _integer(value: object) -> int:
    # `type`, not `isinstance`: true is no number. Strings are protobuf's JSON for 64 bits.
    if type(value) is int:
        return value
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        return int(value)
    raise wrong_format("value must be an integer, or a string of decimal digits")


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise wrong_format("value must be true or false")
    return value


def _size(value: int) -> int:
    if value <= 0:
        raise out_of_bounds("value must be greater than 0")
    if value < MIN_VOLUME_BYTES:
        raise out_of_bounds(f"size must be greater or equal to {MIN_VOLUME_BYTES}")
    if value > MAX_VOLUME_BYTES:
        raise out_of_bounds(f"size must be lower or equal to {MAX_VOLUME_BYTES}")
    if value % SECTOR_BYTES:
        raise out_of_bounds(f"size must be a multiple of {SECTOR_BYTES}")
    return value


def _size_or_inherited(value: object) -> int | None:
    # Python sends 0, where Go sends null, for "as large as the snapshot" (wire.md, details).
    size = _integer(value)
    return _size(size) if size else None


def _perf_iops(value: int) -> int:
    if value not in PERF_IOPS:
        raise out_of_bounds(f"value must be one of {', '.join(map(str, PERF_IOPS))}")
    return value


def text(value: object, longest: int) -> str:
    """Check a text of 1 to `longest` characters that a person shall read."""
    if not isinstance(value, str):
        raise wrong_format("value must be a string")
    if not 1 <= len(value) <= longest:
        raise out_of_bounds(f"value length must be between 1 and {longest} runes, inclusive")
    if _UNPRINTABLE.search(value):
        raise wrong_format("value must be valid Unicode text without control characters")
    return value


def _name(value: object) -> str:
    return text(value, MAX_NAME_RUNES)


def _group_name(value: object) -> str:
    return text(value, MAX_GROUP_NAME_RUNES)


def _volume_ids(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise wrong_format("value must be a list of UUIDs")
    if not 1 <= len(value) <= MOST_VOLUMES:
        raise out_of_bounds(f"value must contain between 1 and {MOST_VOLUMES} ids")
    ids = tuple(map(_uuid, value))
    if len(set(ids)) < len(ids):
        raise out_of_bounds("value must contain each id once")
    return ids


def _tags(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise wrong_format("value must be a list of strings")
    if len(value) > MAX_TAGS:
        raise out_of_bounds(f"value must contain no more than {MAX_TAGS} tags")
    return tuple(text(tag, MAX_TAG_RUNES) for tag in value)


def _storage_class(value: object) -> str:
    return text(value, 63)


def _no_key(value: object) -> None:
    # Ignoring it would store in the clear what somebody asked to have encrypted.
    if value not in (None, ""):
        raise out_of_bounds("encryption with a key is not supported: leave kms_key_id out")


def _digits_or_number(**bounds: int) -> dict[str, object]:
    return {"anyOf": [{"type": "integer", **bounds}, {"type": "string", "pattern": "^[0-9]+$"}]}


_SIZE_BOUNDS: Final = {
    "minimum": MIN_VOLUME_BYTES,
    "maximum": MAX_VOLUME_BYTES,
    "multipleOf": SECTOR_BYTES,
}

Uuid = Annotated[str, BeforeValidator(_uuid), WithJsonSchema({"type": "string", "format": "uuid"})]
Size = Annotated[
    int,
    BeforeValidator(_integer),
    AfterValidator(_size),
    WithJsonSchema(_digits_or_number(**_SIZE_BOUNDS)),
]
SizeOrInherited = Annotated[
    int | None,
    BeforeValidator(_size_or_inherited),
    WithJsonSchema({**_digits_or_number(), "description": "absent or 0: the snapshot's size"}),
]
PerfIops = Annotated[
    int,
    BeforeValidator(_integer),
    AfterValidator(_perf_iops),
    WithJsonSchema({"enum": [form for iops in PERF_IOPS for form in (iops, str(iops))]}),
]
Boolean = Annotated[bool, BeforeValidator(_boolean), WithJsonSchema({"type": "boolean"})]
Name = Annotated[
    str,
    BeforeValidator(_name),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_NAME_RUNES}),
]
GroupName = Annotated[
    str,
    BeforeValidator(_group_name),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": MAX_GROUP_NAME_RUNES}),
]
VolumeIds = Annotated[
    tuple[str, ...],
    BeforeValidator(_volume_ids),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "format": "uuid"},
            "minItems": 1,
            "maxItems": MOST_VOLUMES,
            "uniqueItems": True,
        }
    ),
]
Tags = Annotated[
    tuple[str, ...],
    BeforeValidator(_tags),
    WithJsonSchema(
        {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "maxLength": MAX_TAG_RUNES},
            "maxItems": MAX_TAGS,
        }
    ),
]
StorageClass = Annotated[
    str, BeforeValidator(_storage_class), WithJsonSchema({"type": "string", "minLength": 1})
]
NoKey = Annotated[None, BeforeValidator(_no_key), WithJsonSchema({"type": "null"})]
