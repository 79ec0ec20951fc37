"""scripts/lab from outside: what it promises to those who run their tooling in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

PROJECT = Path(__file__).resolve().parents[2]
LAB = PROJECT / "scripts/lab"
POWER_CUT = 75
CANNOT_START = 2
PATIENCE_S = 90.0  # many times what a guest takes, for a busy machine

pytestmark = pytest.mark.lab


def lab(
    *argv: str | Path,
    program: Path = LAB,
    cwd: Path | None = None,
    env: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[bytes]:
    """Run lab to its end, with env added to ours."""
    return subprocess.run(
        [program, *argv],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
        env={**os.environ, **env},
        timeout=PATIENCE_S,
        check=False,
    )


def processes_that_name(text: Path) -> list[int]:
    """Every guest carries its own folder, below TMPDIR, on its command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if str(text).encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has just ended
    return found


def left_behind(temporary: Path) -> list[object]:
    """The processes and files still there after 10 s; normally all are gone in 0.1 s."""
    deadline = time.monotonic() + 10
    while left := [*processes_that_name(temporary), *temporary.iterdir()]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)  # no event tells that a process of somebody else's has ended
    return left


# --- COMMAND ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -TERM $$", 128 + 15)])
def test_command_ends_and_lab_ends_with_its_status(script: str, status: int) -> None:
    assert lab("--", "sh", "-c", script).returncode == status


def test_command_that_does_not_exist_ends_with_127_and_says_so() -> None:
    done = lab("--", "no-such-command")
    assert done.returncode == 127
    assert done.stderr == b"lab: no-such-command: No such file or directory\n"


def test_every_byte_on_either_output_arrives_apart_and_unchanged() -> None:
    script = """
import sys
sys.stdout.buffer.write(bytes(range(256)) * 300)
sys.stderr.buffer.write(bytes(reversed(range(256))))
"""
    done = lab("--", "python", "-c", script)
    assert done.stdout == bytes(range(256)) * 300
    assert done.stderr == bytes(reversed(range(256)))
    assert done.returncode == 0


