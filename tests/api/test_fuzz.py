"""Whatever is sent: no 5xx, JSON, `type` and `message`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_from_bytes

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.api.rig import NOBODY, PROJECT, V1, V1ALPHA1, Rig

# One service for all examples of a test: each must be harmless to the next.
FUZZ = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

NUMBERS = st.one_of(
    st.integers(),
    st.integers(-(10**40), 10**40),
    st.sampled_from([0, 512, 1 << 20, (1 << 20) + 512, 2**53, 2**63, 10**13, 5000, 15000]),
    st.floats(allow_nan=True),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, st.text(), NUMBERS.map(str), st.just(NOBODY))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
FIELDS = st.sampled_from(
    [
        *("name", "size", "tags", "perf_iops", "project_id", "volume_id", "snapshot_id", "public"),
        *("class", "kms_key_id", "keep_previous", "from_empty", "from_snapshot"),
        *("bucket", "key", "compression"),
    ]
)
SOURCES = st.fixed_dictionaries(
    {},
    optional={
        "size": VALUES,
        "snapshot_id": VALUES,
    },
)
BODIES = st.one_of(
    VALUES,
    st.dictionaries(FIELDS, VALUES | SOURCES),
    st.fixed_dictionaries({"from_empty": SOURCES | VALUES}, optional={"tags": VALUES}),
    st.fixed_dictionaries(
        {"bucket": VALUES | st.just("backups"), "key": VALUES | st.just("k")},
        optional={"size": VALUES, "compression": VALUES},
    ),
)
WRITES = st.sampled_from(
    [
        ("POST", "/volumes"),
        ("PATCH", f"/volumes/{NOBODY}"),
        ("POST", "/snapshots"),
        ("PATCH", f"/snapshots/{NOBODY}"),
        ("POST", f"/snapshots/{NOBODY}/export-to-object-storage"),
        ("POST", "/snapshots/import-from-object-storage"),
        ("POST", "/snapshots/import-from-s3"),
        ("HOST", "/object-storage/verify"),
        ("HOST", f"/jobs/{NOBODY}/cancel"),
        ("HOST", f"/volumes/{NOBODY}/revert"),
        ("HOST", f"/volumes/{NOBODY}/undelete"),
    ]
)
PREFIXES = st.sampled_from([V1, V1ALPHA1])
PARAMETERS = st.sampled_from(
    [
        *("page", "page_size", "order_by", "project_id", "organization_id", "name", "tags"),
        *("include_deleted", "volume_ids", "volume_type", "product_resource_id", "volume_id", "x"),
        *("kind", "state", "snapshot_id"),
    ]
)


async def check(rig: Rig, method: str, path: str, **more: Any) -> None:
    """`Reply` itself checks type and message of what is 400 and above."""
    reply = await rig.api(method, path, **more)
    assert reply.status < 500, (method, path, more, reply)
    assert reply.headers["Content-Type"] == "application/json"
    assert isinstance(reply.body, dict)


@FUZZ
@given(prefix_=PREFIXES, route=WRITES, body=BODIES)
async def test_bodies_of_json(rig: Rig, prefix_: str, route: tuple[str, str], body: object) -> None:
    method, path = route
    raw = json.dumps(body).encode()
    if method == "HOST":
        await check(rig, "POST", f"/host/v1{path}", raw=raw)
    else:
        await check(rig, method, prefix_ + path, raw=raw)


@FUZZ
@given(
    route=WRITES, raw=st.binary(max_size=200) | st.text(alphabet='{}[]",:\\u0e1-.').map(str.encode)
)
async def test_bodies_of_bytes(rig: Rig, route: tuple[str, str], raw: bytes) -> None:
    method, path = route
    if method == "HOST":
        await check(rig, "POST", f"/host/v1{path}", raw=raw)
    else:
        await check(rig, method, V1 + path, raw=raw)


@FUZZ
@given(
    prefix_=PREFIXES,
    kind=st.sampled_from(["volumes", "snapshots", "volume-types", "jobs"]),
    params=st.lists(
        st.tuples(
            PARAMETERS,
            st.binary(max_size=30)
            | NUMBERS.map(lambda number: str(number).encode())
            | st.sampled_from([b"true", b"name_asc", NOBODY.encode(), PROJECT.encode(), b""])
            | st.sampled_from([b"export", b"running"]),
        ),
        max_size=5,
    ),
)
async def test_query_strings(
    rig: Rig, prefix_: str, kind: str, params: list[tuple[str, bytes]]
) -> None:
    query = "&".join(f"{name}={quote_from_bytes(value)}" for name, value in params)
    prefix = "/host/v1" if kind == "jobs" else prefix_
    await check(rig, "GET", f"{prefix}/{kind}?{query}")


@FUZZ
@given(
    part=st.binary(min_size=1, max_size=20),
    method=st.sampled_from(["GET", "PATCH", "DELETE", "POST", "PUT"]),
    where=st.sampled_from(
        [f"{V1}/volumes/", f"{V1}/snapshots/", "/host/v1/volumes/", "/host/v1/jobs/", "/", V1]
    ),
)
async def test_paths(rig: Rig, part: bytes, method: str, where: str) -> None:
    reply = await rig.api(method, where + quote_from_bytes(part), raw=b"{}")
    assert reply.status < 500
