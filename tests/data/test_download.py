"""Downloads of MUSDB18-HQ, from a server on this machine and from a stand-in for Google Drive."""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import subprocess
import sys
import threading
import time
import types
import zipfile
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tracks import message

from diffvocsep.config import Config, load_config
from diffvocsep.data import check, download, train_tracks
from diffvocsep.data.download import Source, ensure_musdbhq, fetch_http


def dataset(prefix: str = "") -> bytes:
    """A small MUSDB18-HQ as a zip."""
    content, wav = io.BytesIO(), io.BytesIO()
    soundfile.write(wav, np.random.default_rng(0).uniform(-0.3, 0.3, (800, 2)), 8000, "PCM_16", format="WAV")
    with zipfile.ZipFile(content, "w") as file:
        for song in ("train/A - B", "train/Leaf - Summerghost", "test/Zeno - Signs"):
            for stem in ("mixture", "drums", "bass", "other", "vocals"):
                file.writestr(f"{prefix}{song}/{stem}.wav", wav.getvalue())
    return content.getvalue()


ARCHIVE = dataset()


class Server:
    """Serves `content` and lists what was asked for. `cut` and `status` spoil the next answers, one item each."""

    def __init__(self, content: bytes) -> None:
        self.content, self.ranges, self.requests = content, True, []
        self.cut: list[int] = []
        self.status: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/musdb18hq.zip"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range", "")
        self.requests.append(asked)
        if self.status:
            return request.send_error(self.status.pop(0))
        first = int(asked[6:-1]) if self.ranges and asked else 0
        part = self.content[first:]
        request.send_response(206 if first else 200)
        if first:
            request.send_header("Content-Range", f"bytes {first}-{len(self.content) - 1}/{len(self.content)}")
        request.send_header("Content-Length", str(len(part)))
        request.end_headers()
        request.wfile.write(part[: self.cut.pop(0)] if self.cut else part)

    def source(self, **changes: object) -> Source:
        known = Source("the test's server", self.url, len(ARCHIVE), 30_000, hashlib.sha256(ARCHIVE).hexdigest())
        return replace(known, **changes)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.001)
    server = Server(ARCHIVE)
    monkeypatch.setattr(download, "ZENODO", server.source())
    yield server
    server.http.shutdown()
    server.http.server_close()


def config(root: Path, *overrides: str) -> Config:
    return load_config(None, ["data.dataset=musdbhq", "data.cache=none", "data.download_source=zenodo",
                              f"data.musdbhq_root='{root.as_posix()}'", *overrides])  # fmt: skip


def visible(root: Path) -> list[str]:
    return sorted(f.name for f in root.iterdir() if not f.name.startswith("."))


# ---- the whole way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "musdb18hq/", "some/where/"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_empty_root_is_filled_and_trains(tmp_path, server, capsys, prefix, exists, monkeypatch):
    server.content = dataset(prefix)
    sha256 = hashlib.sha256(server.content).hexdigest()
    monkeypatch.setattr(download, "ZENODO", server.source(size=len(server.content), sha256=sha256))
    root = tmp_path / "data" / "musdb18hq"
    if exists:
        root.mkdir(parents=True)
    assert [t.name for t in train_tracks(config(root))] == ["A - B"]
    assert visible(root) == ["test", "train"] and not (root / ".download").exists()
    said = capsys.readouterr().err
    for part in (
        "the test's server",
        "0.0 GB",
        "non-commercial",
        "zenodo.org/records/3338373",
        "Downloading",
        "Checking",
    ):
        assert part in said
    assert train_tracks(config(root)) and len(server.requests) == 1


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, server):
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    assert "found in" in message(train_tracks, config(tmp_path))
    (tmp_path / "notes.txt").unlink()
    (tmp_path / "train").mkdir()
    (tmp_path / ".download").mkdir()  # of an attempt that was given up
    assert "found in" in message(train_tracks, config(tmp_path))
    assert server.requests == []


def test_it_may_be_forbidden(tmp_path, server):
    text = message(train_tracks, config(tmp_path / "nothing", "data.download=false"))
    assert "data.download is false" in text and "nothing" in text
    assert server.requests == [] and not (tmp_path / "nothing").exists()


def test_a_check_fetches_nothing_and_says_what_does(tmp_path, server):
    root = f"data.musdbhq_root='{(tmp_path / 'nothing').as_posix()}'"
    text = message(check.run, ["data.dataset=musdbhq", "data.download=true", "data.download_source=zenodo", root])
    assert "this is a check" in text and "start train.py with data.download=true" in text
    assert server.requests == [] and not (tmp_path / "nothing").exists()


def test_other_datasets_fetch_nothing(tmp_path, server):
    train_tracks(config(tmp_path, "data.dataset=synthetic"))
    assert server.requests == []


def test_free_space_is_checked_before(tmp_path, server, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(10, 9, len(ARCHIVE) + 29_999))
    assert "make room" in message(ensure_musdbhq, config(tmp_path).data)
    assert server.requests == [] and visible(tmp_path) == []