def test_long_output_to_a_slow_reader_arrives_whole() -> None:
    script = """
import hashlib, random, sys
data = random.Random(1).randbytes(20 << 20)
sys.stdout.buffer.write(data)
sys.stderr.write(hashlib.sha256(data).hexdigest())
"""
    done = subprocess.run(
        ["sh", "-c", '"$0" -- python -c "$1" | (sleep 3; cat)', LAB, script],
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert hashlib.sha256(done.stdout).hexdigest().encode() == done.stderr


def test_command_that_leaves_a_writer_behind_ends_all_the_same() -> None:
    slowly = "while head -c 65536 | grep -q y; do sleep 0.05; done"  # what is left grows meanwhile
    command = f'"$0" -- sh -c "yes & sleep 1; exit 5" | ({slowly}); echo ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", command, LAB], capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert done.stdout == b"5\n"


def test_output_nobody_reads_ends_lab_and_the_guest(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$0" -- yes | head -n 1; echo ${PIPESTATUS[0]}', LAB],
        capture_output=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout == b"y\n%d\n" % (128 + signal.SIGPIPE)
    assert left_behind(tmp_path) == []


def test_command_finds_its_folder_path_and_the_callers_variables(tmp_path: Path) -> None:
    here = tmp_path / "a folder"
    here.mkdir()
    script = 'pwd; echo "$PATH"; echo "$BLOCKD_TRIAL|$PRIVATE|$HOME|$(id -u)|$(hostname)"'
    done = lab("--", "sh", "-c", script, cwd=here, env={"BLOCKD_TRIAL": "a  b", "PRIVATE": "x"})
    cwd, path, rest = done.stdout.decode().splitlines()
    assert cwd == str(here)
    assert path.startswith(f"{PROJECT}/.venv/bin:")
    assert rest == "a  b||/root|0|lab"


def test_command_in_a_terminal_has_one() -> None:
    command = f"{LAB} -- sh -c 'tty; test -t 1 && exit 7'"
    done = subprocess.run(
        ["script", "-qec", command, "/dev/null"],
        capture_output=True,
        stdin=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout == b"/dev/tty1\r\n"
    assert done.returncode == 7


def test_device_mapper_lvm_and_modules_on_demand_work() -> None:
    script = """
set -e
vgcreate -q vg /dev/ubda
lvcreate -q -L 32M -T vg/pool
lvcreate -q -V 1G -T vg/pool -n thin
dd if=/dev/vg/thin of=/dev/null bs=4k count=1 status=none
modprobe dm-flakey
dmsetup targets | grep flakey
ping -c 1 -q 127.0.0.1 >/dev/null 2>&1 || ip address show lo | grep 127.0.0.1
"""
    done = lab("--disk", "256M", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr.decode()


# --- what outlives the guest --------------------------------------------------------------------


def test_guest_writes_here_and_elsewhere_and_only_here_stays(tmp_path: Path) -> None:
    elsewhere = Path(f"/etc/written-in-the-lab-{os.getpid()}")
    script = f"echo here > here && echo elsewhere > {elsewhere} && cat {elsewhere}"
    assert lab("--", "sh", "-c", script, cwd=tmp_path).stdout == b"elsewhere\n"
    assert (tmp_path / "here").read_text() == "here\n"
    assert not elsewhere.exists()


def test_lab_leaves_nothing_in_tmpdir(tmp_path: Path) -> None:
    assert lab("--", "true", env={"TMPDIR": str(tmp_path)}).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_second_run_in_the_same_disk_dir_finds_the_disks(tmp_path: Path) -> None:
    write = "echo one > /dev/ubda; echo two > /dev/ubdb"
    options = ("--disk", "64M", "--disk", "128M", "--disk-dir", tmp_path)
    assert lab(*options, "--", "sh", "-c", write).returncode == 0
    read = "head -c 4 /dev/ubda; head -c 4 /dev/ubdb; blockdev --getsize64 /dev/ubdb"
    done = lab("--disk-dir", tmp_path, "--", "sh", "-c", read)
    assert done.stdout == b"one\ntwo\n%d\n" % (128 << 20)


def test_second_lab_on_disks_in_use_is_refused(tmp_path: Path) -> None:
    argv: list[str | Path] = [
        LAB,
        "--disk-dir",
        tmp_path,
        "--",
        "sh",
        "-c",
        "echo started; sleep 100",
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"started\n"
        second = lab("--disk-dir", tmp_path, "--", "true")
        first.terminate()
    assert second.stderr == f"lab: another lab uses the disks in {tmp_path}\n".encode()
    assert second.returncode == CANNOT_START


def test_power_cut_keeps_what_was_written_through_and_loses_the_rest(tmp_path: Path) -> None:
    script = """
import os, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))  # lets nobody else run meanwhile
disk = os.open("/dev/ubda", os.O_RDWR)
switch = os.open("/proc/sysrq-trigger", os.O_WRONLY)
os.pwrite(disk, b"kept", 0)
os.fsync(disk)
os.pwrite(disk, b"lost", 4096)
os.write(1, b"said before\\n")
os.write(switch, b"c")
time.sleep(60)
"""
    options = ("--disk", "64M", "--disk-dir", tmp_path)
    cut = lab(*options, "--", "python", "-c", script)
    line = b"lab: the guest ended without COMMAND's exit status (power cut or panic)\n"
    assert (cut.stdout, cut.stderr, cut.returncode) == (b"said before\n", line, POWER_CUT)
    read = "head -c 4 /dev/ubda; dd if=/dev/ubda bs=4k skip=1 count=1 status=none | head -c 4"
    assert lab(*options, "--", "sh", "-c", read).stdout == b"kept" + bytes(4)


def test_guest_that_switches_itself_off_gives_no_status() -> None:
    done = lab("--", "sh", "-c", "reboot -f; sleep 60")
    assert done.returncode == POWER_CUT
    assert b"Call Trace" not in done.stderr


# --- the end of lab -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_lab_ended_by_a_signal_leaves_no_guest_and_no_files(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = "sleep 100 & echo started; sleep 100"
    # Not with the signals that a nohup around us ignores.
    argv: list[str | Path] = ["env", "--default-signal", LAB, "--", "sh", "-c", script]
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=env) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"started\n"
        assert processes_that_name(tmp_path)
        running.send_signal(number)
        assert running.stdout.read() == b""
    assert running.returncode == -number
    assert left_behind(tmp_path) == []


def test_terminal_that_goes_away_ends_the_guest(tmp_path: Path) -> None:
    command = f"{LAB} -- sh -c 'echo started; sleep 100'"
    with subprocess.Popen(
        ["script", "-qec", command, "/dev/null"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as terminal:
        assert terminal.stdout is not None
        assert terminal.stdout.readline() == b"started\r\n"
        terminal.kill()
    assert left_behind(tmp_path) == []


# --- what may be missing ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "env", "line"),
    [
        (
            ["--disk", "4Q"],
            {},
            "lab: bad size '4Q': write 512M or 4G, at least 1M, in whole sectors",
        ),
        (
            ["--disk", "100"],
            {},
            "lab: bad size '100': write 512M or 4G, at least 1M, in whole sectors",
        ),
        (["--disk-dir", "/no/such"], {}, "lab: --disk-dir /no/such: no such folder"),
        (["--cpu", "4095"], {}, "lab: CPU 4095 is not among those allowed: "),
        (["--memory", "900T"], {}, "lab: neither /dev/shm nor "),
        (
            [],
            {"TMPDIR": "/no/such"},
            "lab: cannot write in TMPDIR /no/such: No such file or directory",
        ),
        (
            ["--blockd", "--config-extra", "/no"],
            {},
            "lab: --config-extra /no: No such file or directory",
        ),
    ],
)
def test_what_is_missing_is_one_line(options: list[str], env: dict[str, str], line: str) -> None:
    done = lab(*options, "--", "true", env=env)
    assert done.returncode == CANNOT_START
    assert done.stderr.decode().startswith(line)
    assert done.stderr.count(b"\n") == 1


def test_missing_program_names_the_debian_package(copy: Path) -> None:
    program = copy / "scripts/lab"
    program.write_text(program.read_text().replace('"linux.uml"', '"linux.gone"'))
    done = lab("--", "true", program=program)
    line = b"lab: linux.gone is missing: install the Debian package user-mode-linux\n"
    assert (done.stderr, done.returncode) == (line, CANNOT_START)


def test_kernel_that_does_not_come_up_shows_its_messages(copy: Path) -> None:
    (copy / "scripts/lab-guest").write_text("raise SystemExit('nothing works')")
    done = lab("--", "true", program=copy / "scripts/lab")
    assert done.returncode == CANNOT_START
    assert b"nothing works" in done.stderr
    assert done.stderr.endswith(b"\nlab: the guest did not boot\n")


# --- as another user, in another place ----------------------------------------------------------


@pytest.fixture
def copy() -> Iterator[Path]:
    """The lab in a folder that everybody can read, with next to nothing as its environment."""
    folder = Path(tempfile.mkdtemp(prefix="lab-copy-", dir="/var/tmp"))
    try:
        folder.chmod(0o755)
        shutil.copytree(PROJECT / "scripts/labkit", folder / "scripts/labkit")
        for name in ("lab", "lab-guest"):
            shutil.copy(PROJECT / "scripts" / name, folder / "scripts")
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/python").symlink_to("/usr/bin/python3")
        library = PROJECT / ".venv/lib/lab-xstate.so"
        if library.exists():
            (folder / ".venv/lib").mkdir()
            shutil.copy(library, folder / ".venv/lib")
        yield folder
    finally:
        shutil.rmtree(folder)


def test_missing_environment_names_scripts_setup(copy: Path) -> None:
    shutil.rmtree(copy / ".venv")
    done = lab("--", "true", program=copy / "scripts/lab")
    line = f"lab: {copy}/.venv/bin/python is missing or cannot be run: run scripts/setup\n"
    assert (done.stderr.decode(), done.returncode) == (line, CANNOT_START)


@pytest.mark.skipif(os.geteuid() != 0, reason="every other test runs as an ordinary user already")
def test_unprivileged_user_is_root_in_the_guest_and_nobody_outside(copy: Path) -> None:
    temporary = copy / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    script = f"""
id -u
vgcreate -q vg /dev/ubda && lvcreate -q -L 32M -T vg/pool && echo pool
touch ~/x && echo home
touch {copy}/x 2>/dev/null || echo kept out
"""
    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    clean = ["env", "-i", "PATH=/usr/bin:/bin", f"TMPDIR={temporary}"]
    done = subprocess.run(
        [*as_nobody, *clean, copy / "scripts/lab", "--disk", "256M", "--", "sh", "-c", script],
        capture_output=True,
        cwd=copy,
        timeout=PATIENCE_S,
        check=False,
    )
    lines = done.stdout.decode().splitlines()
    assert (lines[0], lines[-3:]) == ("0", ["pool", "home", "kept out"]), done.stderr.decode()
    assert done.returncode == 0
    assert list(temporary.iterdir()) == []


# --- services -----------------------------------------------------------------------------------

ROUND_TRIP = """
import io, os
from minio import Minio

keys = os.environ["BLOCKD_S3_ACCESS_KEY"], os.environ["BLOCKD_S3_SECRET_KEY"]
bucket = os.environ["BLOCKD_S3_BUCKET"]
client = Minio(os.environ["BLOCKD_S3_ENDPOINT"], *keys, secure=False)
if not list(client.list_objects(bucket)):
    client.put_object(bucket, "key", io.BytesIO(b"object"), 6)
print(client.get_object(bucket, "key").read())
"""


def test_s3_object_comes_back_and_outlives_a_reboot_with_disk_dir(tmp_path: Path) -> None:
    done = lab("--s3", "--disk-dir", tmp_path, "--", "python", "-c", ROUND_TRIP)
    assert done.stdout == b"b'object'\n", done.stderr.decode()
    script = ROUND_TRIP.replace("client.put_object", "raise SystemExit")
    assert lab("--s3", "--disk-dir", tmp_path, "--", "python", "-c", script).stdout == done.stdout


def test_blockd_serves_and_its_catalog_is_there_after_a_power_cut(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text(
        '[host]\nzone = "xx-lab-2"\norganization_id = "%s"\ndefault_project_id = "%s"\n'
        % (("33333333-3333-4333-8333-333333333333",) * 2)
    )
    script = """
test -S $BLOCKD_SOCKET && kill -0 $(cat $BLOCKD_PIDFILE) && vgs --noheadings -o name $BLOCKD_VG
echo $BLOCKD_ZONE $BLOCKD_PROJECT $BLOCKD_S3_BUCKET
ls /var/lib/blockd/catalog.sqlite
grep -c 'keep = "24h"' $BLOCKD_CONFIG
"""
    options = ("--blockd", "--disk-dir", tmp_path, "--config-extra", extra)
    cut = lab(*options, "--", "sh", "-c", f"{script}\necho c > /proc/sysrq-trigger")
    assert cut.returncode == POWER_CUT
    again = lab(*options, "--", "sh", "-c", script)
    assert again.returncode == 0, again.stderr.decode()
    assert cut.stdout == again.stdout
    assert again.stdout.decode().split() == [
        "lab",
        *("xx-lab-2", "33333333-3333-4333-8333-333333333333", "lab-bucket"),
        *("/var/lib/blockd/catalog.sqlite", "1"),
    ]


def test_blockd_that_does_not_start_ends_lab_with_what_it_said(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text('[trash]\nkeep = "for ever and a day"\n')
    done = lab("--blockd", "--config-extra", extra, "--", "true")
    assert done.returncode == CANNOT_START
    assert b"for ever and a day" in done.stderr
    assert done.stderr.decode().splitlines()[-1].startswith("lab: blockd")
