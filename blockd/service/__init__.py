"""What blockd decides: the verbs of the API over the catalog and the storage classes."""

from __future__ import annotations

from dataclasses import dataclass

from blockd.service.answers import Answers
from blockd.service.attachments import Attachments
from blockd.service.backups import Backups
from blockd.service.doctor import Doctor
from blockd.service.events import Events
from blockd.service.groups import Groups
from blockd.service.host import Host
from blockd.service.pool_repair import PoolRepair
from blockd.service.snapshots import Snapshots
from blockd.service.transfers import Transfers
from blockd.service.volumes import Volumes


@dataclass(frozen=True, slots=True)
class Service:
    """All that the API may call."""

    volumes: Volumes
    snapshots: Snapshots
    groups: Groups
    host: Host
    answers: Answers
    transfers: Transfers
    events: Events
    doctor: Doctor
    backups: Backups
    pool_repair: PoolRepair
    attachments: Attachments