# ---- interruptions -------------------------------------------------------------------------------------------------


def test_a_connection_that_breaks_is_resumed(tmp_path, server):
    server.cut = [1000, 0, 5000, 1]
    ensure_musdbhq(config(tmp_path).data)
    assert server.requests == ["bytes=0-", "bytes=1000-", "bytes=1000-", "bytes=6000-", "bytes=6001-"]
    assert visible(tmp_path) == ["test", "train"]


def test_a_server_that_is_busy_is_asked_again(tmp_path, server):
    server.status = [503, 429]
    ensure_musdbhq(config(tmp_path).data)
    assert len(server.requests) == 3 and visible(tmp_path) == ["test", "train"]


def test_a_server_that_cannot_resume_starts_over(tmp_path, server):
    server.ranges, server.cut = False, [1000]
    ensure_musdbhq(config(tmp_path).data)
    assert server.requests == ["bytes=0-", "bytes=1000-"] and visible(tmp_path) == ["test", "train"]


def test_a_server_that_is_gone_leaves_what_has_come(tmp_path, server):
    server.cut = [3000] + [0] * download.ATTEMPTS
    text = message(ensure_musdbhq, config(tmp_path).data)
    assert "the test's server cannot be reached" in text and "goes on" in text
    assert visible(tmp_path) == [] and (tmp_path / ".download" / "zenodo.part").stat().st_size == 3000
    server.cut = []
    ensure_musdbhq(config(tmp_path).data)
    assert server.requests[-1] == "bytes=3000-" and visible(tmp_path) == ["test", "train"]


def test_a_server_that_says_no_is_named(tmp_path, server):
    server.status = [403]
    text = message(fetch_http, server.source(), tmp_path / "part")
    assert "refuses the download" in text and "403" in text and server.url in text and len(server.requests) == 1
    text = message(fetch_http, server.source(url="http://127.0.0.1:9/x"), tmp_path / "part")
    assert "cannot be reached" in text


