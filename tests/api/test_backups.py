"""`/host/v1/backups`, and `blockctl backup`."""

from __future__ import annotations

from blockd.domain.errors import StorageError
from tests.api.rig import Rig


async def test_backups_are_taken_of_every_class_and_listed(rig: Rig) -> None:
    assert await rig.api.ok("GET", "/host/v1/backups") == {"backups": [], "total_count": 0}
    taken = await rig.api.ok("POST", "/host/v1/backups", {})
    assert [each["class"] for each in taken["backups"]] == ["sbs", "bssd"]
    listed = await rig.api.ok("GET", "/host/v1/backups", params={"page_size": "1", "page": "2"})
    assert listed == {"backups": [taken["backups"][1]], "total_count": 2}


async def test_one_class_alone_and_an_unknown_one(rig: Rig) -> None:
    taken = await rig.api.ok("POST", "/host/v1/backups", {"class": "bssd"})
    assert [file["kind"] for file in taken["backups"][0]["files"]] == ["vg"]
    refused = await rig.api("POST", "/host/v1/backups", {"class": "none"})
    assert refused.status == 400
    assert refused.body["details"][0]["argument_name"] == "class"


async def test_failure_says_why_and_health_tells_it(rig: Rig) -> None:
    rig.driver.fail_next["thin_dump"] = StorageError("thin_dump ended with status 1: no")
    failed = await rig.api("POST", "/host/v1/backups", {})
    assert failed.status == 412
    assert failed.body["help_message"] == "class sbs: thin_dump ended with status 1: no"
    health = await rig.api.ok("GET", "/host/v1/health")
    assert health["status"] == "degraded"
    assert health["problems"] == [
        "no backup of metadata: class sbs: thin_dump ended with status 1: no; there is none"
    ]
