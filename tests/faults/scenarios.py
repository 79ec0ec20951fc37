"""For every verb that changes disks: how to get there, the verb, and what must hold after a crash.

A scenario is used by every way of dying. `prepare` runs before the side effects count, `act` does
the verb and nothing else, `check` is asked after the next start, when the daemon says that nothing
is under way. `answered` tells whether the request was answered before the crash: what was answered
must have come true; what was not may have happened wholly or not at all.
"""

from __future__ import annotations

import contextlib
import http.client
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from tests.support import stamps
from tests.support.client import Api, ApiError

MIB = 1024**2
SIZE = 8 * MIB + 512  # off the extent grid
OLD, NEW = 1, 2

Facts = dict[str, Any]


class Scenario(ABC):
    """One verb. Facts are JSON, so that they outlive the process and the guest."""

    name: ClassVar[str]
    trash_keep: ClassVar[str] = "0s"
    needs_objects: ClassVar[bool] = False

    def prepare(self, api: Api) -> Facts:
        """A stamped volume with a snapshot of generation OLD, then written with NEW."""
        volume_id = api.create_volume("v", SIZE)
        stamps.stamp(api.device(volume_id), OLD)
        snapshot_id = api.snapshot("s", volume_id)
        stamps.stamp(api.device(volume_id), NEW)
        return {"volume": volume_id, "snapshot": snapshot_id}

    def act(self, api: Api, facts: Facts, answered: Callable[[], None]) -> None:
        """Do the verb and wait until it is done, or the daemon is gone; tell when it answers."""
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.request(api, facts)
            answered()
            api.idle()

    @abstractmethod
    def request(self, api: Api, facts: Facts) -> None:
        """The one request."""

    @abstractmethod
    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        """The verb is done or was never begun, and nothing else changed."""

    def _whole(self, api: Api, facts: Facts) -> None:
        """Volume and snapshot are what they were."""
        stamps.expect(api.device(facts["volume"]), NEW)
        self._expect_snapshot(api, facts["snapshot"], OLD)

    @staticmethod
    def _expect_snapshot(api: Api, snapshot_id: str, generation: int) -> None:
        clone_id = api.clone("look", snapshot_id)
        stamps.expect(api.device(clone_id), generation)
        api.block("DELETE", f"volumes/{clone_id}")

    @staticmethod
    def _named(api: Api, kind: str, name: str, answered: bool) -> list[dict[str, Any]]:
        """What the verb made: one if it was answered, one or none if not."""
        found = [item for item in api.all(kind) if item["name"] == name]
        assert len(found) == 1 or (not found and not answered), (found, answered)
        assert all(item["status"] == "available" for item in found), found
        return found


class CreateVolume(Scenario):
    """An empty volume."""

    name = "create"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("POST", "volumes", {"name": "made", "from_empty": {"size": SIZE}})

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        for volume in self._named(api, "volumes", "made", answered):
            assert volume["size"] == SIZE
            stamps.expect(api.device(volume["id"]), 0)
        self._whole(api, facts)


class CloneVolume(Scenario):
    """A larger volume from a snapshot."""

    name = "clone"

    def request(self, api: Api, facts: Facts) -> None:
        source = {"snapshot_id": facts["snapshot"], "size": 2 * SIZE}
        api.block("POST", "volumes", {"name": "made", "from_snapshot": source})

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        for volume in self._named(api, "volumes", "made", answered):
            device = api.device(volume["id"])
            assert volume["size"] == 2 * SIZE
            whole_blocks = SIZE // 4096 * 4096
            stamps.expect(device, OLD, 0, whole_blocks)
            stamps.expect(device, 0, whole_blocks + 4096)
        self._whole(api, facts)


class CreateSnapshot(Scenario):
    """A snapshot."""

    name = "snapshot"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("POST", "snapshots", {"name": "made", "volume_id": facts["volume"]})

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        for snapshot in self._named(api, "snapshots", "made", answered):
            assert snapshot["size"] == SIZE
            self._expect_snapshot(api, snapshot["id"], NEW)
        self._whole(api, facts)


class SnapshotGroup(Scenario):
    """Snapshots of two volumes at one instant."""

    name = "group"

    def prepare(self, api: Api) -> Facts:
        facts = super().prepare(api)
        facts["other"] = api.create_volume("w", SIZE)
        stamps.stamp(api.device(facts["other"]), NEW)
        return facts

    def request(self, api: Api, facts: Facts) -> None:
        body = {"volume_ids": [facts["volume"], facts["other"]], "name": "made"}
        api.host("POST", "groups/snapshots", body)

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        made = [one for one in api.all("snapshots") if one["name"].startswith("made-")]
        assert len(made) == 2 or (not made and not answered), (made, answered)
        for snapshot in made:
            assert snapshot["status"] == "available", snapshot
            self._expect_snapshot(api, snapshot["id"], NEW)
        self._whole(api, facts)
        stamps.expect(api.device(facts["other"]), NEW)


class Grow(Scenario):
    """A larger size."""

    name = "resize"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("PATCH", f"volumes/{facts['volume']}", {"size": 3 * SIZE})

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        size = api.block("GET", f"volumes/{facts['volume']}")["size"]
        assert size == 3 * SIZE or (size == SIZE and not answered), (size, answered)
        device = api.device(facts["volume"])
        whole_blocks = SIZE // 4096 * 4096
        stamps.expect(device, NEW, 0, whole_blocks)
        if size > SIZE:
            stamps.expect(device, 0, whole_blocks + 4096)
        self._expect_snapshot(api, facts["snapshot"], OLD)


