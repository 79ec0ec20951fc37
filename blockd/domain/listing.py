"""What a list request asks for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

DEFAULT_PAGE_SIZE = 20
MAX_PAGE_SIZE = 100


class OrderBy(StrEnum):
    """The API's orders."""

    CREATED_AT_ASC = "created_at_asc"
    CREATED_AT_DESC = "created_at_desc"
    NAME_ASC = "name_asc"
    NAME_DESC = "name_desc"


@dataclass(frozen=True, slots=True)
class Page:
    """Page `number` (from 1) of `size` (1 to 100) items in `order`."""

    number: int = 1
    size: int = DEFAULT_PAGE_SIZE
    order: OrderBy = OrderBy.CREATED_AT_ASC


@dataclass(frozen=True, slots=True)
class VolumeFilter:
    """All given conditions hold together; `tags` and `ids` are any-of; `name` is a prefix."""

    project_id: str | None = None
    organization_id: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    volume_type: str | None = None
    product_resource_id: str | None = None
    include_deleted: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotFilter:
    """As `VolumeFilter`; `volume_id` is the volume the snapshots were taken of."""

    project_id: str | None = None
    organization_id: str | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    volume_id: str | None = None
    include_deleted: bool = False
