"""The configuration file: TOML, checked as a whole before anything starts.

`etc/blockd.toml` shows every option with its default, unit, and why one would change it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from blockd.domain.errors import StartError
from blockd.domain.pool_growth import MOST_METADATA_BYTES
from blockd.domain.units import GIB, MIB, parse_duration_s, parse_size

_UUID = Annotated[str, BeforeValidator(lambda text: str(UUID(text)))]
_LVM_NAME = Annotated[str, Field(pattern=r"^[A-Za-z0-9_+.][A-Za-z0-9_+.-]{0,60}$")]


def _seconds(value: object) -> object:
    return parse_duration_s(value) if isinstance(value, str) else value


#: A duration as text (`30s`, `24h`) or a number of seconds.
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0)]


def _bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


#: A size as text (`16MiB`, `10TB`) or a number of bytes.
Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=0)]


def _chunk(size_bytes: int) -> int:
    """What lvcreate(8) takes for a snapshot's chunk."""
    if size_bytes not in (4096 << shift for shift in range(8)):
        raise ValueError("a power of two from 4KiB to 512KiB")
    return size_bytes


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Project(_Section):
    """A project that resources may belong to."""

    id: _UUID
    name: str = ""


class HostSection(_Section):
    """Whose host this is."""

    zone: str = Field(pattern=r"^[a-z]{2}-[a-z]{3,7}-[0-9]{1,2}$")
    organization_id: _UUID
    default_project_id: _UUID
    projects: tuple[Project, ...] = ()


class ApiSection(_Section):
    """Where the API listens."""

    socket: Path = Path("/run/blockd/blockd.sock")
    group: str = "blockd"


class TcpSection(_Section):
    """Where the API listens for SDKs and Terraform; without the section it does not."""

    listen: str = Field(pattern=r"^.+:[0-9]{1,5}$")
    certificate: Path
    key: Path
    tokens: Path


class CatalogSection(_Section):
    """Where blockd remembers."""

    path: Path = Path("/var/lib/blockd/catalog.sqlite")


class LvmSection(_Section):
    """How LVM is run."""

    devices: tuple[str, ...] = ()
    system_dir: Path = Path("/run/blockd/lvm")
    udev: Literal["auto", "yes", "no"] = "auto"
    reserved_memory_kib: int = Field(8192, ge=0)
    command_timeout: Seconds = 120.0
    max_suspend: Seconds = Field(10.0, gt=0, le=60)


class ThinClassSection(_Section):
    """A class of thin volumes in one pool."""

    kind: Literal["thin"]
    vg: _LVM_NAME
    pool: _LVM_NAME = "pool"
    overcommit: float = Field(10.0, gt=0)
    high_water_percent: float = Field(95.0, gt=0, le=100)
    low_water_percent: float = Field(80.0, gt=0, le=100)
    extend_percent: float = Field(20.0, ge=0, le=1000)
    extend_to: Bytes = 0
    metadata_low_water_percent: float = Field(70.0, gt=0, le=100)
    metadata_extend_percent: float = Field(50.0, ge=0, le=1000)
    metadata_extend_to: Bytes = Field(MOST_METADATA_BYTES, gt=0, le=MOST_METADATA_BYTES)


class ThickClassSection(_Section):
    """A class of thick volumes with classic snapshots, in a volume group."""

    kind: Literal["thick"]
    vg: _LVM_NAME
    reserve: Bytes = 0
    max_snapshots: int = Field(4, ge=1, le=64)
    snapshot_size_percent: float = Field(10.0, gt=0, le=100)
    snapshot_size_least: Bytes = GIB
    snapshot_grow_at_percent: float = Field(70.0, ge=10, le=95)
    snapshot_grow_percent: float = Field(10.0, gt=0, le=100)
    chunk: Annotated[Bytes, AfterValidator(_chunk)] = 4096


ClassSection = Annotated[ThinClassSection | ThickClassSection, Field(discriminator="kind")]


class TrashSection(_Section):
    """How long deleted things can be brought back."""

    keep: Seconds = 86400.0
    policy: Literal["refuse", "trash", "expire"] = "trash"


