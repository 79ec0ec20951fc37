"""Requests that cannot be meant: 400, and exactly which argument and why."""

from __future__ import annotations

import json
from typing import Any

import pytest

from blockd.domain.units import MAX_VOLUME_BYTES, MIB
from tests.api.rig import NOBODY, PROJECT, V1, Api

INTEGER = "value must be an integer, or a string of decimal digits"
POSITIVE = "value must be greater than 0"
UUID = "value must be a valid UUID"
LENGTH = "value length must be between 1 and 255 runes, inclusive"
TAG_LENGTH = "value length must be between 1 and 128 runes, inclusive"
TEXT = "value must be valid Unicode text without control characters"
IOPS = "value must be one of 5000, 15000"
EMPTY = {"from_empty": {"size": MIB}}

NO_TEXTS: list[Any] = [1, True, [], {}, 1.5]
NO_IOPS: list[Any] = [0, -1, 1, 5001, "5001", 10**30]
NO_FLAGS: list[Any] = ["true", "", 0, 1, [], {}]

BAD_INTEGERS: list[Any] = [
    1.5,
    "1.5",
    1e9,
    1.0,
    True,
    False,
    "",
    " 1",
    "0x10",
    "1e9",
    "1_000",
    [],
    {},
]
BAD_INTEGERS += ["\u0661", "+5", "5\n", "-", "9" * 200, [MIB]]
BAD_SIZES: list[tuple[Any, str, str]] = [
    *[(value, "format", INTEGER) for value in BAD_INTEGERS],
    (-1, "constraint", POSITIVE),
    ("-1", "constraint", POSITIVE),
    (-(10**30), "constraint", POSITIVE),
    (1, "constraint", f"size must be greater or equal to {MIB}"),
    (MIB - 512, "constraint", f"size must be greater or equal to {MIB}"),
    (MIB + 1, "constraint", "size must be a multiple of 512"),
    (str(MIB + 511), "constraint", "size must be a multiple of 512"),
    (MAX_VOLUME_BYTES + 512, "constraint", f"size must be lower or equal to {MAX_VOLUME_BYTES}"),
    (2**63, "constraint", f"size must be lower or equal to {MAX_VOLUME_BYTES}"),
    (10**300, "constraint", f"size must be lower or equal to {MAX_VOLUME_BYTES}"),
    ("9" * 99, "constraint", f"size must be lower or equal to {MAX_VOLUME_BYTES}"),
]
ZERO: list[tuple[Any, str, str]] = [(0, "constraint", POSITIVE), ("0", "constraint", POSITIVE)]
BAD_NAMES: list[tuple[Any, str, str]] = [
    ("", "constraint", LENGTH),
    ("x" * 256, "constraint", LENGTH),
    ("a\x00b", "format", TEXT),
    ("a\nb", "format", TEXT),
    ("\x1b[2J", "format", TEXT),
    ("\x7f", "format", TEXT),
    ("\x9b", "format", TEXT),
    *[(value, "format", "value must be a string") for value in NO_TEXTS],
]
BAD_TAGS: list[tuple[Any, str, str]] = [
    ("a", "format", "value must be a list of strings"),
    ({}, "format", "value must be a list of strings"),
    (1, "format", "value must be a list of strings"),
    ([1], "format", "value must be a string"),
    ([None], "format", "value must be a string"),
    ([["a"]], "format", "value must be a string"),
    ([""], "constraint", TAG_LENGTH),
    (["x" * 129], "constraint", TAG_LENGTH),
    (["a\x00"], "format", TEXT),
    (["a"] * 101, "constraint", "value must contain no more than 100 tags"),
]
NO_UUIDS: list[Any] = ["", "x", NOBODY + " ", NOBODY[:-1] + "g", NOBODY.replace("-", "")]
NO_UUIDS += [1, True, [], {}]
BAD_UUIDS: list[tuple[Any, str, str]] = [(value, "format", UUID) for value in NO_UUIDS]
BAD_FLAGS: list[tuple[Any, str, str]] = [
    (value, "format", "value must be true or false") for value in NO_FLAGS
]
BAD_IOPS: list[tuple[Any, str, str]] = [
    *[(value, "format", INTEGER) for value in BAD_INTEGERS],
    *[(value, "constraint", IOPS) for value in NO_IOPS],
]


