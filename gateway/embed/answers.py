"""What an answer means: vectors, another try, a text that is refused, or settings that are wrong.

| status                            |                                                              |
|-----------------------------------|--------------------------------------------------------------|
| 2xx                               | vectors; Failed where they can't be read                     |
| 400, 413, 422                     | ContentRefused: the batch is too large, or a text is refused |
| 401, 403                          | KeyRefused                                                   |
| 408, 409, 424, 425, 429, 5xx      | Failed                                                       |
| 3xx, 404, any other               | Misconfigured                                                |

424 is what text-embeddings-inference answers when its back end fails.
"""

from __future__ import annotations

from gateway.embed import pace, wire
from gateway.embed.credentials import redacted
from gateway.embed.options import ServiceOptions
from gateway.embed.wire import OK, Embeddings, Response

RATE_LIMITED = 429

_REFUSES_CONTENT = frozenset({400, 413, 422})
_REFUSES_KEY = frozenset({401, 403})
_ANOTHER_TRY = frozenset({408, 409, 424, 425, RATE_LIMITED})


class Failed(Exception):
    """Another try may have it. `pause_s` is what the service says to wait, where it does."""

    def __init__(self, reason: str, *, pause_s: float | None = None, rate_limited: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause_s = pause_s
        self.rate_limited = rate_limited


class ContentRefused(Exception):
    """The service doesn't take these texts: one of them, or so many."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Misconfigured(Exception):
    """The settings and the service don't fit; no other try would change it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class KeyRefused(Misconfigured):
    pass


def judge(options: ServiceOptions, response: Response, texts: int, key: str | None, wall_s: float) -> Embeddings:
    """Return what `response` holds for `texts` texts. Raises Failed, ContentRefused, KeyRefused, Misconfigured."""
    status = response.status
    if status in OK:
        return _vectors(options, response, texts)
    if status in _REFUSES_KEY:
        # Without the service's words: they may hold a part of the key.
        raise KeyRefused(_key_refused(options, status))
    words = redacted(wire.reason(response.body), key)[: wire.SHOWN]
    said = f"{status}, {words!r}" if words else f"{status}"
    if status in _REFUSES_CONTENT:
        raise ContentRefused(said)
    if status in _ANOTHER_TRY or status >= 500:
        pause_s = pace.told_s(response.headers, wall_s, refused=True)
        raise Failed(f"it answered {said}", pause_s=pause_s, rate_limited=status == RATE_LIMITED)
    if 300 <= status < 400:
        target = redacted(response.headers.get("location", ""), key)[: wire.SHOWN]
        raise Misconfigured(
            f"the service at {options.url} redirects to {target!r} ({status}): check the setting {options.setting('url')}"
        )
    if status == 404:
        raise Misconfigured(
            f"the service at {options.url} has no model {options.model!r}, or nothing at this address ({said}): check the "
            f"settings {options.setting('model')} and {options.setting('url')}"
        )
    raise Misconfigured(
        f"the service at {options.url} refused the request ({said}): check the settings of {options.name}"
    )


def _vectors(options: ServiceOptions, response: Response, texts: int) -> Embeddings:
    try:
        return wire.decode(response.body, texts, options.dimension)
    except wire.Malformed as error:
        raise Failed(str(error)) from None
    except wire.WrongDimension as error:
        raise Misconfigured(
            f"the model {options.model!r} at {options.url} makes vectors of dimension {error.dimension}, and the setting "
            f"{options.setting('dimension')} says {options.dimension}"
        ) from None


def _key_refused(options: ServiceOptions, status: int) -> str:
    if options.key is None:
        return (
            f"the service at {options.url} asks for a key ({status}): set {options.setting('key_env')}, key_file or "
            "key_command"
        )
    return f"the service at {options.url} refused the key ({status}): check {options.key}"
