"""Trouble from elsewhere on the real kernel: it is told, and passes without a restart."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import stamps
from tests.support.agreement import expect_agreement
from tests.support.client import Api, ApiError
from tests.support.daemon import VG, Daemon, Place

pytestmark = pytest.mark.kernel

MIB = 1024**2
YEAR_S = 365 * 86400


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def until(what: Callable[[], bool], timeout_s: float = 60) -> float:
    """Wait for a condition; how many seconds it took."""
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < timeout_s, "did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - began


def problems(api: Api) -> list[str]:
    found: list[str] = api.host("GET", "health")["problems"]
    return found


def until_well(api: Api) -> float:
    """Until nothing is under way and no problem is left; how many seconds it took."""
    began = time.monotonic()
    while (health := api.host("GET", "health"))["queued"] or health["problems"]:
        assert time.monotonic() - began < 70, (health["queued"], health["problems"])
        time.sleep(0.05)
    return time.monotonic() - began


def seen(api: Api, kind: str, resource_id: str) -> Any:
    return api.host("GET", f"{kind}/{resource_id}")


def refused(call: Callable[[], object], status: int, word: str) -> None:
    with pytest.raises(ApiError) as answer:
        call()
    assert answer.value.status == status
    assert word in str(answer.value.body)


# LVs that somebody removes or renames


@pytest.mark.full  # an inactive LV makes no event: half a minute
def test_lv_renamed_by_hand_is_in_error_until_it_has_its_name_again(place: Place) -> None:
    with Daemon(dataclasses.replace(place, trash_keep="0s")) as daemon:
        api = daemon.api
        volume_id = api.create_volume("v", 8 * MIB)
        stamps.stamp(api.device(volume_id), 1)
        snapshot_id = api.snapshot("s", volume_id)
        for kind, resource_id in (("snapshots", snapshot_id), ("volumes", volume_id)):
            place.lvm("lvrename", VG, f"blockd-{resource_id}", "mine")
            took_s = until(lambda: seen(api, kind, resource_id)["status"] == "error")  # noqa: B023
            print(f"new name of one of {kind} seen after {took_s:.2f} s")
            place.lvm("lvrename", VG, "mine", f"blockd-{resource_id}")
            until_well(api)
            assert seen(api, kind, resource_id)["status"] == "available"
        stamps.expect(api.device(volume_id), 1)
        stamps.expect(api.device(api.clone("c", snapshot_id)), 1)
        clear(api)
        expect_agreement(place)


def clear(api: Api) -> None:
    for kind in ("volumes", "snapshots"):
        for item in api.all(kind):
            api.block("DELETE", f"{kind}/{item['id']}")
    until_well(api)


# the clock


@contextmanager
def clock_set(by_s: int) -> Iterator[None]:
    """The guest's clock, for the length of the block."""
    before, began = time.time(), time.monotonic()
    time.clock_settime(time.CLOCK_REALTIME, before + by_s)
    try:
        yield
    finally:
        time.clock_settime(time.CLOCK_REALTIME, before + time.monotonic() - began)


def test_clock_that_jumps_a_year_erases_nothing_and_keeps_nothing_for_a_year(
    place: Place,
) -> None:
    with Daemon(dataclasses.replace(place, trash_keep="1h")) as daemon:
        api = daemon.api
        volume_id = api.create_volume("v", 8 * MIB)
        stamps.stamp(api.device(volume_id), 1)
        api.block("DELETE", f"volumes/{volume_id}")
    with clock_set(YEAR_S), Daemon(dataclasses.replace(place, trash_keep="1h")) as daemon:
        api = daemon.api
        other = api.create_volume("w", 8 * MIB)
        api.block("DELETE", f"volumes/{other}")  # has the trash looked through
        api.idle()
        api.host("POST", f"volumes/{volume_id}/undelete")
        stamps.expect(api.device(volume_id), 1)
        api.block("DELETE", f"volumes/{volume_id}")
    with Daemon(dataclasses.replace(place, trash_keep="3s")) as daemon:
        deleted = "&include_deleted=true"
        until(lambda: not daemon.api.all("volumes", deleted), 20)
        until_well(daemon.api)
        expect_agreement(place)


# a full file system under the catalog


def test_full_file_system_under_the_catalog_is_a_503_and_passes(
    place: Place, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    run("/bin/mount", "-t", "tmpfs", "-o", "size=2m", "small", str(state))
    # The catalog is a new one: it must not be restored from the copy of the last test's.
    place.lvm("lvremove", "--yes", "--select", "lv_name=~^blockd-catalog-", VG)
    try:
        place = dataclasses.replace(place, state=state, trash_keep="0s")
        with Daemon(place) as daemon:
            api = daemon.api
            volume_id = api.create_volume("v", 8 * MIB)
            path = api.device(volume_id)
            stamps.stamp(path, 1)
            snapshot_id = api.snapshot("s", volume_id)
            stamps.stamp(path, 2)
            fill(state / "ballast")
            body = {"name": "x", "from_empty": {"size": 8 * MIB}}
            requests: list[Callable[[], object]] = [
                lambda: api.block("POST", "volumes", body),
                lambda: api.block("POST", "snapshots", {"volume_id": volume_id}),
                lambda: api.block("PATCH", f"volumes/{volume_id}", {"size": 16 * MIB}),
                lambda: api.block("PATCH", f"volumes/{volume_id}", {"name": "y" * 200}),
                lambda: api.host(
                    "POST", f"volumes/{volume_id}/revert", {"snapshot_id": snapshot_id}
                ),
                lambda: api.block("DELETE", f"snapshots/{snapshot_id}"),
                lambda: api.block("DELETE", f"volumes/{volume_id}"),
            ]
            for request in requests:
                refused(request, 503, "service_unavailable")
            assert any("cannot be written" in line for line in problems(api)), problems(api)
            assert [item["status"] for item in api.all("volumes")] == ["available"]
            assert [item["status"] for item in api.all("snapshots")] == ["available"]
            stamps.expect(api.device(volume_id), 2)
            (state / "ballast").unlink()
            print(f"well after {until_well(api):.2f} s")
            api.host("POST", f"volumes/{volume_id}/revert", {"snapshot_id": snapshot_id})
            api.settled("volumes", volume_id)
            stamps.expect(api.device(volume_id), 1)
            # In the middle of something: what was begun is finished when there is room.
            made = api.block("POST", "snapshots", {"volume_id": volume_id, "name": "m"})["id"]
            fill(state / "ballast")
            until(lambda: bool(problems(api)))
            assert seen(api, "snapshots", made)["status"] in ("creating", "available")
            (state / "ballast").unlink()
            api.settled("snapshots", made)
            until_well(api)
            expect_agreement(place)
            clear(api)
    finally:
        run("/bin/umount", "--lazy", str(state))


def fill(path: Path) -> None:
    """Leave no byte."""
    with path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
