"""What a person is told when something does not work, and the exit code that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

from blockd.domain.units import format_size


class Code(IntEnum):
    """Exit codes; `blockctl --help` documents them."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMED_OUT = 4
    REFUSED = 5
    UNREACHABLE = 6
    DENIED = 7
    INTERRUPTED = 130


#: For an answer whose `type` says nothing more exact (product, section 2).
CODE_OF_STATUS: Mapping[int, Code] = {
    400: Code.USAGE,
    401: Code.DENIED,
    403: Code.DENIED,
    404: Code.NOT_FOUND,
    409: Code.REFUSED,
    410: Code.NOT_FOUND,
    412: Code.REFUSED,
    413: Code.USAGE,
    423: Code.REFUSED,
    429: Code.REFUSED,
}


class Failure(Exception):
    """The end of a command. `text` is one line: the thing, the reason, the next step."""

    def __init__(self, code: Code, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


def usage(text: str) -> Failure:
    """An argument that cannot be meant."""
    return Failure(Code.USAGE, text)


def explain(
    status: int, body: Mapping[str, Any], labels: Mapping[str, str], request_id: str
) -> Failure:
    """Turn an error answer into a line for people.

    Args:
        status: HTTP status, 400 or above.
        body: the answer's JSON object (`type`, `message` and the fields of that type).
        labels: what the command calls the resources it has met, by id: `volume "data"`.
        request_id: for the log, where only the log can tell more; may be empty.
    """
    code = CODE_OF_STATUS.get(status, Code.FAILED)
    match body.get("type"):
        case "invalid_arguments" if body.get("details"):
            text = "; ".join(_fault(detail) for detail in body["details"])
        case "not_found" | "expired":
            text = f"there is no {_subject(body, labels)}"
        case "transient_state":
            state = str(body.get("current_state", "busy")).replace("_", " ")
            text = f"{_subject(body, labels)} is {state}: try again when that has ended"
        case "quotas_exceeded":
            code = Code.REFUSED
            text = body.get("help_message") or "; ".join(_quota(d) for d in body["details"])
        case "permissions_denied" | "denied_authentication":
            text = _not_permitted(body)
        case _:
            text = str(body.get("help_message") or body.get("message") or f"HTTP {status}")
    if status >= 500 and body.get("type") != "service_unavailable":
        where = f" (request {request_id})" if request_id else ""
        text = f"the daemon failed: {text}{where}: its log tells more: journalctl -u blockd"
    return Failure(code, relabel(text, labels))


def relabel(text: str, labels: Mapping[str, str]) -> str:
    """`text` with `volume <id>` replaced by `volume "data"` wherever we know the name."""
    for resource_id, label in labels.items():
        word = label.split(" ", 1)[0]
        text = text.replace(f"{word} {resource_id}", label)
    return text


def _subject(body: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    resource_id = str(body.get("resource_id", ""))
    return labels.get(resource_id) or f"{body.get('resource', 'resource')} {resource_id}".rstrip()


def _fault(detail: Mapping[str, Any]) -> str:
    """One bad argument; `from_empty.size` is for people just `size`, and said once."""
    name = str(detail.get("argument_name", "argument")).rsplit(".", 1)[-1]
    text = str(detail.get("help_message") or detail.get("reason"))
    return text if text.startswith(f"{name} ") else f"{name}: {text}"


def _not_permitted(body: Mapping[str, Any]) -> str:
    details = body.get("details") or []
    if any(detail.get("resource") == "api" for detail in details):
        return 'blockd does not let you in: join the group "blockd" and log in again, or use sudo'
    wanted = ", ".join(
        f"{detail.get('action')} this {detail.get('resource')}" for detail in details
    )
    return f"you are not permitted to {wanted or 'do this'}: ask an administrator of blockd"


def _quota(detail: Mapping[str, Any]) -> str:
    """One entry of `details`; `quota` and `current` are bytes or counts, told by `resource`."""
    what = str(detail.get("resource", "quota"))

    def number(key: str) -> str:
        value = detail.get(key)
        is_bytes = isinstance(value, int) and value >= 1024**2
        return format_size(value) if is_bytes and isinstance(value, int) else str(value)

    used = f" ({number('current')} of {number('quota')} taken)" if "quota" in detail else ""
    return f"no room left in {what}{used}: delete something or have it enlarged"
