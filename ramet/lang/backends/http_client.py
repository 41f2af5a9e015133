"""HTTP for backends: one pooled client per event loop, server-sent events, and errors as `ramet.errors` types."""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ramet.errors import ConfigError, InternalError, QueueFull, RametError, UserError

if TYPE_CHECKING:
    import httpx

CONNECT_SECONDS = 10.0
MAX_URLS = 256


class HttpClient:
    """`base_url` and `headers` for every request. There is no read timeout: a generation takes as long as it takes, and a run's own
    `timeout` ends it. Requests are cancelled by cancelling the awaiting task, which closes the connection."""

    def __init__(self, base_url: str, headers: Mapping[str, str], *, verify: bool | str = True) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigError(f"{base_url!r} is no address of a server: write http://HOST:PORT", param="base_url")
        self.base_url, self._headers, self._verify = base_url.rstrip("/"), dict(headers), verify
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = weakref.WeakKeyDictionary()
        self._urls: dict[str, httpx.URL] = {}

    async def get(self, path: str) -> Any:
        return await self._json("GET", path)

    async def post(self, path: str, body: Any) -> Any:
        return await self._json("POST", path, json=body)

    async def put(self, path: str, content: bytes) -> Any:
        return await self._json("PUT", path, content=content, headers={"content-type": "application/json"})

    async def delete(self, path: str) -> Any:
        return await self._json("DELETE", path)

    async def events(self, path: str, body: Any) -> AsyncIterator[dict[str, Any]]:
        """The JSON events of a stream, up to its [DONE]."""
        import httpx

        ended = False
        try:
            async with self._client().stream("POST", self._url(path), json=body) as response:
                if response.status_code >= 400:
                    raise error_of(response.status_code, await response.aread())
                async for data in _data_lines(response.aiter_bytes()):
                    ended = ended or data == b"[DONE]"
                    if ended:
                        continue  # to the end of the response, after which the connection can be used again
                    event = json.loads(data)
                    if "error" in event:
                        raise error_of(500, data)
                    yield event
        except httpx.TransportError as error:
            if not ended:
                raise self._unreachable(error) from None
        if not ended:
            raise InternalError(f"{self.base_url}{path}: the stream broke off before its end")

    async def close(self) -> None:
        """Close the client of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _json(self, method: str, path: str, **body: Any) -> Any:
        import httpx

        try:
            response = await self._client().request(method, self._url(path), **body)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if response.status_code >= 400:
            raise error_of(response.status_code, response.content)
        return response.json() if "json" in response.headers.get("content-type", "") else response.text

    def _url(self, path: str) -> httpx.URL:
        """Taken apart once: the same few paths are asked for again and again, and httpx takes 0.1 ms for each."""
        import httpx

        if path not in self._urls:
            if len(self._urls) >= MAX_URLS:
                self._urls.clear()
            self._urls[path] = httpx.URL(self.base_url + path)
        return self._urls[path]

    def _client(self) -> httpx.AsyncClient:
        import httpx

        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
            timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
            self._clients[loop] = httpx.AsyncClient(headers=self._headers, verify=self._verify, limits=limits, timeout=timeout)
        return self._clients[loop]

    def _unreachable(self, error: Exception) -> InternalError:
        reason = str(error) or type(error).__name__
        return InternalError(f"no answer from {self.base_url} ({reason}); is the server running there? `ramet serve` starts one")


async def _data_lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The payloads of `data:` lines. Lines end at a line feed only: JSON may hold any other separator as text."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def error_of(status: int, content: bytes) -> RametError:
    """The exception behind an error reply: by its code, else by its status."""
    try:
        found = json.loads(content)
        details = found.get("error", found) if isinstance(found, dict) else {}
    except ValueError:
        details = {}
    details = details if isinstance(details, dict) else {"message": str(details)}
    message = str(details.get("message") or content.decode("utf-8", "replace")[:500] or f"the server answered {status}")
    return error_for(details.get("code"), status, message, details.get("param"))


def error_for(code: object, status: int, message: str, param: str | None = None) -> RametError:
    for kind in _error_kinds(RametError):
        if kind.code is not None and kind.code == code:
            return kind(message) if kind is QueueFull else kind(message, param=param)
    error: RametError = UserError(message, param=param) if 400 <= status < 500 else InternalError(message, param=param)
    error.status = status
    error.code = code if isinstance(code, str) else error.code
    return error


def _error_kinds(root: type[RametError]) -> Iterator[type[RametError]]:
    for child in root.__subclasses__():
        yield child
        yield from _error_kinds(child)