class ObjectStorageSection(_Section):
    """The S3 server that snapshots are exported to and imported from."""

    endpoint: str = Field(pattern=r"^https?://[^/?#@]+/?$")
    region: str = Field("us-east-1", pattern=r"^[a-z0-9-]{1,63}$")
    style: Literal["path", "virtual"] = "path"
    ca_file: Path | None = None
    credentials: Path | None = None


class TransfersSection(_Section):
    """How exports and imports are carried out."""

    concurrency: int = Field(2, ge=1, le=64)
    parallel: int = Field(4, ge=1, le=64)
    part_size: Bytes = Field(16 * MIB, ge=5 * MIB, le=1024 * MIB)
    max_parts: int = Field(10_000, ge=2, le=10_000)
    max_import_size: Bytes = 10 * 1000**4
    bandwidth: Bytes = 0
    scratch: Path = Path("/var/lib/blockd/scratch")
    max_scratch: Bytes = 1024 * MIB
    patience: Seconds = Field(600.0, gt=0)
    memory: Bytes = Field(1024 * MIB, ge=128 * MIB)
    keep_jobs: Seconds = 7 * 86400.0


class BackupsSection(_Section):
    """Backups of the metadata of LVM and of thin pools."""

    folder: Path | None = None
    keep: int = Field(8, ge=1, le=1000)


class LibvirtSection(_Section):
    """Whose guests use volumes."""

    uris: tuple[Annotated[str, Field(pattern=r"^[a-z][a-z0-9+]*://\S*$")], ...] = ()
    detach_timeout: Seconds = Field(30.0, gt=0)
    max_freeze: Seconds = Field(10.0, gt=0, le=60)
    agent_timeout: Seconds = Field(5.0, ge=1, le=60)


class LogSection(_Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class DaemonSection(_Section):
    """The daemon itself."""

    stop_timeout: Seconds = 30.0
    examine_at_start: bool = True


class Config(_Section):
    """The whole file."""

    host: HostSection
    api: ApiSection = ApiSection()
    tcp: TcpSection | None = None
    catalog: CatalogSection = CatalogSection()
    lvm: LvmSection = LvmSection()
    classes: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,15}$")], ClassSection] = Field(
        min_length=1
    )
    default_class: str | None = None
    trash: TrashSection = TrashSection()
    object_storage: ObjectStorageSection | None = None
    transfers: TransfersSection = TransfersSection()
    libvirt: LibvirtSection = LibvirtSection()
    backups: BackupsSection = BackupsSection()
    log: LogSection = LogSection()
    daemon: DaemonSection = DaemonSection()

    @property
    def first_class(self) -> str:
        """The class of volumes that ask for none."""
        return self.default_class or next(iter(self.classes))

    @property
    def backup_folder(self) -> Path:
        """Where backups are kept: beside the catalog, unless another place is named."""
        return self.backups.folder or self.catalog.path.parent / "backups"


def read_config(path: Path) -> Config:
    """Read and check the file.

    Raises:
        StartError: one line that names the file, the option and the fault.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
        config = Config.model_validate(document)
    except OSError as err:
        raise StartError(f"{path}: {err.strerror}") from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as err:
        raise StartError(f"{path}: {err}") from err
    except ValidationError as err:
        raise StartError(f"{path}: {_first_fault(err)}") from err
    vgs = [section.vg for section in config.classes.values()]
    if len(set(vgs)) < len(vgs):
        raise StartError(f"{path}: classes: each class needs a volume group of its own")
    if config.first_class not in config.classes:
        raise StartError(f"{path}: default_class: there is no [classes.{config.default_class}]")
    return config


def _first_fault(error: ValidationError) -> str:
    faults = [
        (_place(fault["loc"], fault["type"]), fault["type"], fault["msg"])
        for fault in error.errors()
    ]
    faults.sort(key=lambda fault: fault[1] != "extra_forbidden")  # a misspelling explains the rest
    where, kind, message = faults[0]
    said = "unknown option" if kind == "extra_forbidden" else message.removeprefix("Value error, ")
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{where}: {said}{more}"


def _place(path: tuple[int | str, ...], fault: str) -> str:
    """The option as it stands in the file; pydantic puts a class's kind into the path."""
    parts = [str(part) for part in path]
    if parts[0] == "classes":
        del parts[2:3]
        parts += ["kind"] if fault.startswith("union_tag") else []
    return ".".join(parts)
