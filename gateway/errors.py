"""What can go wrong, told in the codes of the wire contract.

HotindexError
├── InvalidMessage          invalid_message
├── UnknownAction           unknown_action
├── InvalidVector           invalid_vector
├── InvalidFilter           invalid_filter
├── InvalidArgument         invalid_argument
├── NotFound                not_found
├── Conflict                conflict              version
├── TooLarge                too_large
├── RateLimited             rate_limited          retry_after_s
├── Overloaded              overloaded            retry_after_s
├── EmbeddingUnavailable    embedding_unavailable retry_after_s, where it is known
├── StorageUnavailable      storage_unavailable
├── Unauthorized            unauthorized
├── Forbidden               forbidden
└── Internal                internal              incident
StartupError                the process can't start; never sent to a client

A message is one sentence for people; it names the field and the value at fault.
"""

from typing import ClassVar


class HotindexError(Exception):
    """An error its cause can be told of. `field` is the path of the value at fault, where there is one."""

    code: ClassVar[str]
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class InvalidMessage(HotindexError):
    code = "invalid_message"


class UnknownAction(HotindexError):
    code = "unknown_action"


class InvalidVector(HotindexError):
    code = "invalid_vector"


class InvalidFilter(HotindexError):
    code = "invalid_filter"


class InvalidArgument(HotindexError):
    code = "invalid_argument"


class NotFound(HotindexError):
    code = "not_found"


class Conflict(HotindexError):
    """The document has another version than the writer expected (`version` is the one it has), or the collection other
    settings.
    """

    code = "conflict"

    def __init__(self, message: str, *, version: int | None = None, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.version = version


class TooLarge(HotindexError):
    code = "too_large"


class _TryLater(HotindexError):
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class RateLimited(_TryLater):
    code = "rate_limited"


class Overloaded(_TryLater):
    code = "overloaded"


class EmbeddingUnavailable(HotindexError):
    code = "embedding_unavailable"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None, field: str | None = None) -> None:
        super().__init__(message, field=field)
        self.retry_after_s = retry_after_s


class StorageUnavailable(HotindexError):
    code = "storage_unavailable"
    retryable = True


class Unauthorized(HotindexError):
    code = "unauthorized"


class Forbidden(HotindexError):
    code = "forbidden"


class Internal(HotindexError):
    """A fault of ours; `incident` stands in the log beside the traceback."""

    code = "internal"

    def __init__(self, incident: str) -> None:
        super().__init__(f"internal error, logged as {incident}")
        self.incident = incident


class StartupError(Exception):
    """Why the gateway can't start, in one line."""
