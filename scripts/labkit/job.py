"""What the guest is to do, as `job.json` for lab-guest: COMMAND, its environment, the services.

The fields of a job:

    argv      COMMAND and its arguments
    cwd       folder COMMAND starts in
    env       COMMAND's whole environment
    terminal  [bool, bool, bool]: which of COMMAND's descriptors 0 to 2 are the guest's console
    shared    [[path, writable], ...]: host folders to be seen at the same path
    files     {path: text}: files to make
    s3        null, or {"argv": the server's command, "port": int, "bucket": its folder}
    blockd    null, or {"make_pool": command, "run": command, "log": path, "pidfile": path}
"""

from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

from labkit.host import PROJECT, SYSTEM_PATH, VENV, CannotStart, venv_program

PASSED_ON: Final = ("BLOCKD_", "PYTEST_", "CI", "TERM", "COLUMNS", "NO_COLOR", "FORCE_COLOR")
HIDDEN: Final = ("/tmp/", "/var/tmp/", "/run/", "/dev/shm/")  # fresh in the guest
# Not shared even as the current folder: the guest itself has to change or mount something there.
SYSTEM: Final = frozenset(
    ("/", "/dev", "/etc", "/lib", "/proc", "/run", "/sys", "/usr", "/usr/lib", "/var")
)

S3_PORT: Final = 9000
S3_ENV: Final = {
    "BLOCKD_S3_ENDPOINT": f"127.0.0.1:{S3_PORT}",
    "BLOCKD_S3_ACCESS_KEY": "labaccesskey",
    "BLOCKD_S3_SECRET_KEY": "labsecretkey",
    "BLOCKD_S3_BUCKET": "lab-bucket",
}

RUN: Final = "/run/blockd"
CONFIG: Final = {
    "host": """\
zone = "xx-lab-1"
organization_id = "11111111-1111-4111-8111-111111111111"
default_project_id = "22222222-2222-4222-8222-222222222222"
""",
    "api": f'socket = "{RUN}/blockd.sock"\n',
    "catalog": 'path = "/var/lib/blockd/catalog.sqlite"\n',
    "lvm": 'devices = ["/dev/ubda"]\nreserved_memory_kib = 512\n',
    "classes.sbs": 'kind = "thin"\nvg = "lab"\npool = "pool"\n',
    "trash": 'keep = "24h"\n',
    # Its keys are in the daemon's environment.
    "object_storage": f'endpoint = "http://{S3_ENV["BLOCKD_S3_ENDPOINT"]}"\n',
}

LVM_DIR: Final = "/run/lab/lvm"
LVM_CONF: Final = """\
# No udevd and no dmeventd run in the lab; only its own disks are offered to LVM.
devices {
    use_devicesfile = 0
    filter = [ "a|^/dev/ubd[a-o]$|", "a|^/dev/loop[0-9]+$|", "r|.*|" ]
    global_filter = [ "a|^/dev/ubd[a-o]$|", "a|^/dev/loop[0-9]+$|", "r|.*|" ]
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
    scan_lvs = 0
    hints = "none"
}
activation {
    udev_sync = 0
    udev_rules = 0
    verify_udev_operations = 0
    monitoring = 0
}
backup {
    backup = 0
    archive = 0
}
global {
    use_aio = 0
    use_lvmpolld = 0
}
"""


def config_toml(extra_file: str | None) -> str:
    """blockd's configuration: ours, less the sections that extra_file has, and extra_file."""
    try:
        extra = Path(extra_file).read_text() if extra_file else ""
        tomllib.loads(extra)
    except (OSError, ValueError) as err:
        text = err.strerror if isinstance(err, OSError) else err
        raise CannotStart(f"--config-extra {extra_file}: {text}") from None
    theirs = set(re.findall(r"^\s*\[\[?\s*([^\]\s]+)\s*\]", extra, re.MULTILINE))
    ours = (f"[{name}]\n{body}" for name, body in CONFIG.items() if name not in theirs)
    return "\n".join([*ours, extra])


