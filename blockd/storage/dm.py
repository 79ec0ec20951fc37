"""Device-mapper through its ioctls: no process, no node, no guess.

Devices are always named by their uuid, which we choose and nobody else uses, so that nothing that
is not ours can be hit by a name.

Source: Linux, include/uapi/linux/dm-ioctl.h (interface 4.x); admin-guide/device-mapper/.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from blockd.domain.effects import SideEffects
from blockd.domain.errors import StartError, StorageError

_CONTROL = "/dev/mapper/control"
_HEADER: Final = struct.Struct("=3I I I I i I I I Q 128s 129s 7x")
_TARGET: Final = struct.Struct("=Q Q i I 16s")
_NAME_ENTRY: Final = struct.Struct("=Q I")

_LIST, _CREATE, _REMOVE, _SUSPEND, _STATUS, _LOAD, _CLEAR, _TABLE = 2, 3, 4, 6, 7, 9, 10, 12
_MESSAGE = 14

_READONLY_FLAG = 1 << 0
_SUSPEND_FLAG = 1 << 1
_STATUS_TABLE_FLAG = 1 << 4
_ACTIVE_PRESENT_FLAG = 1 << 5
_BUFFER_FULL_FLAG = 1 << 8
_SKIP_LOCKFS_FLAG = 1 << 10
_NOFLUSH_FLAG = 1 << 11

_SMALL_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """What the kernel says of a device; `major` and `minor` name it in tables."""

    name: str
    uuid: str
    major: int
    minor: int
    open_count: int
    suspended: bool
    has_table: bool
    read_only: bool = False

    @property
    def number(self) -> str:
        """`major:minor`."""
        return f"{self.major}:{self.minor}"


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a table or of a status: `length_sectors` of 512 bytes from `start_sector`."""

    start_sector: int
    length_sectors: int
    kind: str
    params: str


class _Fields(NamedTuple):
    """`struct dm_ioctl`, field by field."""

    major: int
    minor: int
    patch: int
    data_size: int
    data_start: int
    target_count: int
    open_count: int
    flags: int
    event_nr: int
    padding: int
    dev: int
    name: bytes
    uuid: bytes


