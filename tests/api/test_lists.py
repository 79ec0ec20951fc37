"""Pages, orders and filters."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.rig import NOBODY, ORGANIZATION, OTHER_PROJECT, PROJECT, V1, Api

LISTS = ["volumes", "snapshots", "volume-types"]


def key(kind: str) -> str:
    return kind.replace("-", "_")


async def three(api: Api) -> tuple[list[Any], list[Any]]:
    """Volumes a, c and b, and one snapshot of each, in this order of creation."""
    volumes = [await api.volume(name=name, tags=[name, "all"]) for name in ("va", "vc", "vb")]
    snapshots = [
        await api.snapshot(volume["id"], name=f"s{volume['name'][1]}", tags=volume["tags"])
        for volume in volumes
    ]
    return volumes, snapshots


async def names(api: Api, kind: str, prefix: str = V1, **params: Any) -> list[str]:
    listed = await api.ok("GET", f"{prefix}/{kind}", params=params)
    return [item["name"] for item in listed[key(kind)]]


@pytest.mark.parametrize("kind", LISTS[:2])
async def test_empty_list_is_an_empty_list(api: Api, prefix: str, kind: str) -> None:
    assert await api.ok("GET", f"{prefix}/{kind}") == {kind: [], "total_count": 0}


@pytest.mark.parametrize("kind", LISTS[:2])
async def test_orders(api: Api, prefix: str, kind: str) -> None:
    await three(api)
    first = kind[0]
    for order, expected in {
        "": "acb",
        "created_at_asc": "acb",
        "created_at_desc": "bca",
        "name_asc": "abc",
        "name_desc": "cba",
    }.items():
        listed = await names(api, kind, prefix, order_by=order)
        assert listed == [first + letter for letter in expected], order


@pytest.mark.parametrize("kind", LISTS[:2])
async def test_pages_cut_the_list_and_count_all(api: Api, prefix: str, kind: str) -> None:
    await three(api)
    first = kind[0]
    for page, size, expected in (
        ("1", "2", "ac"),
        ("2", "2", "b"),
        ("3", "2", ""),
        ("1", "100", "acb"),
        ("0000000000000000000000000000002", "1", "c"),
        ("9" * 18, "100", ""),
        ("9" * 5000, "100", ""),
    ):
        params = {"page": page, "page_size": size}
        listed = await api.ok("GET", f"{prefix}/{kind}", params=params)
        assert [item["name"] for item in listed[kind]] == [first + c for c in expected]
        assert listed["total_count"] == 3


async def test_default_page_has_twenty(api: Api) -> None:
    for _ in range(21):
        await api.ok("POST", f"{V1}/volumes", {"from_empty": {"size": 1 << 20}})
    listed = await api.ok("GET", f"{V1}/volumes")
    assert (len(listed["volumes"]), listed["total_count"]) == (20, 21)


@pytest.mark.parametrize("kind", LISTS)
@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("page", "0", "constraint"),
        ("page", "-1", "constraint"),
        ("page", "-" + "9" * 5000, "constraint"),
        ("page", "", "format"),
        ("page", "x", "format"),
        ("page", "1.0", "format"),
        ("page", "+1", "format"),
        ("page", "1 ", "format"),
        ("page", "\u0661", "format"),
        ("page", "1e3", "format"),
        ("page_size", "0", "constraint"),
        ("page_size", "101", "constraint"),
        ("page_size", "150", "constraint"),
        ("page_size", "-5", "constraint"),
        ("page_size", "9" * 5000, "constraint"),
        ("page_size", "", "format"),
        ("page_size", "all", "format"),
    ],
)
async def test_bad_page_is_400_not_clamped(
    api: Api, prefix: str, kind: str, name: str, value: str, reason: str
) -> None:
    reply = await api("GET", f"{prefix}/{kind}", params={name: value})
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == (name, reason)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        *[
            (kind, name, value)
            for kind in LISTS[:2]
            for name, value in (
                ("order_by", "size_asc"),
                ("order_by", "CREATED_AT_ASC"),
                ("project_id", "x"),
                ("organization_id", "x"),
                ("include_deleted", "yes"),
                ("include_deleted", ""),
                ("include_deleted", "TrUe"),
                ("include_deleted", "2"),
            )
        ],
        ("volumes", "volume_ids", "x"),
        ("snapshots", "volume_id", "x"),
    ],
)
async def test_bad_filter_is_400_format(api: Api, kind: str, name: str, value: str) -> None:
    reply = await api("GET", f"{V1}/{kind}", params={name: value})
    assert reply.status == 400
    (detail,) = reply.body["details"]
    assert (detail["argument_name"], detail["reason"]) == (name, "format")


async def test_include_deleted_takes_what_go_and_python_send(api: Api, prefix: str) -> None:
    volumes, snapshots = await three(api)
    await api.ok("DELETE", f"{V1}/volumes/{volumes[0]['id']}")
    await api.ok("DELETE", f"{V1}/snapshots/{snapshots[0]['id']}")
    for kind in LISTS[:2]:
        for value in ("1", "t", "T", "TRUE", "true", "True"):
            listed = await names(api, kind, prefix, include_deleted=value)
            assert listed == [kind[0] + c for c in "acb"], value
        for value in ("0", "f", "F", "FALSE", "false", "False"):
            listed = await names(api, kind, prefix, include_deleted=value)
            assert listed == [kind[0] + c for c in "cb"], value
        listed = await api.ok("GET", f"{prefix}/{kind}", params={"include_deleted": "true"})
        assert [item["status"] for item in listed[kind]] == ["deleted", "available", "available"]
        assert listed["total_count"] == 3


@pytest.mark.parametrize("kind", LISTS[:2])
async def test_filters_of_both_lists(api: Api, prefix: str, kind: str) -> None:
    await three(api)
    first = kind[0]
    path = f"{prefix}/{kind}"
    for params, expected in (
        ([("name", first)], "acb"),
        ([("name", f"{first}c")], "c"),
        ([("name", first.upper())], ""),
        ([("name", "c")], ""),
        ([("name", "%")], ""),
        ([("tags", "vc")], "c"),
        ([("tags", "va"), ("tags", "vc"), ("tags", "")], "ac"),
        ([("tags", "all")], "acb"),
        ([("tags", "al")], ""),
        ([("tags", "all"), ("name", f"{first}b")], "b"),
        ([("project_id", PROJECT)], "acb"),
        ([("project_id", PROJECT.upper())], "acb"),
        ([("project_id", OTHER_PROJECT)], ""),
        ([("project_id", NOBODY)], ""),
        ([("organization_id", ORGANIZATION)], "acb"),
        ([("organization_id", NOBODY)], ""),
        ([("no_such_parameter", "x")], "acb"),
        ([("page", "x"), ("page", "1")], "acb"),
        ([(name, "") for name in ("name", "project_id", "organization_id", "tags")], "acb"),
        ([("volume_ids", ""), ("volume_id", ""), ("volume_type", "")], "acb"),
        ([("product_resource_id", "")], "acb"),
        ([("name", "a\x00b")], ""),
    ):
        listed = await api.ok("GET", path, params=params)
        assert [item["name"] for item in listed[kind]] == [first + c for c in expected], params
        assert listed["total_count"] == len(expected)


async def test_filters_of_volumes_alone(api: Api, prefix: str) -> None:
    volumes, _ = await three(api)
    await api.ok("PATCH", f"{V1}/volumes/{volumes[1]['id']}", {"perf_iops": 15000})
    await api.settled(f"{V1}/volumes/{volumes[1]['id']}")
    ids = [volume["id"] for volume in volumes]
    for params, expected in (
        ([("volume_ids", ids[0].upper()), ("volume_ids", ids[2])], ["va", "vb"]),
        ([("volume_ids", NOBODY)], []),
        ([("volume_type", "sbs_15k")], ["vc"]),
        ([("volume_type", "sbs_5k")], ["va", "vb"]),
        ([("volume_type", "b_ssd")], []),
        ([("volume_type", "gold")], []),
        ([("product_resource_id", NOBODY)], []),
    ):
        listed = await api.ok("GET", f"{prefix}/volumes", params=params)
        assert [item["name"] for item in listed["volumes"]] == expected, params


async def test_hundred_ids_fit_into_one_request(api: Api) -> None:
    volumes, _ = await three(api)
    params = [("volume_ids", volumes[0]["id"])] * 100 + [("tags", "x" * 100)] * 100
    assert (await api.ok("GET", f"{V1}/volumes", params=params))["total_count"] == 0


async def test_snapshots_by_volume(api: Api, prefix: str) -> None:
    volumes, _ = await three(api)
    assert await names(api, "snapshots", prefix, volume_id=volumes[1]["id"].upper()) == ["sc"]
    assert await names(api, "snapshots", prefix, volume_id=NOBODY) == []


async def test_volume_types_are_paged_and_sorted(api: Api, prefix: str) -> None:
    listed = await api.ok("GET", f"{prefix}/volume-types")
    assert listed == {
        "volume_types": [
            {
                "type": name,
                "pricing": None,
                "snapshot_pricing": None,
                "specs": {"class": storage_class, "perf_iops": iops},
                "zone": "xx-lab-1",
            }
            for name, storage_class, iops in (
                ("b_ssd", "bssd", None),
                ("sbs_15k", "sbs", 15000),
                ("sbs_5k", "sbs", 5000),
            )
        ],
        "total_count": 3,
    }
    params = {"page": "2", "page_size": "2"}
    page = await api.ok("GET", f"{prefix}/volume-types", params=params)
    assert page == {"volume_types": listed["volume_types"][2:], "total_count": 3}
    beyond = await api.ok("GET", f"{prefix}/volume-types", params={"page": "9" * 30})
    assert beyond == {"volume_types": [], "total_count": 3}


@pytest.mark.parametrize(
    "query", ["name=%ff", "name=%", "%ff=%ff", "name=%ed%a0%80", "&&;=&", "name"]
)
async def test_junk_in_the_query_is_no_error_of_ours(api: Api, query: str) -> None:
    reply = await api("GET", f"{V1}/volumes?{query}")
    assert reply.status in (200, 400)