def cases() -> list[Any]:
    """Route, body with one bad value, and the fault: dotted name, reason, help."""
    volume, snapshot = f"/volumes/{NOBODY}", f"/snapshots/{NOBODY}"
    rows: list[tuple[str, str, dict[str, Any], str, list[tuple[Any, str, str]]]] = []
    for field, bad in (
        ("name", BAD_NAMES),
        ("tags", BAD_TAGS),
        ("project_id", BAD_UUIDS),
        ("perf_iops", BAD_IOPS),
    ):
        rows.append(("POST", "/volumes", EMPTY, field, bad))
    for field, bad in (("name", BAD_NAMES), ("tags", BAD_TAGS), ("perf_iops", BAD_IOPS)):
        rows.append(("PATCH", volume, {}, field, bad))
    rows.append(("PATCH", volume, {}, "size", BAD_SIZES + ZERO))
    rows.append(("POST", "/volumes", {}, "from_empty.size", BAD_SIZES + ZERO))
    # The empty string is no number; 0 and "0" mean the snapshot's size.
    good = {"from_snapshot": {"snapshot_id": NOBODY}}
    rows.append(("POST", "/volumes", good, "from_snapshot.size", BAD_SIZES))
    rows.append(("POST", "/volumes", good, "from_snapshot.snapshot_id", BAD_UUIDS))
    snapshot_of = {"volume_id": NOBODY}
    for field, bad in (
        ("name", BAD_NAMES),
        ("tags", BAD_TAGS),
        ("project_id", BAD_UUIDS),
        ("volume_id", BAD_UUIDS),
        ("public", BAD_FLAGS),
    ):
        rows.append(("POST", "/snapshots", snapshot_of, field, bad))
    for field, bad in (("name", BAD_NAMES), ("tags", BAD_TAGS), ("public", BAD_FLAGS)):
        rows.append(("PATCH", snapshot, {}, field, bad))
    revert = f"/volumes/{NOBODY}/revert"
    rows.append(("HOST", revert, {}, "snapshot_id", BAD_UUIDS))
    rows.append(("HOST", revert, {"snapshot_id": NOBODY}, "keep_previous", BAD_FLAGS))
    return [
        pytest.param(method, path, _with(body, field, value), (field, reason, text))
        for method, path, body, field, bad in rows
        for value, reason, text in bad
    ]


def _with(body: dict[str, Any], field: str, value: object) -> dict[str, Any]:
    head, _, tail = field.partition(".")
    return {**body, head: _with(body.get(head, {}), tail, value) if tail else value}


CASES = cases()


@pytest.mark.parametrize("version", ["v1", "v1alpha1"])
async def test_bad_value_is_400_naming_argument_reason_and_help(api: Api, version: str) -> None:
    """One test for hundreds of rows: starting a service for each would take minutes."""
    wrong = []
    for case in CASES:
        method, path, body, (name, reason, text) = case.values
        prefix = "/host/v1" if method == "HOST" else f"/block/{version}/zones/xx-lab-1"
        reply = await api("POST" if method == "HOST" else method, prefix + path, body)
        detail = {"argument_name": name, "reason": reason, "help_message": text}
        expected = {
            "type": "invalid_arguments",
            "message": "invalid argument(s)",
            "details": [detail],
        }
        if (reply.status, reply.body) != (400, expected):
            wrong.append((method, path, body, expected, reply))
    assert len(CASES) > 250
    assert not wrong, wrong[:3]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (f"{V1}/volumes", {"from_empty": {}}, "from_empty.size"),
        (f"{V1}/volumes", {"from_empty": {"size": None}}, "from_empty.size"),
        (f"{V1}/volumes", {"from_snapshot": {}}, "from_snapshot.snapshot_id"),
        (f"{V1}/volumes", {}, "from_empty"),
        (f"{V1}/volumes", {"from_empty": None, "from_snapshot": None}, "from_empty"),
        (f"{V1}/snapshots", {}, "volume_id"),
        (f"{V1}/snapshots", {"volume_id": None}, "volume_id"),
        (f"/host/v1/volumes/{NOBODY}/revert", {}, "snapshot_id"),
        (f"/host/v1/volumes/{NOBODY}/revert", {"snapshot_id": None}, "snapshot_id"),
    ],
)
async def test_what_is_missing_is_400_required(
    api: Api, path: str, body: object, name: str
) -> None:
    reply = await api("POST", path, body)
    assert reply.status == 400
    details = reply.body["details"]
    assert [(d["argument_name"], d["reason"]) for d in details] == [(name, "required")]


