"""From what pydantic says to what the API says: `InvalidArguments`."""

from __future__ import annotations

from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from blockd.domain.errors import BadArgument, InvalidArguments

_Model = TypeVar("_Model", bound=BaseModel)

_REASONS: Final = frozenset({"unknown", "required", "format", "constraint"})
_OF_PYDANTIC: Final = {
    "missing": ("required", "value is required"),
    "model_type": ("format", "value must be an object"),
    "string_unicode": ("format", "value must be valid Unicode text"),
}


def validated(model: type[_Model], values: object) -> _Model:
    """`values` as a `model`.

    Raises:
        InvalidArguments: every fault, with the dotted name of its argument.
    """
    try:
        return model.model_validate(values)
    except ValidationError as err:
        raise InvalidArguments([_fault(d) for d in err.errors(include_url=False)]) from None


def _fault(detail: ErrorDetails) -> BadArgument:
    # List positions are left out of the name: the API names fields.
    name = ".".join(part for part in detail["loc"] if isinstance(part, str)) or "body"
    if detail["type"] in _REASONS:
        return BadArgument(name, detail["type"], detail["msg"])
    reason, help_text = _OF_PYDANTIC.get(detail["type"], ("format", detail["msg"]))
    return BadArgument(name, reason, help_text)
