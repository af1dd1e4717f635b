"""With whom the page speaks: browsers that asked for this machine by a name of its own, on a page of its own.

A page from elsewhere may point a name of its own at 127.0.0.1 (DNS rebinding), or send a form here. The first is known
by its `Host`, the second by its `Origin`.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing is fetched from elsewhere, nothing is kept by the browser.
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def is_own_name(host: str, listening: str) -> bool:
    """Whether a `Host` header names this machine: an address (which no name server can point elsewhere), localhost,
    what the server listens on, or the machine's own name."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        own = socket.gethostname().lower()
        return name in {"localhost", listening.lower(), own, f"{own}.local"} - {""}


class Guard:
    """ASGI middleware: refuses who should not speak with us, and adds `HEADERS`."""

    def __init__(self, app: ASGIApp, listening: str) -> None:
        self.app, self.listening = app, listening

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not is_own_name(host, self.listening):
            refusal = PlainTextResponse(f"this page does not answer to the name '{host}'\n", 421)
            return await refusal(scope, receive, send)
        if scope["method"] not in ("GET", "HEAD") and origin is not None and urlsplit(origin).netloc != host:
            refusal = PlainTextResponse(f"this page takes no orders from '{origin}'\n", 403)
            return await refusal(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, send_with_headers)
