"""The udev rules know blockd's devices by what the kernel says of them."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

from blockd.domain.intent import disk_name, new_id
from blockd.storage.dm import lv_device_name

RULES = (Path(__file__).resolve().parents[2] / "etc/udev/12-blockd.rules").read_text("utf-8")


def matches(attribute: str, text: str) -> bool:
    patterns: list[str] = re.findall(rf'ATTR{{{attribute}}}=="([^"]+)"', RULES)
    return any(fnmatchcase(text, one) for pattern in patterns for one in pattern.split("|"))


def test_rules_match_the_uuid_of_a_front() -> None:
    assert matches("dm/uuid", f"BLOCKD-sbs-{new_id()}-{new_id()}")


def test_rules_match_the_device_name_of_our_lv() -> None:
    assert matches("dm/name", lv_device_name("vg-of-ours", disk_name(new_id())))


def test_rules_match_the_device_name_of_a_copy_of_the_catalog() -> None:
    assert matches("dm/name", lv_device_name("vg-of-ours", f"blockd-catalog-{new_id()}"))


def test_rules_match_the_layers_of_classic_snapshots() -> None:
    for layer in ("real", "cow"):
        assert matches("dm/name", f"{lv_device_name('vg', disk_name(new_id()))}-{layer}")
        assert matches("dm/uuid", f"LVM-{'x' * 64}-{layer}")


def test_rules_leave_other_lvs_alone() -> None:
    for lv in ("root", "blockd", "blockd-home", f"data-{new_id()}"):
        assert not matches("dm/name", lv_device_name("vg", lv))


def test_rules_come_before_those_that_probe() -> None:
    # 13-dm-disk.rules upstream, 60-persistent-storage-dm.rules in Debian.
    (name,) = Path(__file__).resolve().parents[2].glob("etc/udev/*.rules")
    assert name.name < "13-dm-disk.rules"


def test_rules_use_no_name_that_other_rules_must_have_set_before() -> None:
    used = set(re.findall(r"ENV{(\w+)}==", RULES))
    assert not used, f"not set yet where device-mapper's rules are 55-dm.rules: {used}"
