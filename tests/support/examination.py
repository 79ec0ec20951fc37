"""What the doctor finds, and what it does about it."""

from __future__ import annotations

from typing import Any

from tests.support.client import Api
from tests.support.daemon import VG


def found(api: Api) -> dict[str, Any]:
    """What the doctor finds, by kind."""
    return {finding["kind"]: finding for finding in api.host("GET", "doctor")["findings"]}


def fix(api: Api, *ids: str) -> None:
    """Nothing is found after it."""
    answer = api.host("POST", "doctor/fix", {"ids": list(ids)} if ids else {})
    assert answer["fixed"]
    assert [one["failure"] for one in answer["fixed"]] == [None] * len(answer["fixed"])
    assert answer["findings"] == []


def device_of(disk: str) -> str:
    """Of an LV of ours."""
    return f"{VG}-{disk.replace('-', '--')}"