class DeviceMapper:
    """One open control device. Methods block: those that wait for I/O belong in a thread.

    Raises of all methods:
        StorageError: the ioctl failed; the message names device and reason.
    """

    def __init__(self, effects: SideEffects) -> None:
        """Raises StartError when there is no device-mapper, or no permission."""
        self._effects = effects
        try:
            self._control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        except OSError as err:
            raise StartError(
                f"{_CONTROL}: {err.strerror}: load dm-mod, and run blockd as root"
            ) from err

    def close(self) -> None:
        """Close the control device."""
        os.close(self._control)

    def devices(self, name_prefix: str) -> list[DeviceInfo]:
        """All devices whose name begins so."""
        found = []
        for name in self._names():
            if name.startswith(name_prefix):
                info = self._info_by(name=name)
                if info is not None:
                    found.append(info)
        return found

    def info(self, uuid: str) -> DeviceInfo | None:
        """The device with this uuid, None if there is none."""
        return self._info_by(uuid=uuid)

    def info_of_name(self, name: str) -> DeviceInfo | None:
        """The device with this name, None if there is none."""
        return self._info_by(name=name)

    def info_of_number(self, number: str) -> DeviceInfo | None:
        """The device `major:minor`, None if it is none of device-mapper's."""
        major, _, minor = number.partition(":")
        return self._info_by(dev=os.makedev(int(major), int(minor)))

    def table(self, uuid: str) -> list[Target]:
        """The live table."""
        return self._targets(uuid, _STATUS_TABLE_FLAG)

    def status(self, uuid: str) -> list[Target]:
        """The live status, without making the target write its metadata first."""
        return self._targets(uuid, _NOFLUSH_FLAG)

    def create(self, name: str, uuid: str) -> None:
        """Make a device without a table."""
        with self._effects.around("dm create"):
            self._call(_CREATE, name=name, uuid=uuid)

    def load(
        self, uuid: str, length_sectors: int, kind: str, params: str, *, read_only: bool = False
    ) -> None:
        """Put a table of one target into the inactive slot; `resume` makes it live.

        Args:
            read_only: what lies under it is opened for reading alone, and the device, once the
                table is live, refuses writes (Linux, dm-ioctl.c, `get_mode`, `do_resume`).
        """
        text = params.encode() + b"\0"
        text += b"\0" * (-len(text) % 8)
        target = _TARGET.pack(0, length_sectors, 0, _TARGET.size + len(text), kind.encode())
        with self._effects.around("dm load"):
            flags = _READONLY_FLAG if read_only else 0
            self._call(_LOAD, uuid=uuid, flags=flags, payload=target + text, targets=1)

    def clear(self, uuid: str) -> None:
        """Empty the inactive slot."""
        with self._effects.around("dm clear"):
            self._call(_CLEAR, uuid=uuid)

    def suspend(self, uuid: str, *, freeze: bool) -> None:
        """Stop the device after what is in flight; `freeze` also a file system mounted on it."""
        flags = _SUSPEND_FLAG | (0 if freeze else _SKIP_LOCKFS_FLAG)
        with self._effects.around("dm suspend"):
            self._call(_SUSPEND, uuid=uuid, flags=flags)

    def resume(self, uuid: str) -> None:
        """Let the device go on, with the table of the inactive slot if there is one."""
        with self._effects.around("dm resume"):
            self._call(_SUSPEND, uuid=uuid)

    def message(self, uuid: str, text: str) -> None:
        """Tell the target at sector 0 something, e.g. `reserve_metadata_snap`."""
        # struct dm_target_msg: the sector, then the text.
        payload = struct.pack("=Q", 0) + text.encode() + b"\0"
        with self._effects.around(f"dm message {text}"):
            self._call(_MESSAGE, uuid=uuid, payload=payload + b"\0" * (-len(payload) % 8))

    def remove(self, uuid: str) -> bool:
        """Remove the device.

        Returns:
            False when there was none.

        Raises:
            DeviceOpen: somebody holds it open.
        """
        with self._effects.around("dm remove"):
            try:
                self._call(_REMOVE, uuid=uuid)
            except StorageError as err:
                match getattr(err.__cause__, "errno", None):
                    case errno.ENXIO:
                        return False
                    case errno.EBUSY:
                        raise DeviceOpen(uuid) from err
                raise
        return True

    def _info_by(self, *, name: str = "", uuid: str = "", dev: int = 0) -> DeviceInfo | None:
        try:
            fields, _ = self._call(_STATUS, name=name, uuid=uuid, dev=dev)
        except StorageError as err:
            if getattr(err.__cause__, "errno", None) == errno.ENXIO:
                return None
            raise
        return DeviceInfo(
            _text(fields.name),
            _text(fields.uuid),
            os.major(fields.dev),
            os.minor(fields.dev),
            fields.open_count,
            bool(fields.flags & _SUSPEND_FLAG),
            bool(fields.flags & _ACTIVE_PRESENT_FLAG),
            bool(fields.flags & _READONLY_FLAG),
        )

    def _names(self) -> Iterator[str]:
        _, data = self._call(_LIST)
        offset = 0
        while True:
            dev, step = _NAME_ENTRY.unpack_from(data, offset)
            if not dev:
                return
            yield _text(data[offset + _NAME_ENTRY.size :])
            if not step:
                return
            offset += step

    def _targets(self, uuid: str, flags: int) -> list[Target]:
        fields, data = self._call(_TABLE, uuid=uuid, flags=flags)
        targets, offset = [], 0
        for _ in range(fields.target_count):
            start, length, _, following, kind = _TARGET.unpack_from(data, offset)
            params = _text(data[offset + _TARGET.size :])
            targets.append(Target(start, length, _text(kind), params))
            offset = following
        return targets

    def _call(
        self,
        command: int,
        *,
        name: str = "",
        uuid: str = "",
        dev: int = 0,
        flags: int = 0,
        payload: bytes = b"",
        targets: int = 0,
    ) -> tuple[_Fields, bytes]:
        """One ioctl. Answers the header's fields and the data behind it."""
        size = _SMALL_BYTES if command in (_LIST, _TABLE) else _HEADER.size + len(payload)
        number = 0xC138FD00 | command  # _IOWR(DM_IOCTL, command, struct dm_ioctl), 312 bytes
        while True:
            buffer = bytearray(size)
            asked = _Fields(
                *(4, 0, 0),
                *(size, _HEADER.size, targets),
                *(0, flags, 0, 0),
                dev,
                name.encode(),
                uuid.encode(),
            )
            _HEADER.pack_into(buffer, 0, *asked)
            buffer[_HEADER.size : _HEADER.size + len(payload)] = payload
            try:
                fcntl.ioctl(self._control, number, buffer)
            except OSError as err:
                device = name or uuid or str(dev)
                raise StorageError(
                    f"device-mapper: {_VERBS[command]} {device}: {err.strerror}"
                ) from err
            fields = _Fields(*_HEADER.unpack_from(buffer, 0))
            if not fields.flags & _BUFFER_FULL_FLAG:
                return fields, bytes(buffer[fields.data_start :])
            size *= 4


_VERBS: Final = {
    _LIST: "list",
    _CREATE: "create",
    _REMOVE: "remove",
    _SUSPEND: "suspend or resume",
    _STATUS: "ask for",
    _LOAD: "load a table into",
    _CLEAR: "clear the table of",
    _TABLE: "read the table of",
    _MESSAGE: "send a message to",
}


class DeviceOpen(StorageError):
    """The kernel keeps the device: it is open."""

    def __init__(self, uuid: str) -> None:
        super().__init__(f"device-mapper: {uuid} is open")


@contextmanager
def open_device_mapper(effects: SideEffects) -> Iterator[DeviceMapper]:
    """The control device for the length of the block."""
    mapper = DeviceMapper(effects)
    try:
        yield mapper
    finally:
        mapper.close()


def lv_device_name(vg: str, lv: str) -> str:
    """The name LVM gives to the device of `vg/lv`: hyphens doubled (lvm2, libdm)."""
    return f"{vg.replace('-', '--')}-{lv.replace('-', '--')}"


def lv_of_device_name(vg: str, name: str) -> str | None:
    """The inverse of `lv_device_name` within one volume group."""
    prefix = vg.replace("-", "--") + "-"
    return name[len(prefix) :].replace("--", "-") if name.startswith(prefix) else None


def _text(data: bytes) -> str:
    return data.split(b"\0", 1)[0].decode(errors="surrogateescape")