async def test_both_sources_are_400(api: Api, prefix: str) -> None:
    body = {**EMPTY, "from_snapshot": {"snapshot_id": NOBODY}}
    reply = await api("POST", f"{prefix}/volumes", body)
    assert reply.status == 400
    assert reply.body["details"] == [
        {
            "argument_name": "from_empty",
            "reason": "constraint",
            "help_message": "at most one of from_empty, from_snapshot could be set",
        }
    ]


@pytest.mark.parametrize("field", ["from_empty", "from_snapshot"])
@pytest.mark.parametrize("value", [1, "x", True, [], 1.5])
async def test_source_that_is_no_object_is_400(api: Api, field: str, value: object) -> None:
    reply = await api("POST", f"{V1}/volumes", {field: value})
    detail = reply.body["details"][0]
    assert (detail["argument_name"], detail["reason"]) == (field, "format")


async def test_every_fault_is_told_at_once(api: Api) -> None:
    reply = await api("POST", f"{V1}/volumes", {"name": "", "tags": 1, "from_empty": {"size": 1}})
    names = [d["argument_name"] for d in reply.body["details"]]
    assert sorted(names) == ["from_empty.size", "name", "tags"]


async def test_encryption_key_is_refused_rather_than_ignored(api: Api, prefix: str) -> None:
    reply = await api("POST", f"{prefix}/volumes", {**EMPTY, "kms_key_id": NOBODY})
    detail = reply.body["details"][0]
    assert (reply.status, detail["argument_name"], detail["reason"]) == (
        400,
        "kms_key_id",
        "constraint",
    )
    assert (await api("POST", f"{prefix}/volumes", {**EMPTY, "kms_key_id": None})).status == 200


NOT_JSON: list[bytes] = [
    b"",
    b" ",
    b"nul",
    b"null",
    b"[]",
    b'"x"',
    b"1",
    b"true",
    b"{",
    b"{}{}",
    b"{'a':1}",
    b'{"a":1,}',
    b'{"from_empty":{"size":NaN}}',
    b'{"x":Infinity}',
    b'{"x":-Infinity}',
    b'{"x":01}',
    b'{"x":' + b"9" * 5000 + b"}",
    b'{"name":"\\ud800"}',
    b'{"name":"\xff"}',
    b'{"name":"\xed\xa0\x80"}',
    b"\xef\xbb\xbf{}",
    '{"name":"x"}'.encode("utf-16"),
    '{"name":"x"}'.encode("utf-32"),
    b'{"name":"a\x00b"}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"from_empty":' * 5000 + b"1" + b"}" * 5000,
    b"name=x&size=1",
    b"\x00" * 100,
]


@pytest.mark.parametrize("raw", NOT_JSON, ids=lambda raw: repr(raw[:24]))
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", f"{V1}/volumes"),
        ("PATCH", f"{V1}/volumes/{NOBODY}"),
        ("POST", f"{V1}/snapshots"),
        ("PATCH", f"{V1}/snapshots/{NOBODY}"),
        ("POST", f"/host/v1/volumes/{NOBODY}/revert"),
    ],
)
async def test_body_that_is_no_json_object_is_400_on_body(
    api: Api, method: str, path: str, raw: bytes
) -> None:
    reply = await api(method, path, raw=raw)
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == ("body", "format")


