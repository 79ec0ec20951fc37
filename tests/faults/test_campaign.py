"""A short campaign with a seed that has each kind of strike; `scripts/faults` runs long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.campaign import Campaign
from tests.faults.strikes import WEIGHTS

pytestmark = pytest.mark.lab

SEED, ROUNDS = "1471", 8


def test_short_campaign_with_each_kind_of_strike_ends_as_the_model_says(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, SEED)
    try:
        tally = campaign.run(ROUNDS)
    finally:
        campaign.stop()
    print(tally)
    assert tally.rounds == ROUNDS
    assert set(tally.strikes) == set(WEIGHTS)
    assert tally.outcomes["done"] > tally.operations // 2
