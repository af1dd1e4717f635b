"""What the browser can ask for.

    GET    /                                       the page
    GET    /visitors/V                             news of V's songs, as server-sent events, while the tab is open
    POST   /visitors/V/songs                       announce a song (JSON: name, size, steps, samples) -> its id
    PUT    /visitors/V/songs/S                     its audio
    DELETE /visitors/V/songs/S                     end the work on it, delete its files
    GET    /visitors/V/songs/S/vocals.wav          also instrumental.wav and picture.png
    GET    /visitors/V/songs/S/samples?start=&count=    both stems as float32 (2, C, n), to play them

V is a number that each tab draws; who does not know it sees nothing of its songs.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from ..util.errors import UserError
from .guard import Guard
from .queue import Queue, QueuedSong
from .separation import PICTURE, STEMS, stems

MAX_BYTES = 2 << 30  # bytes of a song: an hour of 32-bit stereo at 48 kHz is 1.4 GB
MAX_NAME = 200  # characters
MAX_SAMPLES = 1 << 21  # that a player asks for at once
FREE_BYTES = 1 << 28  # bytes that stay free on the disk
FILES = (*(f"{stem}.wav" for stem in STEMS), PICTURE)
INDEX = Path(__file__).with_name("index.html")


class Page:
    """The server's side of the page.

    Args:
        check: raises UserError for steps and samples that cannot be.
        facts: what the page has to know beside its songs (`steps`, `samples`: the model's own settings).
        grace: s that a visitor may be away, as in a reload, before their songs go.
        largest: bytes of a song.
    """

    def __init__(
        self,
        queue: Queue,
        check: Callable[[int, int], object],
        facts: dict[str, Any],
        grace: float = 8.0,
        largest: int = MAX_BYTES,
    ) -> None:
        self.queue, self.check, self.grace, self.largest = queue, check, grace, largest
        self.facts = facts | {"largest": largest}
        self.closing = False
        self.present: Counter[str] = Counter()  # visitors and their open streams

    def app(self, listening: str) -> Starlette:
        """The ASGI application of a server that listens on the address `listening`."""
        song = "/visitors/{visitor}/songs/{song}"
        routes = [
            Route("/", lambda _: FileResponse(INDEX, media_type="text/html; charset=utf-8"), name="index"),
            Route("/visitors/{visitor}", self.news),
            Route("/visitors/{visitor}/songs", self.announce, methods=["POST"]),
            Route(song, self.receive, methods=["PUT"]),
            Route(song, self.remove, methods=["DELETE"]),
            Route(f"{song}/samples", self.samples),
            Route(f"{song}/{{file}}", self.file),
        ]
        handlers = {HTTPException: lambda _, error: PlainTextResponse(error.detail, error.status_code)}
        return Starlette(
            routes=routes, middleware=[Middleware(Guard, listening=listening)], exception_handlers=handlers
        )

    def find(self, request: Request) -> QueuedSong:
        song = self.queue.find(request.path_params["visitor"], request.path_params["song"])
        if song is None:
            raise HTTPException(404, "this song is no longer here; drop it again")
        return song

    async def news(self, request: Request) -> Response:
        return StreamingResponse(self.tell(request.path_params["visitor"]), media_type="text/event-stream")

    async def tell(self, visitor: str) -> AsyncIterator[str]:
        """Each change, and a comment every few seconds: a connection that broke is noticed by what it does not take."""
        self.present[visitor] += 1
        said, quiet = "", 0
        try:
            while not self.closing:
                news = json.dumps(self.facts | {"songs": self.queue.report(visitor)})
                if news != said:
                    yield f"data: {news}\n\n"
                    said, quiet = news, 0
                elif quiet >= 20:
                    yield ": still here\n\n"
                    quiet = 0
                quiet += 1
                await asyncio.sleep(0.2)
        finally:
            self.present[visitor] -= 1
            if not self.closing:
                asyncio.get_running_loop().call_later(self.grace, self.forget, visitor)

    def forget(self, visitor: str) -> None:
        """Remove the songs of a visitor who has not come back."""
        if not self.present[visitor]:
            del self.present[visitor]
            self.queue.forget(visitor)

    async def announce(self, request: Request) -> Response:
        visitor = request.path_params["visitor"]
        if not self.present[visitor]:
            raise HTTPException(409, "the page is not connected; load it again")
        try:
            order = await request.json()
            name, size, steps, samples = (order[key] for key in ("name", "size", "steps", "samples"))
        except (ValueError, KeyError, TypeError):
            raise HTTPException(400, "an order is JSON with name, size, steps and samples") from None
        numbers = (size, steps, samples)
        if not isinstance(name, str) or any(type(number) is not int for number in numbers):
            raise HTTPException(400, "steps and samples are whole numbers")
        if not 0 < size <= self.largest:
            limit = f"give a file of up to {self.largest / 1e9:.1f} GB" if size > 0 else "give a file with sound in it"
            raise HTTPException(413, f"'{name[:MAX_NAME]}' has {size / 1e9:.1f} GB; {limit}")
        if shutil.disk_usage(self.queue.folder).free < size + FREE_BYTES:
            raise HTTPException(507, "the disk of this page is full; try again later")
        try:
            self.check(steps, samples)
        except UserError as error:
            raise HTTPException(400, str(error)) from None
        name = Path(name.replace("\\", "/")).name[-MAX_NAME:] or "song"
        return JSONResponse({"id": self.queue.add(visitor, name, size, steps, samples).id})

    async def receive(self, request: Request) -> Response:
        song = self.find(request)
        if song.state != "sending" or song.source.exists():
            raise HTTPException(409, f"'{song.name}' is already here")
        count = 0
        try:
            with song.source.open("wb") as file:
                async for chunk in request.stream():
                    count += len(chunk)
                    if count > song.size or song.cancelled:
                        break
                    file.write(chunk)
        except (ClientDisconnect, OSError) as error:
            self.queue.remove(song)
            raise HTTPException(507, f"'{song.name}' could not be taken in; is the disk full?") from error
        if count != song.size or song.cancelled:
            self.queue.remove(song)
            raise HTTPException(400, f"'{song.name}' did not arrive whole; drop it again")
        self.queue.ready(song)
        return Response(status_code=204)

    async def remove(self, request: Request) -> Response:
        self.queue.remove(self.find(request))
        return Response(status_code=204)

    def file(self, request: Request) -> Response:
        song, name = self.find(request), request.path_params["file"]
        if song.state != "done" or name not in FILES:
            raise HTTPException(404, f"there is no {name}")
        return FileResponse(song.folder / name, filename=f"{Path(song.name).stem}_{name}")

    def samples(self, request: Request) -> Response:
        song = self.find(request)
        try:
            start, count = (int(request.query_params[key]) for key in ("start", "count"))
        except (KeyError, ValueError):
            raise HTTPException(400, "start and count are whole numbers") from None
        if song.state != "done" or not (0 <= start < song.facts["frames"] and 0 < count <= MAX_SAMPLES):
            raise HTTPException(416, "there is no such part of the song")
        return Response(stems(song.folder, start, count).astype("<f4").tobytes(), media_type="application/octet-stream")
