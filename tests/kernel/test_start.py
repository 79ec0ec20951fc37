"""What stands in the way of a start is said in one line, with exit status 2."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StorageError
from blockd.host.uevents import wait_for_node
from blockd.storage.dm import open_device_mapper
from tests.support.daemon import VG, Daemon, Place

pytestmark = pytest.mark.kernel

LVM = Path("/sbin/lvm").resolve()


def refused(place: Place, config: Path | None = None) -> str:
    """Start a daemon that must not start; its one line."""
    done = subprocess.run(
        [sys.executable, "-m", "blockd", "--config", str(config or place.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("blockd: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@contextmanager
def absent(path: Path) -> Iterator[None]:
    """Without a file of the guest (whose root is thrown away)."""
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def test_second_daemon_on_one_vg_refuses_to_start(place: Place, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    other = Place(state=tmp_path, run=tmp_path / "run")
    with Daemon(place) as daemon:
        line = refused(other)
        assert f"volume group {VG} is served by another blockd (pid {daemon.pid})" in line


def test_catalog_of_another_vg_refuses_to_start(place: Place) -> None:
    with Daemon(place):
        pass
    other = place.config.read_text().replace(f'vg = "{VG}"', 'vg = "else"')
    path = place.run / "other.toml"
    path.write_text(other)
    assert "volume group" in refused(place, path)


def test_missing_pool_is_named(place: Place) -> None:
    path = place.run / "nopool.toml"
    path.write_text(place.config.read_text().replace("[daemon]", 'pool = "nopool"\n[daemon]'))
    assert f"there is no thin pool {VG}/nopool" in refused(place, path)


def test_missing_lvm_is_named_with_its_package(place: Place) -> None:
    with absent(LVM):
        assert refused(place) == "blockd: lvm is not installed: apt-get install lvm2"


def test_missing_device_mapper_is_named(place: Place) -> None:
    with absent(Path("/dev/mapper/control")):
        assert "load dm-mod, and run blockd as root" in refused(place)


def test_make_pool_leaves_a_disk_with_a_file_system_alone(tmp_path: Path) -> None:
    disk = Path("/dev/ubda")
    subprocess.run(["/sbin/mkfs.ext4", "-q", "-F", str(disk)], check=True)
    (tmp_path / "run").mkdir()
    place = Place(state=tmp_path, run=tmp_path / "run", disk=disk)
    text = place.config.read_text().replace(f'vg = "{VG}"', 'vg = "careless"')
    path = tmp_path / "careless.toml"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "blockd", "make-pool", "--config", str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert subprocess.run(["/sbin/e2fsck", "-fn", str(disk)], check=False).returncode == 0
    subprocess.run(["/sbin/wipefs", "-aq", str(disk)], check=True)


def test_vg_that_blockd_makes_holds_5000_lvs(tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("many")
    (root / "run").mkdir()
    place = Place(state=root, run=root / "run", disk=Path("/dev/ubda"))
    path = place.run / "many.toml"
    path.write_text(place.config.read_text().replace(f'vg = "{VG}"', 'vg = "many"'))
    argv = [sys.executable, "-m", "blockd", "make-pool", "--config", str(path)]
    subprocess.run(argv, check=True)
    name = "blockd-00000000-0000-4000-8000-000000000000"
    place.lvm("lvcreate", "-V", "8m", "--thinpool", "pool", "-an", "-ky", "--addtag",
              "blockd.00000000-0000-4000-8000-000000000000", "-n", name, "many")  # fmt: skip
    place.lvm("vgchange", "-an", "many")
    backup = root / "many.vg"
    place.lvm("vgcfgbackup", "-f", str(backup), "many")
    backup.write_text(with_many_lvs(backup.read_text(), name, 5000))
    place.lvm("vgcfgrestore", "--force", "--yes", "-f", str(backup), "many")
    place.lvm("lvchange", "--addtag", "one.more.write", f"many/{name}")
    report = json.loads(place.lvm("lvs", "--reportformat", "json", "-o", "lv_name", "many"))
    ours = [row for row in report["report"][0]["lv"] if row["lv_name"].startswith("blockd-")]
    assert len(ours) == 5000
    place.lvm("vgremove", "-ff", "-y", "many")
    place.lvm("pvremove", "-y", "/dev/ubda")


def with_many_lvs(text: str, name: str, count: int) -> str:
    """VG metadata in which the thin LV `name` stands `count` times, each with ids of its own."""
    match = re.search(rf"\n\t\t{name} \{{\n.*?\n\t\t\}}\n", text, re.DOTALL)
    assert match is not None
    one = match[0]
    (lv_id,) = re.findall(r'id = "([^"]+)"', one)[:1]
    more = [
        one.replace(name, f"blockd-00000000-0000-4000-8000-{number:012d}")
        .replace(lv_id, f"{lv_id[:-6]}{number:06d}")
        .replace("device_id = 1\n", f"device_id = {number + 1}\n")
        for number in range(1, count)
    ]
    return text.replace(one, one + "".join(more))


def test_wait_for_node_returns_when_the_kernel_announces_it() -> None:
    async def wait(node: Path) -> None:
        await wait_for_node(node, timeout_s=20)

    with open_device_mapper(SideEffects()) as mapper:
        mapper.create("blockd-probe", "BLOCKD-probe")
        info = mapper.info("BLOCKD-probe")
        assert info is not None
        node = Path(f"/dev/dm-{info.minor}")
        try:
            assert not node.exists()  # no table yet, so no disk yet

            def appear() -> None:
                mapper.load("BLOCKD-probe", 8, "zero", "")
                mapper.resume("BLOCKD-probe")

            timer = threading.Timer(1.0, appear)
            timer.start()
            asyncio.run(wait(node))
            assert node.exists()
            timer.join()
        finally:
            mapper.remove("BLOCKD-probe")


def test_wait_for_node_that_never_comes_ends_at_its_deadline() -> None:
    with pytest.raises(StorageError, match="did not appear within"):
        asyncio.run(wait_for_node(Path("/dev/dm-4242"), timeout_s=0.2))