def blockd_env(config: str) -> dict[str, str]:
    """What COMMAND may know of the daemon, as the configuration has it."""
    values: dict[str, Any] = tomllib.loads(config)
    try:
        host, classes = values["host"], values["classes"].values()
        return {
            "BLOCKD_SOCKET": str(values["api"]["socket"]),
            "BLOCKD_CONFIG": f"{RUN}/blockd.toml",
            "BLOCKD_PIDFILE": f"{RUN}/blockd.pid",
            "BLOCKD_ZONE": str(host["zone"]),
            "BLOCKD_PROJECT": str(host["default_project_id"]),
            "BLOCKD_VG": next((str(each["vg"]) for each in classes if "vg" in each), ""),
        }
    except KeyError as err:
        raise CannotStart(f"--config-extra leaves blockd's configuration without {err}") from None


def shared_folders(cwd: str, disk_dir: Path | None) -> list[tuple[str, bool]]:
    """(path, writable) of the host's folders that the guest sees as they are, outer ones first.

    The virtual environment and its Python are among them where the guest's own /tmp hides them.
    """
    writable = {cwd, str(PROJECT)} | ({str(disk_dir)} if disk_dir else set())
    python = (VENV / "bin/python").resolve()
    wanted = writable | {
        path
        for path in (str(VENV.resolve()), str(python.parents[1]), sys.base_prefix)
        if path.startswith(HIDDEN)
    }
    shared: list[tuple[str, bool]] = []
    for path in sorted(wanted - SYSTEM):
        write = path in writable
        if not any(path.startswith(f"{outer}/") and have >= write for outer, have in shared):
            shared.append((path, write))
    return shared


def terminals() -> list[bool]:
    """Which of our descriptors 0 to 2 COMMAND has as a terminal.

    None in the background, and none in `lab | tee`: a raw terminal would garble tee's output.
    """
    if not (os.isatty(0) and os.isatty(1)) or os.tcgetpgrp(0) != os.getpgrp():
        return [False] * 3
    return [os.isatty(number) for number in range(3)]


def make_job(
    command: list[str], disk_dir: Path | None, *, s3: bool, blockd: bool, config_extra: str | None
) -> dict[str, Any]:
    """The job, in the shape this module describes.

    Raises:
        CannotStart: a program of the virtual environment or the current folder is missing, or the
            configuration is wrong.
    """
    try:
        cwd = str(Path.cwd())
    except FileNotFoundError:
        raise CannotStart("the current folder does not exist any more") from None
    env = {name: text for name, text in os.environ.items() if name.startswith(PASSED_ON)}
    env |= {
        "PATH": f"{VENV}/bin:{SYSTEM_PATH}",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "LVM_SYSTEM_DIR": LVM_DIR,
        "DM_DISABLE_UDEV": "1",
    }
    job: dict[str, Any] = {
        "argv": command,
        "cwd": cwd,
        "env": env,
        "terminal": terminals(),
        "shared": shared_folders(cwd, disk_dir),
        "files": {f"{LVM_DIR}/lvm.conf": LVM_CONF},
        "s3": None,
        "blockd": None,
    }
    if s3:
        env |= S3_ENV
        data = disk_dir / "s3" if disk_dir else Path("/run/lab/s3")
        keys = f"{env['BLOCKD_S3_ACCESS_KEY']},{env['BLOCKD_S3_SECRET_KEY']}"
        serve = [venv_program("rclone"), "serve", "s3", str(data)]
        serve += ["--config=", "--cache-dir=/run/lab/rclone"]
        serve += [f"--auth-key={keys}", f"--addr={env['BLOCKD_S3_ENDPOINT']}"]
        bucket = str(data / env["BLOCKD_S3_BUCKET"])
        job["s3"] = {"argv": serve, "port": S3_PORT, "bucket": bucket}
    if blockd:
        config = config_toml(config_extra)
        env |= blockd_env(config)
        job["files"][env["BLOCKD_CONFIG"]] = config
        program, path = venv_program("blockd"), env["BLOCKD_CONFIG"]
        job["blockd"] = {
            "make_pool": [program, "make-pool", "--config", path],
            "run": [program, "--config", path],
            "log": f"{RUN}/blockd.log",
            "pidfile": env["BLOCKD_PIDFILE"],
        }
    return job
