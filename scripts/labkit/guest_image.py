#!/usr/bin/env python3
"""Makes the kernel and the root of a small virtual machine, for tests of what drives libvirt.

Usage: guest_image.py FOLDER, where `vmlinuz` and `initrd` are then. Started by `scripts/setup`.

The kernel is Debian's for clouds, taken out of its package and not installed. The root is an
initramfs: busybox, the QEMU guest agent, tools of e2fsprogs, what these link to, and the modules of
virtio disks. Tests drive it through the agent alone: there is no login and no network.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
DOWNLOAD_S: Final = 300.0
TOOL_S: Final = 60.0
#: With what they need, in this order: a module comes after those it needs.
MODULES: Final = ("virtio_pci", "virtio_console", "virtio_blk", "virtio_scsi", "sd_mod")
PROGRAMS: Final = tuple(
    Path(path)
    for path in ("/bin/busybox", "/usr/sbin/qemu-ga", "/sbin/mkfs.ext4", "/sbin/resize2fs")
)
FOLDERS: Final = ("dev", "mnt", "proc", "run", "sys", "tmp", "var/run")

#: The agent wants its port at the start: that appears a while after the module is loaded.
INIT: Final = """\
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
export PATH=/bin:/sbin:/usr/sbin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
ln -s /proc/mounts /etc/mtab
while read -r module; do insmod "$module" || echo "init: cannot load $module"; done </modules
port_is_there() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = org.qemu.guest_agent.0 ] || continue
        ln -s "${port##*/}" /dev/agent
        return
    done
    return 1
}
until port_is_there; do sleep 0.1; done
mkdir -p /run/qemu
echo "init: the agent starts after $(cut -d ' ' -f 1 /proc/uptime) s"
while :; do
    qemu-ga --method virtio-serial --path /dev/agent --statedir /run --pidfile /run/qemu-ga.pid
    sleep 1
done
"""


class CannotMake(Exception):
    """One line that says what is missing."""


def run(*argv: str | Path, cwd: Path | None = None, timeout_s: float = TOOL_S) -> str:
    """What a program of the host printed.

    Raises:
        CannotMake: it is missing or failed.
    """
    try:
        done = subprocess.run(
            argv, cwd=cwd, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise CannotMake(f"{argv[0]}: {err}") from None
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise CannotMake(f"{' '.join(map(str, argv))}: {last[0]}")
    return done.stdout


def fetch_kernel(folder: Path) -> Path:
    """Unpack Debian's newest kernel for clouds below folder; answers where its tree is.

    Raises:
        CannotMake: apt does not know it, or cannot get it.
    """
    # Root, too, may write here alone, and not the user whom apt downloads as.
    options = ["-o", f"APT::Sandbox::User={os.environ.get('USER', 'root')}"]
    try:
        depends = run("apt-cache", "depends", "--important", KERNEL_PACKAGE)
        (package,) = re.findall(r"Depends: (linux-image-\S+)", depends)
        run("apt-get", *options, "download", package, cwd=folder, timeout_s=DOWNLOAD_S)
    except (CannotMake, ValueError) as err:
        raise CannotMake(f"no package {KERNEL_PACKAGE} ({err}): run apt-get update") from None
    tree = folder / "kernel"
    for file in folder.glob("*.deb"):
        run("dpkg-deb", "--extract", file, tree)
    return tree


def module_files(tree: Path) -> list[Path]:
    """MODULES and what they need, in the order in which to load them.

    Source: modules.dep(5): `path: dependency dependency`, the last dependency first.
    """
    (folder,) = (tree / "lib/modules").iterdir()
    run("/sbin/depmod", "--basedir", tree, folder.name)
    needs: dict[str, list[str]] = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[Path(path).stem] = [*reversed(rest.split()), path]
    return [folder / path for path in dict.fromkeys(p for name in MODULES for p in needs[name])]


def linked(program: Path) -> list[Path]:
    """The libraries that a program is linked to, and its loader, by the paths it looks for."""
    try:
        listing = run("ldd", program)
    except CannotMake:  # it is static
        return []
    return [Path(path) for path in re.findall(r"(/\S+) \(0x", listing)]


# --- the archive --------------------------------------------------------------------------------


def cpio_entry(name: str, mode: int, data: bytes = b"") -> bytes:
    """A file of a cpio archive. Source: Linux, driver-api/early-userspace/buffer-format.rst."""
    fields = [0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def entries(tree: Path) -> Iterator[bytes]:
    """All that the root has: folders, before what is in them, and files."""
    files = {"init": INIT.encode(), "etc/fstab": b""}
    for program in PROGRAMS:
        for path in (program, *linked(program)):
            files[str(path).lstrip("/")] = path.read_bytes()
    modules = module_files(tree)
    files |= {f"modules.d/{path.name}": path.read_bytes() for path in modules}
    files["modules"] = "".join(f"/modules.d/{path.name}\n" for path in modules).encode()
    folders = {
        parent
        for name in (*files, *(f"{name}/x" for name in FOLDERS))
        for parent in Path(name).parents
    } - {Path()}
    for folder in sorted(folders):
        yield cpio_entry(str(folder), stat.S_IFDIR | 0o755)
    for name, data in files.items():
        yield cpio_entry(name, stat.S_IFREG | 0o755, data)
    yield cpio_entry("TRAILER!!!", 0)


def make(folder: Path) -> None:
    """Make folder anew, with `vmlinuz` and `initrd`; it appears when it is complete.

    Raises:
        CannotMake: a package or a program is missing.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        tree = fetch_kernel(Path(temporary))
        made = Path(temporary) / "made"
        made.mkdir()
        (kernel,) = (tree / "boot").glob("vmlinuz-*")
        shutil.copy(kernel, made / "vmlinuz")
        # Unpacking is work for an emulated processor; the best compression is hardly smaller.
        archive = gzip.compress(b"".join(entries(tree)), compresslevel=1)
        (made / "initrd").write_bytes(archive)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        made.rename(folder)


if __name__ == "__main__":
    try:
        make(Path(sys.argv[1]))
    except (CannotMake, OSError) as error:
        sys.exit(f"guest_image: {error}")