async def test_infinite_number_by_overflow_is_400(api: Api) -> None:
    reply = await api("POST", f"{V1}/volumes", raw=b'{"from_empty":{"size":1e400}}')
    assert reply.status == 400
    assert reply.body["details"][0]["argument_name"] == "from_empty.size"


async def test_last_of_two_equal_keys_counts(api: Api, prefix: str) -> None:
    raw = b'{"name":"first","name":"last","from_empty":{"size":1048576}}'
    reply = await api("POST", f"{prefix}/volumes", raw=raw)
    assert (reply.status, reply.body["name"]) == (200, "last")


async def test_go_and_python_ways_of_leaving_out_are_accepted(api: Api, prefix: str) -> None:
    body = {
        "name": None,
        "project_id": None,
        "tags": None,
        "perf_iops": None,
        "from_snapshot": None,
        "from_empty": {"size": str(MIB)},
        "kms_key_id": None,
        "class": None,
        "no_such_field": {"deep": [1, {}]},
    }
    volume = await api.ok("POST", f"{prefix}/volumes", body)
    assert volume["name"].startswith("vol-")
    assert volume["project_id"] == PROJECT
    assert (volume["tags"], volume["size"]) == ([], MIB)
    assert (volume["specs"]["perf_iops"], volume["type"]) == (5000, "sbs_5k")
    await api.settled(f"{prefix}/volumes/{volume['id']}")

    snapshot = await api.ok(
        "POST",
        f"{prefix}/snapshots",
        {"volume_id": volume["id"].upper(), "name": None, "tags": None, "public": False},
    )
    assert snapshot["name"].startswith("snp-")
    await api.settled(f"{prefix}/snapshots/{snapshot['id']}")
    for size in (None, 0, "0"):
        source = {"snapshot_id": snapshot["id"].upper(), "size": size}
        clone = await api.ok("POST", f"{prefix}/volumes", {"from_snapshot": source})
        assert (clone["size"], clone["parent_snapshot_id"]) == (MIB, snapshot["id"])
    clone = await api.ok(
        "POST", f"{prefix}/volumes", {"from_snapshot": {"snapshot_id": snapshot["id"]}}
    )
    assert clone["size"] == MIB


async def test_longest_values_are_kept_to_the_last_rune(api: Api, prefix: str) -> None:
    fields = {
        "name": "\U0001f4be" * 255,
        "tags": [f"{n:03}" + "é" * 125 for n in range(100)],
        "perf_iops": "15000",
        "from_empty": {"size": str(MAX_VOLUME_BYTES)},
    }
    volume = await api.volume(prefix, **fields)
    assert volume["name"] == fields["name"]
    assert volume["tags"] == fields["tags"]
    assert (volume["type"], volume["specs"]["perf_iops"]) == ("sbs_15k", 15000)
    assert volume["size"] == MAX_VOLUME_BYTES


async def test_texts_come_back_as_they_were_sent(api: Api) -> None:
    name = 'a "quoted" \\ back\\u0041slash / </script> \u2028 é \U0001f600 %s {0} \xa0'
    tags = [name[:60], '","x":"', "\\", '"']
    volume = await api.volume(name=name, tags=tags)
    assert (volume["name"], volume["tags"]) == (name, tags)
    snapshot = await api.snapshot(volume["id"], name=name, tags=tags)
    assert (snapshot["name"], snapshot["tags"]) == (name, tags)
    assert snapshot["parent_volume"]["name"] == name
    listed = await api.ok("GET", f"{V1}/snapshots")
    assert listed["snapshots"] == [snapshot]


async def test_any_content_type_is_read_as_json(api: Api) -> None:
    for content_type in ("application/json; charset=utf-8", "text/plain", "junk", ""):
        raw = json.dumps(EMPTY).encode()
        headers = {"Content-Type": content_type}
        reply = await api("POST", f"{V1}/volumes", raw=raw, headers=headers)
        assert reply.status == 200, content_type
