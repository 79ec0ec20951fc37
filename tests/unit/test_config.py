"""The configuration file: what is wrong is named in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockd.config import read_config
from blockd.domain.errors import StartError

MINIMAL = """
[host]
zone = "xx-lab-1"
organization_id = "11111111-1111-4111-8111-111111111111"
default_project_id = "22222222-2222-4222-8222-222222222222"
[classes.sbs]
kind = "thin"
vg = "vg0"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "blockd.toml"
    path.write_text(text, "utf-8")
    return path


def test_minimal_file_has_defaults(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, MINIMAL))
    assert config.first_class == "sbs"
    assert config.trash.keep == 86400
    assert config.lvm.max_suspend == 10
    assert config.classes["sbs"].overcommit == 10


def test_thick_class_has_defaults(tmp_path: Path) -> None:
    text = MINIMAL + '[classes.slow]\nkind = "thick"\nvg = "vg1"\nreserve = "1GiB"\n'
    section = read_config(write(tmp_path, text)).classes["slow"]
    assert (section.reserve, section.chunk, section.max_snapshots) == (1024**3, 4096, 4)
    assert section.snapshot_size_percent == section.snapshot_grow_percent == 10
    assert section.snapshot_grow_at_percent == 70


def test_durations_are_text_or_seconds(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, MINIMAL + '[trash]\nkeep = "7d"\n[lvm]\nmax_suspend = 3'))
    assert (config.trash.keep, config.lvm.max_suspend) == (7 * 86400, 3)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("[trash]\nkept = 1", "trash.kept: unknown option"),
        ("[trsh]\nkeep = 1", "trsh: unknown option"),
        ('[trash]\nkeep = "soon"', "trash.keep: 'soon' is not a duration"),
        ("[trash]\nkeep = -1", "trash.keep"),
        ("[lvm]\nmax_suspend = 0", "lvm.max_suspend"),
        ('[lvm]\nudev = "maybe"', "lvm.udev"),
        ("[classes.other]\nkind = 'thin'\nvg = 'vg0'", "a volume group of its own"),
        ("[classes.other]\nkind = 'magic'\nvg = 'vg1'", "classes.other.kind"),
        ("[classes.other]\nkind = 'thin'\nvg = '../../etc'", "classes.other.vg"),
        ("[classes.b]\nkind = 'thick'\nvg = 'v'\nchunk = '5KiB'", "a power of two from 4KiB"),
        (
            "[classes.b]\nkind = 'thick'\nvg = 'v'\nchunk = '1MiB'",
            "b.chunk: a power of two from 4KiB",
        ),
        ("[classes.b]\nkind = 'thick'\nvg = 'v'\npool = 'p'", "classes.b.pool: unknown option"),
        ("[classes.b]\nvg = 'v'", "classes.b.kind: "),
        ("[classes.b]\nkind = 'thick'\nvg = 'vg0'", "a volume group of its own"),
        ("[classes.'Bad Name']\nkind = 'thin'\nvg = 'vg1'", "classes"),
        ('[libvirt]\nuris = ["test:///a b"]', "libvirt.uris"),
        ('[libvirt]\nuris = ["test:///a\\nb"]', "libvirt.uris"),
        ("not toml at all", "Expected"),
    ],
)
def test_fault_is_named_in_one_line(tmp_path: Path, more: str, said: str) -> None:
    path = write(tmp_path, f"{MINIMAL}\n{more}\n")
    with pytest.raises(StartError) as refused:
        read_config(path)
    line = str(refused.value)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "\n" not in line


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="No such file"):
        read_config(tmp_path / "none.toml")


def test_default_class_must_exist(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"there is no \[classes.gone\]"):
        read_config(write(tmp_path, 'default_class = "gone"\n' + MINIMAL))
