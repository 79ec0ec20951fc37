"""The parameters of requests: ids in the path, filters, pages and orders in the query string."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeVar

from aiohttp import web
from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema

from blockd.api.faults import validated
from blockd.api.scalars import Uuid, is_uuid, out_of_bounds, wrong_format
from blockd.domain.errors import InvalidArguments
from blockd.domain.listing import (
    DEFAULT_PAGE_SIZE,
    MAX_PAGE_SIZE,
    OrderBy,
    Page,
    SnapshotFilter,
    VolumeFilter,
)

#: Go's strconv.ParseBool: Go sends `true`, Python `True`.
_BOOLEANS: Final = {
    **dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True),
    **dict.fromkeys(("0", "f", "F", "FALSE", "false", "False"), False),
}
_INTEGER = re.compile(r"(-?)0*([0-9]+)")
#: No list is longer; and page times size still fits into 64 bits.
_LAST_PAGE: Final = 10**15


def _integer(value: str) -> int:
    match = _INTEGER.fullmatch(value)
    if match is None:
        raise wrong_format("value must be an integer")
    # Python refuses to read thousands of digits; what they say is known from a few.
    return int(match[1] + match[2][:20])


def _page(value: str) -> int:
    if (number := _integer(value)) <= 0:
        raise out_of_bounds("value must be greater than 0")
    return min(number, _LAST_PAGE)


def _page_size(value: str) -> int:
    if not 1 <= (size := _integer(value)) <= MAX_PAGE_SIZE:
        raise out_of_bounds(f"value must be between 1 and {MAX_PAGE_SIZE}, inclusive")
    return size


def _order(value: str) -> OrderBy:
    try:
        return OrderBy(value)
    except ValueError:
        raise wrong_format(f"value must be one of {', '.join(OrderBy)}") from None


def _boolean(value: str) -> bool:
    try:
        return _BOOLEANS[value]
    except KeyError:
        raise wrong_format("value must be true or false") from None


_PageNumber = Annotated[
    int, BeforeValidator(_page), WithJsonSchema({"type": "integer", "minimum": 1})
]
_PageSize = Annotated[
    int,
    BeforeValidator(_page_size),
    WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}),
]
_Order = Annotated[
    OrderBy, BeforeValidator(_order), WithJsonSchema({"type": "string", "enum": list(OrderBy)})
]
Flag = Annotated[bool, BeforeValidator(_boolean), WithJsonSchema({"type": "boolean"})]


class Paging(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    page: _PageNumber = 1
    page_size: _PageSize = DEFAULT_PAGE_SIZE


class Listing(Paging):
    """What lists of volumes and of snapshots have in common."""

    order_by: _Order = OrderBy.CREATED_AT_ASC
    project_id: Uuid | None = None
    organization_id: Uuid | None = None
    name: str | None = None
    tags: tuple[str, ...] = ()
    include_deleted: Flag = False

    def cut(self) -> Page:
        """The page that is asked for."""
        return Page(self.page, self.page_size, self.order_by)


class VolumeListing(Listing):
    """All conditions hold together; `tags` and `volume_ids` are any-of; `name` is a prefix."""

    volume_ids: tuple[Uuid, ...] = ()
    volume_type: str | None = None
    product_resource_id: str | None = None

    def condition(self) -> VolumeFilter:
        """The filter as the service takes it."""
        return VolumeFilter(
            project_id=self.project_id,
            organization_id=self.organization_id,
            name=self.name,
            tags=self.tags,
            ids=self.volume_ids,
            volume_type=self.volume_type,
            product_resource_id=self.product_resource_id,
            include_deleted=self.include_deleted,
        )


class SnapshotListing(Listing):
    """As `VolumeListing`; `volume_id` is the volume that the snapshots were taken of."""

    volume_id: Uuid | None = None

    def condition(self) -> SnapshotFilter:
        """The filter as the service takes it."""
        return SnapshotFilter(
            project_id=self.project_id,
            organization_id=self.organization_id,
            name=self.name,
            tags=self.tags,
            volume_id=self.volume_id,
            include_deleted=self.include_deleted,
        )


_Parameters = TypeVar("_Parameters", bound=BaseModel)

#: Parameters that are given once per value: `tags=a&tags=b`.
_REPEATED: Final = frozenset({"tags", "volume_ids"})
#: Clients send texts that they leave unset as empty; an empty number or flag is a mistake.
_NEVER_EMPTY: Final = frozenset({"page", "page_size", "include_deleted", "follow"})


def parse_query(model: type[_Parameters], request: web.Request) -> _Parameters:
    """The query string as a `model`; of a single-valued parameter the last occurrence counts.

    Raises:
        InvalidArguments: every fault, under the parameter's name.
    """
    values: dict[str, str | list[str]] = {}
    for key, value in request.query.items():
        if not value and key not in _NEVER_EMPTY:
            continue
        if key in _REPEATED:
            several = values.setdefault(key, [])
            if isinstance(several, list):
                several.append(value)
        else:
            values[key] = value
    return validated(model, values)


def resource_id(request: web.Request, argument: str) -> str:
    """The id in the path, in lower case.

    Args:
        argument: `volume_id` or `snapshot_id`, as the route names it.

    Raises:
        InvalidArguments: it is no UUID.
    """
    value = request.match_info[argument]
    if not is_uuid(value):
        raise InvalidArguments.one(argument, "format", "value must be a valid UUID")
    return value.lower()
