"""Part `idle`: how many LVM processes each verb starts, and what an idle daemon does."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.bench.client import SNAPSHOTS, VOLUMES, Connection
from tests.bench.guest import progress, run_in_lab
from tests.bench.report import Section, table
from tests.support.client import ApiError

_SIZE_BYTES = 64 * 1024**2
_KEEP_S = 10


def section(*, quick: bool) -> Section:
    """Boot the lab, run `main` there, and make a table of what it found."""
    idle_s = 10 if quick else 30
    found = run_in_lab("tests.bench.idle", [str(idle_s)], trash_keep=f"{_KEEP_S}s")
    rows = [
        [verb, sum(counts.values()), ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))]
        for verb, counts in found["verbs"].items()
    ]
    text = (
        "LVM processes per verb, counted at `/metrics` (`blockd_lvm_processes_total`) before the"
        " request and when nothing was under way any more, in `scripts/lab`.\n\n"
    )
    return Section("idle", text + table(["verb", "LVM processes", "which"], rows))


def main() -> None:
    """In the guest: `IDLE_S`; prints the counts as JSON."""
    with Connection(Path(os.environ["BLOCKD_SOCKET"])) as connection:
        json.dump({"verbs": _Verbs(connection).all(float(sys.argv[1]))}, sys.stdout)


class _Verbs:
    """Every verb once, and what each started."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._found: dict[str, dict[str, int]] = {}

    def all(self, idle_s: float) -> dict[str, dict[str, int]]:
        """Counts by command, by verb."""
        volume = self._make("create volume", VOLUMES, {"from_empty": {"size": _SIZE_BYTES}})
        snapshot = self._make("snapshot", SNAPSHOTS, {"volume_id": volume})
        source = {"snapshot_id": snapshot}
        clone = self._make("clone, same size", VOLUMES, {"from_snapshot": source})
        larger = {**source, "size": 2 * _SIZE_BYTES}
        self._make("clone, larger", VOLUMES, {"from_snapshot": larger})
        self._change("grow", "PATCH", f"{VOLUMES}/{clone}", {"size": 2 * _SIZE_BYTES})
        change = {"name": "renamed", "tags": ["a"], "perf_iops": 15000}
        self._change("rename, tag, set perf_iops", "PATCH", f"{VOLUMES}/{clone}", change)
        for keep in (True, False):
            body = {"snapshot_id": snapshot, "keep_previous": keep}
            verb = f"revert, keep_previous {str(keep).lower()}"
            self._change(verb, "POST", f"/host/v1/volumes/{volume}/revert", body)
        for _ in range(100):
            self._connection.call("POST", SNAPSHOTS, {"volume_id": clone})
        self._settle(pause_s=0.5)
        self._reads(volume, snapshot)
        self._deletions(volume, snapshot)
        progress(f"idle for {idle_s:g} s")
        self._count(f"nothing, for {idle_s:g} s", lambda: time.sleep(idle_s))
        return self._found

    def _reads(self, volume: str, snapshot: str) -> None:
        get = self._connection.call
        self._count("list 100 snapshots", lambda: get("GET", f"{SNAPSHOTS}?page_size=100"))
        self._count("list volumes", lambda: get("GET", VOLUMES))
        self._count("get a volume", lambda: get("GET", f"{VOLUMES}/{volume}"))
        self._count("get a snapshot", lambda: get("GET", f"{SNAPSHOTS}/{snapshot}"))
        self._count("path of a volume", lambda: get("GET", f"/host/v1/volumes/{volume}/device"))
        self._count(
            "pools, health", lambda: (get("GET", "/host/v1/pools"), get("GET", "/host/v1/health"))
        )

    def _deletions(self, volume: str, snapshot: str) -> None:
        call = self._connection.call
        for what, path, host in (
            ("snapshot", f"{SNAPSHOTS}/{snapshot}", f"/host/v1/snapshots/{snapshot}"),
            ("volume", f"{VOLUMES}/{volume}", f"/host/v1/volumes/{volume}"),
        ):
            self._count(f"delete a {what}", partial(call, "DELETE", path))
            self._count(f"undelete a {what}", partial(call, "POST", f"{host}/undelete", {}))
            call("DELETE", path)
            self._count(f"erase a {what}", partial(self._gone, [host]))
        page = call("GET", f"{SNAPSHOTS}?page_size=100")["snapshots"]
        several = [item["id"] for item in page[-16:]]
        for item in several:
            call("DELETE", f"{SNAPSHOTS}/{item}")
        rows = [f"/host/v1/snapshots/{item}" for item in several]
        self._count("erase 16 snapshots deleted one after another", partial(self._gone, rows))

    def _gone(self, paths: list[str]) -> None:
        """Wait until all are gone from the trash, and their disks too."""
        for path in paths:
            while True:
                try:
                    self._connection.call("GET", path)
                except ApiError:
                    break
                time.sleep(0.05)
        time.sleep(0.1)  # between the row's end and the operation's beginning

    def _make(self, verb: str, collection: str, body: object) -> str:
        """Make a resource and wait until it is available; its id."""
        made: list[str] = []

        def make() -> None:
            made.append(self._connection.call("POST", collection, body)["id"])
            self._connection.until(f"{collection}/{made[0]}")

        self._count(verb, make)
        return made[0]

    def _change(self, verb: str, method: str, path: str, body: object) -> None:
        self._count(verb, lambda: self._connection.call(method, path, body))

    def _count(self, verb: str, action: Callable[[], object]) -> None:
        before, _ = self._connection.lvm_processes()
        action()
        after = self._settle()
        more = {name: count - before.get(name, 0) for name, count in after.items()}
        self._found[verb] = {name: count for name, count in more.items() if count}

    def _settle(self, pause_s: float = 0.02) -> dict[str, int]:
        """Wait until nothing is under way; the counts."""
        while True:
            counts, under_way = self._connection.lvm_processes()
            if not under_way:
                return counts
            time.sleep(pause_s)


if __name__ == "__main__":
    main()
