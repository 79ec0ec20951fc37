"""The campaign, from the host: guest after guest on the same disks, until each loses power."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.guest import POWER_CUT, Guests
from tests.faults.notes import read_notes

_DISKS = ("260M", "768M", "64M")  # as campaign_disks has them: thin, thick, the catalog
_GUEST_S = 4 * 3600.0
_SHOWN_LINES = 40


class CampaignFailed(Exception):
    """Something was lost, left over, or stuck; the text says what, and how to see it again."""


@dataclass
class Tally:
    """What a campaign has done up to now.

    Attributes:
        rounds: that were compared.
        strikes: of each kind, those after which everything was as it had to be.
        outcomes: of operations: `done`, `refused`, …
    """

    rounds: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def operations(self) -> int:
        """That were begun."""
        return self.outcomes.total()


class Campaign:
    """One seed; the folder holds all there is of it."""

    def __init__(self, folder: Path, seed: str, cpu: int | None = None) -> None:
        self.folder, self.seed = folder, seed
        folder.mkdir(parents=True, exist_ok=True)
        self._guests = Guests(folder, cpu)
        self.stop = self._guests.stop

    def run(self, rounds: int, news: Callable[[Tally], None] = lambda _: None) -> Tally:
        """Go on until so many rounds are over.

        Args:
            news: is called whenever a guest has ended.

        Raises:
            CampaignFailed: with the seed and a short history.
        """
        idle = 0
        while (before := self.tally()).rounds < rounds:
            argv = ("tests.faults.campaign_guest", str(self.folder), self.seed, str(rounds))
            status, said = self._guests.run(_DISKS, argv, _GUEST_S)
            tally = self.tally()
            news(tally)
            idle = 0 if tally.rounds > before.rounds else idle + 1
            # A guest may be cut in the very round that it compared; two times running it is stuck.
            if status not in (0, POWER_CUT) or idle > 2:
                raise CampaignFailed(self._history(status, said))
        return self.tally()

    def tally(self) -> Tally:
        """From the journal."""
        tally = Tally()
        struck: dict[int, str] = {}
        last: dict[tuple[int, str, str], str] = {}
        for line in self._lines():
            if "strike" in line:
                struck[line["round"]] = line["strike"]
            elif "compared" in line and line["round"] in struck:
                tally.rounds += 1
                tally.strikes[struck.pop(line["round"])] += 1
            elif "op" in line:
                key = (line["round"], line["client"], json.dumps(line["op"]))
                last[key] = line["state"].split(":")[0]
        tally.outcomes = Counter(last.values())
        return tally

    def _lines(self) -> list[dict[str, Any]]:
        return read_notes(self.folder / "journal.jsonl")

    def _history(self, status: int, said: str) -> str:
        lines = self._lines()[-_SHOWN_LINES:]
        number = lines[-1]["round"] if lines else 0
        told = [json.dumps(line) for line in lines if line["round"] == number]
        return "\n".join(
            [
                f"seed {self.seed}, round {number}: the guest ended with {status}",
                *("what it did:", *told),
                *("what it said:", said),
                f"again: scripts/faults --seed {self.seed} --rounds {number + 1}",
            ]
        )
