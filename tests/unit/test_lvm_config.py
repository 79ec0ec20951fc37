"""What LVM is told to look at, and which devices may be looked at in the first place."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from blockd.storage.lvm_config import write_lvm_config
from blockd.storage.lvm_devices import candidate_devices


def test_filter_names_the_devices_and_nothing_else(tmp_path: Path) -> None:
    write_lvm_config(tmp_path, ["/dev/sd.a", "/dev/vdb"], udev=True, reserved_memory_kib=512)
    text = (tmp_path / "lvm.conf").read_text()
    (line,) = re.findall(r"global_filter = (\[.*\])", text)
    assert line == r'[ "a|^/dev/sd\.a$|", "a|^/dev/vdb$|", "r|.*|" ]'
    assert "udev_sync = 1" in text
    assert "use_aio = 0" in text


def test_no_device_is_accepted_when_none_is_named(tmp_path: Path) -> None:
    write_lvm_config(tmp_path, [], udev=False, reserved_memory_kib=512)
    assert 'global_filter = [ "r|.*|" ]' in (tmp_path / "lvm.conf").read_text()


def test_lvm_itself_finds_no_fault_with_it(tmp_path: Path) -> None:
    lvm = shutil.which("lvm", path="/sbin:/usr/sbin")
    if lvm is None:
        pytest.fail("lvm is not installed: run scripts/setup")
    write_lvm_config(tmp_path, ["/dev/none"], udev=False, reserved_memory_kib=512)
    done = subprocess.run(
        [lvm, "lvmconfig", "--validate"],
        env={"LVM_SYSTEM_DIR": str(tmp_path), "LVM_SUPPRESS_FD_WARNINGS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "LVM configuration valid." in done.stdout, done.stderr


def test_candidates_are_neither_fronts_nor_lvs_nor_empty(tmp_path: Path) -> None:
    for name, sectors, uuid in (
        ("sda", 100, None),
        ("loop0", 0, None),
        ("dm-0", 100, "LVM-abc"),
        ("dm-1", 100, "BLOCKD-sbs-x-y"),
        ("dm-2", 100, "CRYPT-LUKS2-z"),
    ):
        entry = tmp_path / "class" / "block" / name
        entry.mkdir(parents=True)
        (entry / "size").write_text(f"{sectors}\n")
        if uuid is not None:
            (entry / "dm").mkdir()
            (entry / "dm" / "uuid").write_text(f"{uuid}\n")
    assert candidate_devices(tmp_path) == ["/dev/dm-2", "/dev/sda"]
