"""Begin and end of the page: model, folder, socket, server."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tempfile
import webbrowser
from pathlib import Path
from types import FrameType

import uvicorn

from ..util.cli import print_notes
from ..util.errors import UserError
from .queue import Queue, QueuedSong
from .separation import WatchedSeparator, separate_song
from .server import Page

MOST_SAMPLES = 64  # that a visitor may ask for


class Server(uvicorn.Server):
    """Ends the streams of news when it is told to stop; they would never end by themselves."""

    page: Page

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.page.closing = True
        super().handle_exit(sig, frame)


def serve(model: Path, host: str, port: int, device: str = "auto", browser: bool = True) -> int:
    """Serve the page until Ctrl-C; its files are gone afterwards.

    Raises:
        UserError: the address cannot be listened on, or the model cannot be loaded.
    """
    listener = listen(host, port)
    with listener, tempfile.TemporaryDirectory(prefix="diffvocsep-page-", ignore_cleanup_errors=True) as folder:
        separator = WatchedSeparator.from_checkpoint(model, device)

        def work(song: QueuedSong) -> dict[str, int]:
            return separate_song(separator, song.source, song.folder, song.steps, song.samples, song.watch)

        def check(steps: int, samples: int) -> None:
            if samples > MOST_SAMPLES:
                raise UserError(f"samples is {samples}; take at most {MOST_SAMPLES}")
            separator.settings(steps=steps, samples=samples)

        defaults = separator.config.diffusion
        queue = Queue(work, Path(folder))
        page = Page(queue, check, {"steps": defaults.ddim_steps, "samples": defaults.samples})
        config = uvicorn.Config(
            page.app(host), log_level="critical", access_log=False, timeout_graceful_shutdown=3, ws="none"
        )
        server = Server(config)
        server.page = page
        address = address_of(listener)
        print(f"{address}   (Ctrl-C ends it)", flush=True)
        if not is_loopback(listener):
            print_notes(["everybody who reaches this address can use the page"])
        if browser and has_screen():
            webbrowser.open(address)
        try:
            server.run(sockets=[listener])
        finally:
            page.closing = True
            queue.close()
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 is any that is free."""
    if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo 65536
        raise UserError(f"there is no port {port}; give --port a number from 0 (any that is free) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        if os.name == "posix":  # on Windows this would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()  # the browser may be faster than the server, which then takes over
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"the page cannot listen on {host}, port {port} ({reason}); give another --host or --port"
        ) from None
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:  # all addresses of this machine
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def has_screen() -> bool:
    """Whether a browser would open in a window, not in this terminal."""
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
