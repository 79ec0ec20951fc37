"""A client of the campaign: random operations on what is its own, and what must be there of it."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from tests.faults.group_outcome import group_outcome
from tests.faults.ops import carry_out, items_of, name_here
from tests.faults.world import KEPT, Found, Op, World, group_writes
from tests.support.client import Api, ApiError

SIZES = (257, 600, 1025)  # blocks of 4 KiB, off the grid of extents
MOST_VOLUMES, MOST_SNAPSHOTS, MOST_OBJECTS = 3, 3, 2
#: Blocks of each volume that are written while a group is taken.
_MOST_AMID = 300
_SETTLE_S = 90.0
#: Answers to a request that is refused as it stands: no room, a limit, in a passing state, in use.
_REFUSED = (403, 409, 412)


class Client:
    """Everything with its name before it is its own, so that nobody else explains a difference.

    Attributes:
        world: what must be there.
        open_op: the operation whose outcome is not known: see `allowed`.
    """

    def __init__(self, name: str, storage_classes: Sequence[str], world: World) -> None:
        """`storage_classes`: in which it makes its volumes by turns."""
        self.name, self.storage_classes, self.world = name, storage_classes, world
        self.open_op: Op | None = None
        self.is_answered = False

    def act(
        self,
        api: Api,
        chance: random.Random,
        ops: int,
        generation: int,
        note: Callable[[Client, Op, str], None],
        *,
        may_fail: bool,
    ) -> None:
        """So many operations, one after the other; no more once the outcome of one is not known.

        Args:
            generation: of the first write; each op has its own.
            note: is told each operation, and `begun`, `answered`, `refused`, `failed` or `done`.
            may_fail: storage is broken on purpose: what was answered may end in an error.

        Raises:
            AssertionError: the daemon answered what it must not.
        """
        for number in range(generation, generation + ops):
            op = self.choose(chance, number)
            self.open_op, self.is_answered = op, False
            note(self, op, "begun")
            try:
                storage_class = self.storage_classes[number % len(self.storage_classes)]
                carry_out(api, op, storage_class)
                self.is_answered = True
                note(self, op, "answered")
                is_done = self._await_end(api, op)
            except ApiError as error:
                if error.status in _REFUSED:
                    self._was_refused(op)
                    note(self, op, f"refused {error.status}")
                    continue
                if may_fail:
                    return self._give_up(op, f"failed: {error}", note)
                raise
            except (OSError, http.client.HTTPException) as error:
                self.is_answered = self.is_answered and not may_fail
                return note(self, op, f"unknown: {error}")
            if not is_done:
                assert may_fail, f"{op} was answered and failed"
                return self._give_up(op, "failed after it was answered", note)
            note(self, op, "done")
            if op.verb == "group":
                return None  # which instant it holds is seen when the disks are looked at
            self._is_done(op)
        return None

    def _is_done(self, op: Op) -> None:
        self.world, self.open_op = self._without_old_objects(self.world.after(op)), None

    def _was_refused(self, op: Op) -> None:
        if op.verb == "group":  # but not what was written meanwhile
            self.world = self.world.amid(op, group_writes(op))
        self.open_op = None

    def _give_up(self, op: Op, state: str, note: Callable[[Client, Op, str], None]) -> None:
        self.is_answered = False
        note(self, op, state)

    def allowed(self) -> list[World]:
        """What may be there now."""
        if self.open_op is None:
            return [self.world]
        after = self._without_old_objects(self.world.after(self.open_op))
        return [after] if self.is_answered else [self.world, after]

    def recall(self, op: Op, state: str, *, may_fail: bool) -> None:
        """A note of an earlier process: go on from what it says."""
        if state == "begun":
            self.open_op, self.is_answered = op, False
        elif state == "answered":
            self.is_answered = not may_fail
        elif state.startswith("refused"):
            self._was_refused(op)
        elif state == "done" and op.verb == "group":
            self.is_answered = True
        elif state == "done":
            self._is_done(op)

    def resolve(self, found: Found) -> None:
        """Take what was found for what there is.

        Raises:
            AssertionError: it is nothing that may be there.
        """
        op = self.open_op
        if op is not None and op.verb == "group":
            self.world = group_outcome(self.world, op, found, is_answered=self.is_answered)
            self.open_op = None
            return
        allowed = self.allowed()
        difference = found.difference(allowed, self.written)
        assert difference is None, f"{self.name}, {self.open_op}: {difference}"
        if self.written:
            volumes = {**self.world.volumes, self.written: found.volumes[self.written]}
            self.world = replace(self.world, volumes=volumes)
        else:
            fits = [world for world in allowed if found.difference([world]) is None]
            # Of an export nothing is to be seen here; it is forgotten unless it was answered.
            self.world = fits[0]
        self.open_op = None

    @property
    def written(self) -> str:
        """The volume that was being written; empty if none was."""
        op = self.open_op
        return op.name if op is not None and op.verb == "write" and not self.is_answered else ""

    def _await_end(self, api: Api, op: Op) -> bool:
        """Wait until nothing of ours is in a passing state.

        Returns:
            Whether what was begun has succeeded, as far as can be seen.
        """
        deadline = time.monotonic() + _SETTLE_S
        while True:
            mine = [(kind, item) for kind, item in items_of(api) if self.owns(item["name"])]
            states = {item["status"] for _, item in mine}
            if not states & {"creating", "updating", "exporting", "deleted"}:
                break
            if time.monotonic() > deadline:
                raise AssertionError(f"{op} does not end: {states}")
            time.sleep(0.1)
        if op.verb == "export":
            jobs = api.host("GET", "jobs?page_size=100")["jobs"]
            states = {job["state"] for job in jobs if job["key"] == op.name}
            return states == {"succeeded"}
        if op.verb.startswith("revert"):
            (volume,) = [i for k, i in mine if k == "volumes" and i["name"] == op.name]
            told = api.host("GET", f"volumes/{volume['id']}")
            return told.get("error") is None
        after = self.world.after(op)
        wanted = {("volumes", name): item.size_bytes for name, item in after.volumes.items()}
        wanted |= {("snapshots", name): item.size_bytes for name, item in after.snapshots.items()}
        found = {(kind, name_here(item["name"])): item["size"] for kind, item in mine}
        return "error" not in states and found == wanted

    def owns(self, name: str) -> bool:
        """Whether this is its own."""
        return name.startswith(f"{self.name}-")

    def _without_old_objects(self, world: World) -> World:
        return world.with_objects(list(world.objects)[-MOST_OBJECTS:])

    def choose(self, chance: random.Random, number: int) -> Op:
        """Something that can be done in this world."""
        volumes, snapshots = self.world.volumes, self.world.snapshots
        choices: list[Op] = []
        if len(volumes) < MOST_VOLUMES:
            name = f"{self.name}-v{number}"
            choices.append(Op("create", name, blocks=chance.choice(SIZES)))
            if snapshots:
                source = chance.choice(sorted(snapshots))
                blocks = len(snapshots[source].blocks) + chance.choice((0, 300))
                choices += [Op("clone", name, source=source, blocks=blocks)] * 2
        if volumes:
            name = chance.choice(sorted(volumes))
            choices += [self._write(chance, name, number)] * 3
            choices += self._changes(chance, name, number)
            if len(volumes) > 1:
                choices.append(Op("delete volume", name))
        if len(volumes) > 1 and len(snapshots) + 2 <= MOST_SNAPSHOTS:
            choices += [self._group(chance, number)] * 5
        if snapshots:
            name = chance.choice(sorted(snapshots))
            choices.append(Op("delete snapshot", name))
            choices.append(Op("export", f"campaign/{self.name}-{number}.qcow2", source=name))
        if self.world.objects and len(snapshots) < MOST_SNAPSHOTS:
            source = chance.choice(sorted(self.world.objects))
            choices.append(Op("import", f"{self.name}-s{number}", source=source))
        return chance.choice(choices)

    def _group(self, chance: random.Random, number: int) -> Op:
        names = chance.sample(sorted(self.world.volumes), 2)
        end = min(len(self.world.volumes[name].blocks) for name in names)
        return Op(
            "group",
            f"{self.name}-g{number}",
            source=" ".join(names),
            end=min(end, _MOST_AMID),
            generation=number,
        )

    def _write(self, chance: random.Random, name: str, number: int) -> Op:
        blocks = len(self.world.volumes[name].blocks)
        start = chance.randrange(blocks)
        end = min(blocks, start + chance.choice((1, 20, 400)))
        return Op("write", name, start=start, end=end, generation=number)

    def _changes(self, chance: random.Random, name: str, number: int) -> list[Op]:
        blocks, snapshots = len(self.world.volumes[name].blocks), self.world.snapshots
        choices = []
        if blocks < 2 * max(SIZES):
            choices.append(Op("grow", name, blocks=blocks + chance.choice((10, 400))))
        if len(snapshots) < MOST_SNAPSHOTS:
            choices += [Op("snapshot", f"{self.name}-s{number}", source=name)] * 2
        ours = [one for one, of in self.world.parents.items() if of == name and one in snapshots]
        if ours:
            keeps = name + KEPT not in snapshots and len(snapshots) < MOST_SNAPSHOTS
            verb = chance.choice(("revert", "revert for good")) if keeps else "revert for good"
            choices.append(Op(verb, name, source=chance.choice(sorted(ours))))
        return choices