class Revert(Scenario):
    """The snapshot's bytes again, and what was there before as a snapshot."""

    name = "revert"
    keep_previous = True

    def request(self, api: Api, facts: Facts) -> None:
        body = {"snapshot_id": facts["snapshot"], "keep_previous": self.keep_previous}
        api.host("POST", f"volumes/{facts['volume']}/revert", body)

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        others = [item for item in api.all("snapshots") if item["id"] != facts["snapshot"]]
        device = api.device(facts["volume"])
        try:
            stamps.expect(device, OLD)
            reverted = True
        except AssertionError:
            assert not answered
            stamps.expect(device, NEW)
            reverted = False
        assert len(others) == (1 if reverted and self.keep_previous else 0), others
        for kept in others:
            assert kept["status"] == "available"
            self._expect_snapshot(api, kept["id"], NEW)
        self._expect_snapshot(api, facts["snapshot"], OLD)


class RevertForGood(Revert):
    """Without keeping what was there."""

    name = "revert without keeping"
    keep_previous = False


class DeleteVolume(Scenario):
    """Into the trash; the snapshot stays."""

    name = "delete"
    trash_keep = "24h"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("DELETE", f"volumes/{facts['volume']}")

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        if _exists(api, "volumes", facts["volume"]):
            assert not answered
        else:
            (row,) = [
                volume
                for volume in api.all("volumes", "&include_deleted=true")
                if volume["id"] == facts["volume"]
            ]
            assert row["status"] == "deleted"
            api.host("POST", f"volumes/{facts['volume']}/undelete")
        self._whole(api, facts)


class UndeleteVolume(DeleteVolume):
    """Back from the trash."""

    name = "undelete"

    def prepare(self, api: Api) -> Facts:
        facts = super().prepare(api)
        api.block("DELETE", f"volumes/{facts['volume']}")
        return facts

    def request(self, api: Api, facts: Facts) -> None:
        api.host("POST", f"volumes/{facts['volume']}/undelete")

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        super().check(api, facts, False)


class Erase(Scenario):
    """Deleted and, as nothing is kept, erased: a volume, while its snapshot stays."""

    name = "erase"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("DELETE", f"volumes/{facts['volume']}")

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        if _exists(api, "volumes", facts["volume"]):
            assert not answered
            stamps.expect(api.device(facts["volume"]), NEW)
        self._expect_snapshot(api, facts["snapshot"], OLD)


class EraseSnapshot(Scenario):
    """The same for a snapshot, while its volume stays."""

    name = "erase snapshot"

    def request(self, api: Api, facts: Facts) -> None:
        api.block("DELETE", f"snapshots/{facts['snapshot']}")

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        if _exists(api, "snapshots", facts["snapshot"]):
            assert not answered
            self._expect_snapshot(api, facts["snapshot"], OLD)
        stamps.expect(api.device(facts["volume"]), NEW)


class Export(Scenario):
    """A snapshot as an object, over the one that was there before."""

    name = "export"
    needs_objects = True
    key = "exports/monday.qcow2"

    def request(self, api: Api, facts: Facts) -> None:
        api.export(facts["snapshot"], self.key)

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        """What was answered goes on after the crash, and comes true."""
        jobs = api.host("GET", f"jobs?snapshot_id={facts['snapshot']}")["jobs"]
        assert len(jobs) == 1 or (not jobs and not answered), (jobs, answered)
        for job in jobs:
            assert (job["state"], job["error"]) == ("succeeded", None), job
            imported = api.import_snapshot("look", self.key)
            assert api.job_of(imported)["content_digest"] == job["content_digest"]
            self._expect_snapshot(api, imported, OLD)
        self._whole(api, facts)


class Import(Scenario):
    """A snapshot from an object."""

    name = "import"
    needs_objects = True
    key = "exports/source.qcow2"

    def prepare(self, api: Api) -> Facts:
        facts = super().prepare(api)
        api.export(facts["snapshot"], self.key)
        assert api.job_of(facts["snapshot"])["state"] == "succeeded"
        return facts

    def request(self, api: Api, facts: Facts) -> None:
        api.import_snapshot("made", self.key)

    def check(self, api: Api, facts: Facts, answered: bool) -> None:
        for snapshot in self._named(api, "snapshots", "made", answered):
            assert snapshot["size"] == SIZE
            self._expect_snapshot(api, snapshot["id"], OLD)
        self._whole(api, facts)


def _exists(api: Api, kind: str, resource_id: str) -> bool:
    try:
        api.block("GET", f"{kind}/{resource_id}")
    except ApiError as error:
        if error.status != 404:
            raise
        return False
    return True


SCENARIOS: dict[str, type[Scenario]] = {
    scenario.name: scenario
    for scenario in (
        CreateVolume,
        CloneVolume,
        CreateSnapshot,
        SnapshotGroup,
        Grow,
        Revert,
        RevertForGood,
        DeleteVolume,
        UndeleteVolume,
        Erase,
        EraseSnapshot,
        Export,
        Import,
    )
}


def delete_all(api: Api) -> None:
    """What is not kept in the trash is erased while other things go on."""
    for kind in ("volumes", "snapshots"):
        for item in api.all(kind):
            api.block("DELETE", f"{kind}/{item['id']}")


def clear(api: Api) -> None:
    """Delete everything; with nothing kept in the trash, all is erased when the daemon is idle."""
    delete_all(api)
    api.idle()
