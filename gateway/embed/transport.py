"""One HTTP request to a service, and what came of it. No retries and no judgement here."""

from __future__ import annotations

import aiohttp

from gateway.embed.wire import OK, Response

ERROR_BYTES = 16 << 10
"""As much of an error's body is read."""

_CONNECT_S = 5.0


class Unanswered(Exception):
    """No answer, or not all of it. The message says why; it holds nothing of the request."""


class Transport:
    """Call on the event loop; `close` comes last.

    Redirects are answers, not followed, and the environment's proxies and .netrc are passed over: a key goes to the
    service that the settings name and nowhere else.
    """

    def __init__(self, url: str, connections: int) -> None:
        self._url = url
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes, key: str | None, *, timeout_s: float, limit_bytes: int) -> Response:
        """Return the answer to a JSON `body`. It takes `timeout_s` at most, from connecting to the last byte, and has at
        most `limit_bytes` bytes. Raises Unanswered.
        """
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(_CONNECT_S, timeout_s))
        try:
            async with self._opened().post(
                self._url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            ) as response:
                received = await _read(response, limit_bytes)
                return Response(response.status, {k.lower(): v for k, v in response.headers.items()}, received)
        except TimeoutError:
            raise Unanswered(f"it didn't answer within {timeout_s:.3g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise Unanswered(f"it can't be connected to: {error.os_error.strerror or error.os_error}") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unanswered(f"the connection broke: {type(error).__name__}") from None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._connections),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                # What is short when compressed may be long: an answer's limit counts the bytes that are read.
                auto_decompress=False,
            )
        return self._session


async def _read(response: aiohttp.ClientResponse, limit_bytes: int) -> bytes:
    received = bytearray()
    failed = response.status not in OK
    async for piece in response.content.iter_any():
        received += piece
        if failed and len(received) >= ERROR_BYTES:
            break
        if not failed and len(received) > limit_bytes:
            raise Unanswered(f"its answer is longer than {limit_bytes} bytes")
    return bytes(received[:ERROR_BYTES] if failed else received)
