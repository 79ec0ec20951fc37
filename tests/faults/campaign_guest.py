"""Rounds of the campaign, in the guest.

    python -m tests.faults.campaign_guest FOLDER SEED ROUNDS

Goes on where FOLDER says that an earlier guest ended: `worlds.json` holds what must be there after
the last round that was compared, `journal.jsonl` each operation since, written before it began.
Objects are in FOLDER too, as an object store survives the host.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from blockd.domain.effects import SideEffects
from blockd.storage.dm import DeviceMapper, open_device_mapper
from tests.faults import strikes
from tests.faults.campaign_disks import Disks, mount_state, place_on
from tests.faults.client import Client
from tests.faults.notes import Notes, read_notes
from tests.faults.ops import items_of, look, settle
from tests.faults.strikes import Strike
from tests.faults.world import Op, World, op_from, world_from_json, world_to_json
from tests.support.agreement import expect_agreement
from tests.support.client import Api
from tests.support.daemon import Daemon, Place
from tests.support.examination import found as found_by_doctor
from tests.support.faulty_store import FaultyStore
from tests.support.object_store import object_store
from tests.support.store_thread import faulty_store

CLIENTS = {"ann": ("sbs",), "bob": ("sbs",), "cid": ("bssd",), "dot": ("sbs", "bssd")}
OPS = 3
_ROUND_S = 240.0


class Journal:
    """What was done since the worlds were written."""

    def __init__(self, folder: Path) -> None:
        self._path, self._worlds = folder / "journal.jsonl", folder / "worlds.json"
        self._notes = Notes(self._path)
        self.note = self._notes.add

    def lines_of(self, number: int) -> list[dict[str, Any]]:
        """Those of a round."""
        return [line for line in read_notes(self._path) if line["round"] == number]

    def compared(self, number: int, clients: list[Client]) -> None:
        """Everything is as it must be after this round."""
        worlds = {client.name: world_to_json(client.world) for client in clients}
        new = self._worlds.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            file.write(json.dumps({"round": number, "worlds": worlds}))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._worlds)

    def state(self) -> tuple[int, dict[str, World]]:
        """The last round that was compared, and what must be there; -1: none was."""
        if not self._worlds.exists():
            return -1, {}
        told = json.loads(self._worlds.read_text("utf-8"))
        return told["round"], {name: world_from_json(w) for name, w in told["worlds"].items()}


class Campaign:
    """Rounds upon one another, until one ends otherwise than it must."""

    def __init__(self, folder: Path, seed: str, place: Place, store: FaultyStore) -> None:
        self._seed, self._place, self._store = seed, place, store
        self._journal = Journal(folder)
        self.round, worlds = self._journal.state()
        self._clients = [
            Client(name, storage_classes, worlds.get(name, World()))
            for name, storage_classes in CLIENTS.items()
        ]
        self._may_fail = False

    def take_up(self) -> None:
        """A round that was cut short by the end of the host: what each client was at."""
        lines = self._journal.lines_of(self.round + 1)
        if not lines:
            return
        self.round += 1
        self._may_fail = any(
            Strike(line["strike"], 0).may_fail for line in lines if "strike" in line
        )
        for client in self._clients:
            for line in lines:
                if line.get("client") == client.name:
                    client.recall(op_from(line["op"]), line["state"], may_fail=self._may_fail)

    def compare(self, api: Api, mapper: DeviceMapper) -> None:
        """After a restart: each client's part is one of what it may be.

        Raises:
            AssertionError: it is not, or something is left over.
        """
        strikes.remove_filler(api)
        settle(api)
        uncertain = [c for c in self._clients if c.open_op is not None] if self._may_fail else []
        for kind, item in list(items_of(api)):
            if item["status"] == "error":
                assert any(client.owns(item["name"]) for client in uncertain), item
                api.block("DELETE", f"{kind}/{item['id']}")
        settle(api)
        lvs = expect_agreement(self._place)
        thin_ids = {name: int(lv["thin_id"]) for name, lv in lvs.items() if lv["thin_id"]}
        found = look(api, self._place, mapper, thin_ids)
        for client in self._clients:
            client.resolve(found.of(client.owns))
        strange = [n for n in (*found.volumes, *found.snapshots) if not self._somebodys(n)]
        assert not strange, f"nobody's: {strange}"
        assert self._store.server.uploads() == [], "an upload is left over"
        assert (findings := found_by_doctor(api)) == {}, findings
        self._journal.note(round=self.round, compared=True)
        self._journal.compared(self.round, self._clients)

    def _somebodys(self, name: str) -> bool:
        return any(client.owns(name) for client in self._clients)

    def strike(self, number: int) -> Strike:
        """That of a round; the same for the same seed."""
        return strikes.choose(random.Random(f"{self._seed} {number}"))

    def play(self, number: int, strike: Strike, daemon: Daemon, disks: Disks) -> None:
        """One round: clients at work, and the strike among them."""
        self.round, self._may_fail = number, strike.may_fail
        self._journal.note(round=number, strike=strike.kind, at=strike.at)
        chance = random.Random(f"{self._seed} {number} trouble")
        failures: list[BaseException] = []
        if strike.death is not None:
            daemon.arm()
        with strike.over(disks, self._store, daemon.api, chance):
            threads = [
                threading.Thread(target=self._work, args=(client, daemon.api, failures))
                for client in self._clients
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(_ROUND_S)
                assert not thread.is_alive(), "a client hangs"
        if failures:
            raise failures[0]

    def _work(self, client: Client, api: Api, failures: list[BaseException]) -> None:
        chance = random.Random(f"{self._seed} {self.round} {client.name}")

        def note(who: Client, op: Op, state: str) -> None:
            self._journal.note(round=self.round, client=who.name, op=vars(op), state=state)

        try:
            generation = 1 + self.round * OPS
            client.act(api, chance, OPS, generation, note, may_fail=self._may_fail)
        except BaseException as failure:
            failures.append(failure)


def main(folder: Path, seed: str, rounds: int) -> None:
    """Until so many rounds are over, or the guest is.

    Raises:
        AssertionError: something is lost, left over or stuck.
    """
    with ExitStack() as stack:
        mapper = stack.enter_context(open_device_mapper(SideEffects()))
        server = stack.enter_context(object_store(folder))
        store, seen = stack.enter_context(faulty_store(server))
        place, disks = place_on(seen), Disks(mapper)
        is_new = not (folder / "worlds.json").exists()
        mount_state(make=is_new)
        if is_new:
            disks.make_pool(place)
        campaign = Campaign(folder, seed, place, store)
        campaign.take_up()
        disks.set_up_lvm()
        disks.forget_raw_devices(place)
        while True:
            number = campaign.round + 1
            strike = campaign.strike(number)
            with Daemon(place, strike.death) as daemon:
                campaign.compare(daemon.api, mapper)
                print(f"round {campaign.round} compared", flush=True)
                if number >= rounds:
                    return
                campaign.play(number, strike, daemon, disks)
                print(f"round {number}: {strike.kind}", flush=True)
                if strike.kind == "power cut" or not disks.is_pool_fit():
                    strikes.pull_the_plug()
                disks.forget_raw_devices(place)  # of a strike that left the pool fit
                if strike.kind == "kill":
                    daemon.kill()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
