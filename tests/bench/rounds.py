"""The comparison itself, shared by the parts `lab` and `native`: A B C, B C A, C A B, …"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from tests.bench.bare import BareLvm
from tests.bench.client import SNAPSHOTS, Connection
from tests.bench.report import ratio, spread, table

BLOCKD, OURS, DEBIAN = "blockd", "LVM, blockd's config", "LVM, Debian's config"
MAKE, ANSWER, ERASE, ANSWER_DELETE = "create", "answer to POST", "erase", "answer to DELETE"

#: Seconds by what was timed, and by who did it.
Samples = dict[str, dict[str, list[float]]]


@dataclass
class Rounds:
    """Makes and removes one snapshot by each contender, and takes the time.

    Whoever looks every few milliseconds slows down what he looks at, by half again on one CPU. So
    the first look comes when the fastest bare command so far would have ended: blockd, which runs
    that command, cannot be done before.

    Attributes:
        make, erase: a bare contender's commands: seconds they took.
    """

    connection: Connection
    volume_id: str
    make: Mapping[str, Callable[[str], float]]
    erase: Mapping[str, Callable[[str], float]]
    samples: Samples = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))

    def run(self, count: int) -> None:
        """`count` rounds; each begins with another contender, so that drift hits all alike.

        One more goes before them, to warm the caches, and is not counted.
        """
        contenders = [BLOCKD, *self.make]
        made: dict[str, str] = {}
        for number in range(-1, count):
            if number == 0:
                self.samples.clear()
            turn = number % len(contenders)
            order = contenders[turn:] + contenders[:turn]
            for who in order:
                made[who] = self._create() if who == BLOCKD else self._make(who)
            for who in order:
                if who == BLOCKD:
                    self._delete(made[who])
                else:
                    self.samples[ERASE][who].append(self.erase[who](made[who]))

    def _make(self, who: str) -> str:
        name = f"bare-{uuid4()}"  # as long as the names that blockd gives
        self.samples[MAKE][who].append(self.make[who](name))
        return name

    def _create(self) -> str:
        began = time.perf_counter()
        answer = self.connection.call("POST", SNAPSHOTS, {"volume_id": self.volume_id})
        self.samples[ANSWER][BLOCKD].append(time.perf_counter() - began)
        self._rest(MAKE, began)
        self.connection.until(f"{SNAPSHOTS}/{answer['id']}")
        self.samples[MAKE][BLOCKD].append(time.perf_counter() - began)
        return str(answer["id"])

    def _delete(self, snapshot_id: str) -> None:
        counts, _ = self.connection.lvm_processes()
        began = time.perf_counter()
        self.connection.call("DELETE", f"{SNAPSHOTS}/{snapshot_id}")
        self.samples[ANSWER_DELETE][BLOCKD].append(time.perf_counter() - began)
        self._rest(ERASE, began)
        self.connection.until_erased(counts.get("lvremove", 0))
        self.samples[ERASE][BLOCKD].append(time.perf_counter() - began)

    def _rest(self, what: str, began: float) -> None:
        fastest_s = min(self.samples[what][OURS], default=0.0)
        time.sleep(max(began + fastest_s - time.perf_counter(), 0.0))


def bare_contenders(
    ours: BareLvm, debian: BareLvm, make: Callable[[BareLvm, str], float], vg: str
) -> tuple[dict[str, Callable[[str], float]], dict[str, Callable[[str], float]]]:
    """`make` and `erase` of `Rounds`, for LVM under both configurations."""
    both = {OURS: ours, DEBIAN: debian}
    makers = {who: _bound(make, lvm) for who, lvm in both.items()}
    erasers = {
        who: _bound(lambda lvm, name: lvm.remove(vg, name), lvm) for who, lvm in both.items()
    }
    return makers, erasers


def _bound(action: Callable[[BareLvm, str], float], lvm: BareLvm) -> Callable[[str], float]:
    return lambda name: action(lvm, name)


def comparison(samples_by_count: Mapping[int, Samples]) -> str:
    """The table of both parts; the first column is how many snapshots there are already."""
    rows = []
    for what in (MAKE, ERASE):
        for count, samples in sorted(samples_by_count.items()):
            blockd, ours, debian = (samples[what][who] for who in (BLOCKD, OURS, DEBIAN))
            answer = samples[ANSWER if what == MAKE else ANSWER_DELETE][BLOCKD]
            rows.append(
                [
                    what,
                    f"{count:,}",
                    spread(answer),
                    *(spread(blockd), spread(ours), spread(debian)),
                    *(ratio(blockd, ours), min(blockd) / min(ours)),
                    *(ratio(blockd, debian), len(blockd)),
                ]
            )
    head = ["what", "snapshots", "answered, ms", "blockd done, ms", "bare, blockd's config, ms"]
    head += ["bare, Debian's config, ms", "blockd / bare", "of the fastest"]
    head += ["blockd / Debian", "samples"]
    return table(head, rows)
