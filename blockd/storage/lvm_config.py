"""blockd's own LVM configuration, so that the host's is neither read nor changed.

Source: lvm.conf(5), lvmconfig --type full; figures and traps in docs/decisions/0002-lvm-config.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

#: The kernel raises an event when a pool's data are used beyond this, once after each change that
#: LVM makes: a last chance to extend it. LVM makes nothing new in a pool beyond it, so it cannot be
#: the low-water mark (docs/decisions/0019-pool-guard.md).
POOL_MARK_PERCENT = 98


def write_lvm_config(
    directory: Path,
    devices: Sequence[str],
    *,
    udev: bool,
    reserved_memory_kib: int,
    pool_mark_percent: int = POOL_MARK_PERCENT,
) -> None:
    """Write `lvm.conf` into `directory` (for LVM_SYSTEM_DIR).

    Args:
        devices: paths of the physical volumes; nothing else is opened.
        udev: whether udevd runs, and so makes nodes that LVM must wait for.
        reserved_memory_kib: memory that each command locks.
        pool_mark_percent: see `POOL_MARK_PERCENT`; 100: no mark.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    accept = [f'"a|^{re.escape(device)}$|"' for device in devices]
    filters = ", ".join([*accept, '"r|.*|"'])
    text = _TEMPLATE.format(
        filters=filters,
        udev=int(udev),
        reserved_memory_kib=reserved_memory_kib,
        pool_mark_percent=pool_mark_percent,
    )
    # Renamed into place: a running command must never read half of it.
    fresh = directory / "lvm.conf.new"
    fresh.write_text(text, "utf-8")
    fresh.rename(directory / "lvm.conf")


_TEMPLATE = """\
# Written by blockd at every start; changes here are lost.
devices {{
    use_devicesfile = 0
    global_filter = [ {filters} ]
    scan_lvs = 0                        # what is inside volumes is none of our business
    obtain_device_list_from_udev = 0
    external_device_info_source = "none"
    hints = "none"
    multipath_component_detection = 0
    md_component_detection = 0
}}
global {{
    use_aio = 0                         # io_destroy takes 34 of the 45 ms of a command with aio
    use_lvmpolld = 0
    event_activation = 0
    thin_check_options = [ "-q", "--clear-needs-check-flag" ]   # a check that passed is enough
}}
backup {{
    backup = 0                          # an archive without bound makes every command slower
    archive = 0
}}
activation {{
    udev_sync = {udev}
    udev_rules = {udev}
    verify_udev_operations = 0
    monitoring = 0
    reserved_memory = {reserved_memory_kib}
    reserved_stack = 64
    thin_pool_autoextend_threshold = {pool_mark_percent}
    snapshot_autoextend_threshold = 100
}}
allocation {{
    thin_pool_zero = 1                  # or new volumes would show old bytes
}}
"""