@pytest.mark.skipif(not hasattr(os, "kill") or os.name == "nt", reason="POSIX signals")
def test_a_killed_process_leaves_nothing_that_looks_whole_and_goes_on(tmp_path, server):
    """A real process, killed in the middle of the download."""
    code = (
        "import sys; from dataclasses import replace; from diffvocsep.config import DataConfig; "
        "from diffvocsep.data import download as d; d.BLOCK = 1000; u, size, root = sys.argv[1:]; "
        "d.ZENODO = replace(d.ZENODO, url=u, size=int(size), unpacked=1, sha256=None); "
        "d.ensure_musdbhq(DataConfig(musdbhq_root=root, download_source='zenodo'))"
    )
    answer, hold = server.answer, threading.Event()

    def slowly(request: BaseHTTPRequestHandler) -> None:
        server.content, server.cut = ARCHIVE, [20_000]  # more than the process holds back before it writes
        answer(request)
        request.wfile.flush()
        hold.wait(60)

    server.answer = slowly
    command = [sys.executable, "-c", code, server.url, str(len(ARCHIVE)), str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    part = tmp_path / ".download" / "zenodo.part"
    while not (part.exists() and part.stat().st_size >= 3000):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    hold.set()
    server.answer, server.cut = answer, []
    assert visible(tmp_path) == []
    ensure_musdbhq(config(tmp_path).data)
    assert visible(tmp_path) == ["test", "train"]


def test_unpacking_and_moving_go_on_where_they_stopped(tmp_path, server, monkeypatch):
    moves, replace_ = [], os.replace

    def power_cut(source, target) -> None:
        if Path(target).name == "train":
            raise KeyboardInterrupt
        replace_(source, target)
        moves.append(Path(target).name)

    def interrupted(*_: object) -> None:
        (tmp_path / ".download" / "unpacking" / "train" / "A - B").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(download, "unpack", interrupted)
        ensure_musdbhq(config(tmp_path).data)
    assert visible(tmp_path) == []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", power_cut)
        ensure_musdbhq(config(tmp_path).data)
    assert "train" not in visible(tmp_path)
    assert [t.name for t in train_tracks(config(tmp_path))] == ["A - B"]
    assert visible(tmp_path) == ["test", "train"] and len(server.requests) == 1


def test_of_two_processes_one_fetches(tmp_path, server):
    threads = [threading.Thread(target=ensure_musdbhq, args=(config(tmp_path).data,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and visible(tmp_path) == ["test", "train"]


# ---- what comes is not what was asked for --------------------------------------------------------------------------


def test_a_wrong_checksum_is_found_and_the_file_removed(tmp_path, server):
    server.content = ARCHIVE[:-5000] + bytes([ARCHIVE[-5000] ^ 1]) + ARCHIVE[-4999:]
    assert "not the file that it should be" in message(ensure_musdbhq, config(tmp_path).data)
    assert visible(tmp_path) == [] and not list((tmp_path / ".download").iterdir())
    server.content = ARCHIVE
    ensure_musdbhq(config(tmp_path).data)
    assert visible(tmp_path) == ["test", "train"]


def test_a_file_that_is_longer_is_not_it(tmp_path, server):
    server.content = ARCHIVE + b"more"
    assert "not the file that it should be" in message(fetch_http, server.source(sha256=None), tmp_path / "part")


def hostile() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("train/A - B/vocals.wav", b"x")
        file.writestr("../../evil", b"x")
    return content.getvalue()


@pytest.mark.parametrize(("content", "reason"), [
    (hostile(), "outside of the folder"), (ARCHIVE[: len(ARCHIVE) // 2], "is damaged"),
    (b"<html>quota exceeded</html>", "neither a zip"), (zipfile.ZipFile, "no songs as in MUSDB18-HQ"),
])  # fmt: skip
def test_a_bad_archive_is_never_taken_for_a_dataset_and_does_not_stay(tmp_path, server, monkeypatch, content, reason):
    if content is zipfile.ZipFile:  # whole, but of something else
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("cats/cat.jpg", b"meow")
        content = buffer.getvalue()
    server.content = content
    monkeypatch.setattr(download, "ZENODO", server.source(size=len(content), sha256=None))
    root = tmp_path / "a" / "b"
    assert reason in message(train_tracks, config(root))
    assert (
        visible(root) == []
        and not list((root / ".download").iterdir())
        and [f.name for f in tmp_path.iterdir()] == ["a"]
    )


# ---- Google Drive --------------------------------------------------------------------------------------------------


def drive(monkeypatch, give) -> list[dict]:
    """A stand-in for gdown; the calls that it gets are checked against the real one."""
    calls = []

    def fetch(**arguments) -> str | None:
        calls.append(arguments)
        return give(Path(arguments["output"]))

    fake = types.ModuleType("gdown")
    fake.download = fetch
    monkeypatch.setitem(sys.modules, "gdown", fake)
    return calls


def test_google_drive_is_asked_for_the_file_and_another_id_may_be_given(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download, "GDRIVE", replace(download.GDRIVE, size=len(ARCHIVE), unpacked=1))
    try:
        import gdown

        signature = inspect.signature(gdown.download)
    except ImportError:
        signature = None
    calls = drive(monkeypatch, lambda path: path.write_bytes(ARCHIVE) and str(path))
    assert train_tracks(config(tmp_path / "a", "data.download_source=gdrive"))
    assert train_tracks(config(tmp_path / "b", "data.download_source=gdrive", "data.download_id=other"))
    assert [call["id"] for call in calls] == ["1ieGcVPPfgWg__BTDlIGi1TpntdOWwwdn", "other"]
    assert all(call["resume"] for call in calls)
    for call in calls if signature else []:
        signature.bind(**call)
    assert "Google Drive" in capsys.readouterr().err


def fail(path: Path) -> None:
    raise RuntimeError("Too many users have viewed or downloaded this file recently.\nA traceback follows.")


@pytest.mark.parametrize("give", [fail, lambda path: None, lambda path: str(path)])
def test_google_drive_may_refuse(tmp_path, monkeypatch, give):
    monkeypatch.setattr(download, "GDRIVE", replace(download.GDRIVE, size=1, unpacked=1))
    drive(monkeypatch, give)
    text = message(train_tracks, config(tmp_path, "data.download_source=gdrive"))
    assert "Google Drive does not give the file 1ieG" in text and "data.download_source to zenodo" in text
    assert ("Too many users" in text) == (give is fail) and visible(tmp_path) == []


def test_what_came_of_another_id_is_not_gone_on_with(tmp_path, monkeypatch):
    """gdown goes on with any file whose name begins as that of its target does."""
    monkeypatch.setattr(download, "GDRIVE", replace(download.GDRIVE, size=len(ARCHIVE), unpacked=1))

    def give(path: Path) -> str:
        parts = [part for part in path.parent.iterdir() if part.name.startswith(path.name)]
        part = parts[0] if parts else path.with_name(f"{path.name}12345678.part")
        with part.open("ab") as file:
            file.write(sent.pop(0))
        if sent:
            raise ConnectionError("gone")
        return str(part.replace(path))

    sent = [b"of the old file", ARCHIVE[:500], ARCHIVE[500:]]
    drive(monkeypatch, give)
    old, new = (config(tmp_path, "data.download_source=gdrive", f"data.download_id='{name}'") for name in ("", "new"))
    assert "gone" in message(train_tracks, old) and "gone" in message(train_tracks, new)
    assert [t.name for t in train_tracks(new)] == ["A - B"]


def test_without_gdown_zenodo_still_works(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "GDRIVE", replace(download.GDRIVE, size=1, unpacked=1))
    monkeypatch.setitem(sys.modules, "gdown", None)
    assert "pip install gdown" in message(train_tracks, config(tmp_path, "data.download_source=gdrive"))
    assert train_tracks(config(tmp_path))
