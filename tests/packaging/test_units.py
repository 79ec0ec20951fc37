"""The systemd units: valid, closed enough, and in step with the configuration."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from blockd.config import ApiSection, CatalogSection, DaemonSection

ROOT = Path(__file__).resolve().parents[2]
UNITS = ROOT / "systemd"
#: 3.0 before the jail of qemu-img, which costs 0.8 (docs/decisions/0009-jail.md).
MOST_EXPOSURE = 3.8


def values(unit: str, section: str, key: str) -> list[str]:
    """All values of a key, which may stand several times, in order."""
    text = (UNITS / unit).read_text("utf-8")
    (body,) = re.findall(rf"^\[{section}\]\n(.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL)
    found: list[str] = re.findall(rf"^{key}=(.*)$", body, re.MULTILINE)
    return found


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("there is no systemd-analyze here")
    return subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def test_units_are_verified_by_systemd(tmp_path: Path) -> None:
    # It looks for the programs that a unit starts. blockd need not be installed to test it, so
    # the copy that is verified starts another one.
    service = (UNITS / "blockd.service").read_text("utf-8")
    assert "ExecStart=/usr/bin/blockd " in service
    copy = tmp_path / "blockd.service"
    copy.write_text(service.replace("=/usr/bin/blockd ", "=/bin/true "))
    shutil.copy(UNITS / "blockd.socket", tmp_path)
    said = analyze("verify", str(copy), str(tmp_path / "blockd.socket"))
    assert (said.returncode, said.stdout + said.stderr) == (0, "")


def test_service_is_closed_enough() -> None:
    said = analyze("security", "--offline=true", str(UNITS / "blockd.service"))
    (score,) = re.findall(r"Overall exposure level for blockd.service: ([\d.]+)", said.stdout)
    assert float(score) <= MOST_EXPOSURE


def test_service_never_signals_lvm() -> None:
    assert values("blockd.service", "Service", "KillMode") == ["process"]


def test_service_leaves_what_udev_and_lvm_need() -> None:
    # Semaphores are how LVM waits for udev; it sets its priority and locks its memory.
    assert not values("blockd.service", "Service", "PrivateIPC")
    assert not values("blockd.service", "Service", "PrivateDevices")
    assert values("blockd.service", "Service", "SystemCallFilter") == ["@system-service @mount"]
    capabilities = " ".join(values("blockd.service", "Service", "CapabilityBoundingSet")).split()
    assert {"CAP_SYS_ADMIN", "CAP_IPC_LOCK", "CAP_SYS_NICE"} <= set(capabilities)


def test_service_leaves_what_the_jail_of_qemu_img_needs() -> None:
    capabilities = " ".join(values("blockd.service", "Service", "CapabilityBoundingSet")).split()
    assert {"CAP_MKNOD", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"} <= set(capabilities)
    (namespaces,) = values("blockd.service", "Service", "RestrictNamespaces")
    assert set(namespaces.split()) == {"mnt", "net", "pid", "ipc", "uts"}
    assert "block-* rwm" in values("blockd.service", "Service", "DeviceAllow")


def test_volumes_are_there_before_guests() -> None:
    before = " ".join(values("blockd.service", "Unit", "Before")).split()
    assert {"libvirtd.service", "virtqemud.service", "libvirt-guests.service"} <= set(before)


def test_units_agree_with_the_defaults_of_the_configuration() -> None:
    api, catalog = ApiSection(), CatalogSection()
    assert values("blockd.socket", "Socket", "ListenStream") == [str(api.socket)]
    assert values("blockd.socket", "Socket", "SocketGroup") == [api.group]
    assert values("blockd.service", "Service", "RuntimeDirectory") == [api.socket.parent.name]
    assert values("blockd.service", "Service", "StateDirectory") == [catalog.path.parent.name]
    (stop,) = values("blockd.service", "Service", "TimeoutStopSec")
    assert float(stop) > DaemonSection().stop_timeout


def test_stop_leaves_the_socket_to_those_who_wait() -> None:
    assert values("blockd.service", "Service", "RuntimeDirectoryPreserve") == ["yes"]


def test_the_group_of_the_socket_is_made() -> None:
    assert f"g {ApiSection().group} - -" in (UNITS / "blockd-sysusers.conf").read_text("utf-8")


def test_entry_points_are_those_of_the_units() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"]
    assert "blockd = blockd.__main__:main" in scripts
