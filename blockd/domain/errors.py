"""What can go wrong, as types. Fields carry the facts, the message is one line to act on.

The HTTP status of each stands in `blockd/api/errors.py`, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from blockd.domain.backup import Backup


class BlockdError(Exception):
    """The root of everything that blockd raises on purpose."""


@dataclass(frozen=True, slots=True)
class BadArgument:
    """One fault of a request. `reason` is `unknown`, `required`, `format` or `constraint`."""

    name: str
    reason: str
    help: str


class InvalidArguments(BlockdError):
    """The request says something that can never be done."""

    def __init__(self, details: Sequence[BadArgument]) -> None:
        super().__init__("; ".join(f"{d.name}: {d.help}" for d in details))
        self.details = tuple(details)

    @classmethod
    def one(cls, name: str, reason: str, help_text: str) -> InvalidArguments:
        """The usual case: a single fault."""
        return cls([BadArgument(name, reason, help_text)])


class NotFound(BlockdError):
    """There is no such resource, or the caller may not know of it."""

    def __init__(self, resource: str, resource_id: str) -> None:
        super().__init__(f"{resource} {resource_id} does not exist")
        self.resource, self.resource_id = resource, resource_id


class AuthenticationDenied(BlockdError):
    """The caller did not prove who he is. `reason` is `invalid_argument` or `not_found`."""

    def __init__(self, reason: str) -> None:
        super().__init__("send a token of this host in the header X-Auth-Token")
        self.reason = reason


class PermissionDenied(BlockdError):
    """The caller may not do this."""

    def __init__(self, resource: str, action: str) -> None:
        super().__init__(f"not permitted: {action} {resource}")
        self.resource, self.action = resource, action


class NoRoom(BlockdError):
    """A limit is reached; nothing was made. `quota` and `current` are bytes or counts."""

    def __init__(self, resource: str, quota: int, current: int, help_text: str) -> None:
        super().__init__(help_text)
        self.resource, self.quota, self.current = resource, quota, current


class PoolUnfit(NoRoom):
    """The pool takes no writes, and no erasing would change that."""


class AlreadyExists(BlockdError):
    """It exists, with other content."""

    def __init__(self, resource: str, resource_id: str, help_text: str) -> None:
        super().__init__(help_text)
        self.resource, self.resource_id = resource, resource_id


class TransientState(BlockdError):
    """Something is under way on this resource: wait and ask again."""

    def __init__(self, resource: str, resource_id: str, state: str) -> None:
        super().__init__(f"{resource} {resource_id} is {state}: wait until it is done")
        self.resource, self.resource_id, self.state = resource, resource_id, state


class WrongState(BlockdError):
    """Not possible in this status, and waiting will not change it."""

    def __init__(self, resource: str, resource_id: str, status: str, event: str) -> None:
        super().__init__(f"{resource} {resource_id} is {status}: {event} is not possible")
        self.resource, self.resource_id, self.status, self.event = (
            resource,
            resource_id,
            status,
            event,
        )


class PreconditionFailed(BlockdError):
    """`precondition` is one of the API's words: `resource_still_in_use`, `resource_not_usable`…"""

    def __init__(self, precondition: str, help_text: str) -> None:
        super().__init__(help_text)
        self.precondition = precondition


class InUse(PreconditionFailed):
    """The device of a volume, or of a snapshot, is open on this host."""

    def __init__(self, volume_id: str, verb: str, resource: str = "volume") -> None:
        super().__init__(
            "resource_still_in_use",
            f"{resource} {volume_id} is in use: unmount or detach it before you {verb} it",
        )
        self.volume_id = volume_id


class Unavailable(BlockdError):
    """Not now, and nothing was changed; later it can be done. One line for whoever asked."""


class CatalogUnavailable(Unavailable):
    """The catalog's file cannot be written or read; nothing of the change is kept."""


class StorageBusy(Unavailable):
    """A request's turn in a storage class did not come in time."""


class HostExhausted(Unavailable):
    """The host has no descriptor, process or memory left to begin something with."""


class HypervisorUnreachable(Unavailable):
    """libvirt does not answer; nothing is known of its guests just now."""


class GuestRefused(PreconditionFailed):
    """libvirt, or the guest, does not do it; the message names the domain and the reason."""

    def __init__(self, help_text: str) -> None:
        super().__init__("resource_not_usable", help_text)


class FreezeNotBegun(GuestRefused):
    """The agent does not take the command, as when somebody else has frozen the guest before."""


class StorageError(BlockdError):
    """The storage below failed; the message is the tool's own reason in one line."""


class StorageOverdue(StorageError):
    """A storage command outlived its deadline and goes on; its outcome is not known yet."""


class NoSpace(StorageError):
    """The volume group has no extents left for it; nothing was made."""


class GroupFailed(BlockdError):
    """Snapshots that were to be taken together were not; none of them is kept."""


class BackupFailed(StorageError):
    """A backup of metadata, or a part of it, could not be had. `kept` is what was, if anything."""

    def __init__(self, reason: str, kept: Backup | None = None) -> None:
        super().__init__(reason)
        self.kept = kept


class RollbackFailed(StorageError):
    """Undoing failed too. Keeps both."""

    def __init__(self, cause: BaseException, undo_error: BaseException) -> None:
        super().__init__(f"{cause}; and undoing it failed: {undo_error}")
        self.cause, self.undo_error = cause, undo_error


class ImageRefused(BlockdError):
    """An object is no image that may be imported; the message says why."""


class ObjectStoreError(BlockdError):
    """Object storage cannot do what is asked; the message names what is wrong and the next step."""


class StoreUnavailable(ObjectStoreError):
    """The server does not answer, or not as an S3 server; it was tried again for a while."""


class BucketUnfit(ObjectStoreError):
    """The bucket does not exist, lies in another region, or may not be used."""


class ObjectMissing(ObjectStoreError):
    """There is no such object."""

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"there is no object s3://{bucket}/{key}: see the key, or export first")


class ObjectChanged(ObjectStoreError):
    """The object was replaced or removed while it was being read."""

    def __init__(self, bucket: str, key: str) -> None:
        super().__init__(f"s3://{bucket}/{key} was replaced while it was being read: begin again")


class UploadGone(ObjectStoreError):
    """There is no such upload: completed, aborted, or its bucket removed."""


class StartError(BlockdError):
    """blockd cannot start; the message says what is missing and what to do, in one line."""
