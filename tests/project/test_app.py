"""app.py: the page, in a real browser and spoken with directly; and the package that `pip install .` makes."""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
import soundfile
from tiny import RATE, random_unet, song, tiny_config
from tracks import need

import app as program
import inference
from diffvocsep.checkpoint import load_checkpoint, release, save_checkpoint
from diffvocsep.config import to_dict
from diffvocsep.util import cli
from diffvocsep.util.errors import UserError

pytest.importorskip("starlette", reason="the page needs requirements-app.txt")
pytest.importorskip("uvicorn", reason="the page needs requirements-app.txt")
from diffvocsep.page.guard import is_own_name
from diffvocsep.page.queue import Queue, QueuedSong
from diffvocsep.page.separation import WatchedSeparator, separate_song
from diffvocsep.uncertainty import ScaleHead

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "data" / "demo" / "song.ogg"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
PATIENCE = 120.0  # s


class App:
    """The program as a process, with a folder for temporary files to itself."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        command = [sys.executable, str(ROOT / "app.py"), "--port", "0", "--no-browser", *arguments]
        environment = ENVIRONMENT | {"TMPDIR": str(folder), "TEMP": str(folder)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
        self.process = subprocess.Popen(command, env=environment, **pipes)
        self.address = self.process.stdout.readline().split()[0]
        self.port = int(self.address.rsplit(":", 1)[1])

    def files(self) -> list[Path]:
        """Of the page, also while it removes some: `os.walk` goes past a folder that is gone."""
        return [Path(folder, name) for folder, _, names in os.walk(self.folder) for name in names]

    def ask(self, method: str, path: str, body: bytes | str = b"", **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def app(model, tmp_path_factory) -> Iterator[App]:
    app = App(tmp_path_factory.mktemp("temporary"), "--model_path", str(model))
    yield app
    app.process.kill()


class Visitor:
    """A tab: its stream of news is open until `leave`."""

    def __init__(self, app: App, name: str) -> None:
        self.app, self.home, self.sent = app, f"/visitors/{name}", []
        self.connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=PATIENCE)
        self.connection.request("GET", self.home)
        self.stream = self.connection.getresponse()
        self.news = self.hear(lambda news: True)

    def hear(self, enough: Callable[[dict], bool], patience: float = PATIENCE) -> dict:
        """The first news that are `enough`."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            line = self.stream.readline()
            assert line, "the stream has ended"
            if line.startswith(b"data: ") and enough(news := json.loads(line[6:])):
                return news
        raise AssertionError("no such news")

    def announce(self, name: str, size: int, steps: int = 1, samples: int = 1) -> tuple[int, bytes]:
        order = json.dumps({"name": name, "size": size, "steps": steps, "samples": samples})
        return self.app.ask("POST", f"{self.home}/songs", order)

    def send(self, name: str, data: bytes, **settings: int) -> str:
        """Bring a song; where it is found."""
        status, answer = self.announce(name, len(data), **settings)
        assert status == 200, answer
        path = f"{self.home}/songs/{json.loads(answer)['id']}"
        assert self.app.ask("PUT", path, data) == (204, b"")
        self.sent.append(path)
        return path

    def finished(self, patience: float = PATIENCE) -> dict:
        """Of the last song, when it has come to an end."""
        ended = self.hear(lambda news: news["songs"] and news["songs"][-1]["state"] in ("done", "failed"), patience)
        return ended["songs"][-1]

    def leave(self) -> None:
        self.stream.close()
        self.connection.close()


@pytest.fixture
def visit(app) -> Iterator[Callable[[], Visitor]]:
    visitors = []

    def enter() -> Visitor:
        visitors.append(Visitor(app, os.urandom(16).hex()))
        return visitors[-1]

    yield enter
    for visitor in visitors:
        for path in visitor.sent:
            app.ask("DELETE", path)
        visitor.leave()
    assert eventually(lambda: not app.files())


def eventually(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not true() and time.monotonic() < deadline:
        time.sleep(0.1)
    return true()


LONG = dict(steps=30, samples=2)  # of a minute: some ten seconds of work, and the first news of it in one


def sound(seconds: float, kind: str = "WAV") -> bytes:
    """A stereo song as a file."""
    file, subtype = io.BytesIO(), {"WAV": "FLOAT", "FLAC": "PCM_24"}[kind]
    soundfile.write(file, 0.3 * song(seconds, 2).T.numpy(), RATE, format=kind, subtype=subtype)
    return file.getvalue()


def command_line(folder: Path, *arguments: str) -> None:
    outputs = ["--output", str(folder / "vocals.wav"), "--instrumental", str(folder / "instrumental.wav")]
    assert inference.run(["--no-progress", *outputs, *arguments]) == 0


@pytest.mark.parametrize("settings", [pytest.param({}, marks=pytest.mark.slow), {"steps": 8, "samples": 2}])
def test_the_stems_are_those_of_the_command_line(app, visit, model, tmp_path, settings):
    data, visitor = sound(1.3), visit()
    path = visitor.send("내 노래 🎤.wav", data, **settings)
    told = visitor.finished()
    assert (told["state"], told["rate"], told["channels"]) == ("done", RATE, 2)
    (tmp_path / "song.wav").write_bytes(data)
    options = [f"--{name}={value}" for name, value in settings.items()] + ["--sampler=ddpm"] * bool(settings)
    command_line(tmp_path, "--input", str(tmp_path / "song.wav"), "--model_path", str(model), *options)
    for name in ("vocals.wav", "instrumental.wav"):
        assert app.ask("GET", f"{path}/{name}") == (200, (tmp_path / name).read_bytes())
    status, picture = app.ask("GET", f"{path}/picture.png")
    assert status == 200 and picture.startswith(b"\x89PNG") and len(picture) > 10_000
    status, samples = app.ask("GET", f"{path}/samples?start=1000&count=500")
    expected = [soundfile.read(tmp_path / f"{stem}.wav", dtype="float32")[0].T for stem in ("vocals", "instrumental")]
    assert np.array_equal(np.frombuffer(samples, "<f4").reshape(2, 2, 500), np.stack(expected)[..., 1000:1500])
    assert app.ask("GET", f"{path}/samples?start={told['frames']}&count=5")[0] == 416
    assert len(app.files()) == 3  # the upload is gone
    assert app.ask("DELETE", path) == (204, b"") and not app.files()
    assert app.ask("GET", f"{path}/vocals.wav")[0] == 404


def test_a_model_that_knows_how_far_it_may_be_wrong_draws_that_too(tmp_path):
    config, heights = tiny_config(), []
    (tmp_path / "song.wav").write_bytes(sound(1.0))
    for head in (None, ScaleHead(config)):
        separator = WatchedSeparator(random_unet(config), config, head=head)
        separate_song(separator, tmp_path / "song.wav", tmp_path, 1, 1, lambda share: None)
        heights.append(int.from_bytes((tmp_path / "picture.png").read_bytes()[20:24], "big"))  # IHDR: width, height
    assert heights[1] > 1.2 * heights[0]


def test_a_broken_file_is_one_sentence_about_the_song(app, visit):
    visitor = visit()
    for name, data in [("noise.mp3", Random(0).randbytes(5000)), ("half.flac", sound(2.0, "FLAC")[:9000])]:
        visitor.send(name, data)
        told = visitor.finished()
        assert told["state"] == "failed" and name in told["error"]
        assert str(app.folder) not in told["error"] and "\n" not in told["error"]
        assert eventually(lambda: not app.files())
    visitor.send("good.wav", sound(0.5))
    assert visitor.finished()["state"] == "done"


@pytest.mark.slow
def test_who_comes_second_is_told_and_a_closed_tab_makes_room(app, visit):
    first, second = visit(), visit()
    first.send("long.wav", sound(60.0), **LONG)
    running = first.hear(lambda news: news["songs"] and news["songs"][0]["progress"] > 0)["songs"][0]
    assert running["state"] == "running" and running["progress"] < 0.5
    second.send("short.wav", sound(0.5))
    waiting = second.hear(lambda news: news["songs"] and news["songs"][0]["state"] == "waiting")["songs"]
    assert [(told["name"], told["ahead"]) for told in waiting] == [("short.wav", 1)]  # and nothing of the other's
    first.leave()
    assert second.finished()["state"] == "done"
    assert eventually(lambda: len(app.files()) == 3)  # of the second
    second.leave()
    assert eventually(lambda: not app.files())


@pytest.mark.parametrize("leaves", ["while it sends", pytest.param("while it waits", marks=pytest.mark.slow)])
def test_a_tab_that_is_closed_before_its_turn_leaves_nothing(app, visit, leaves):
    """Who came before notices nothing."""
    first, second, data = visit(), visit(), sound(60.0)
    first.send("long.wav", data, steps=100, samples=4)
    first.hear(lambda news: news["songs"] and news["songs"][0]["progress"] > 0)

    def folders() -> int:  # one for each song
        return len({path.parent for path in app.files()})

    if leaves == "while it waits":
        second.send("waiting.wav", data)
        assert folders() == 2
    else:
        path = f"{second.home}/songs/{json.loads(second.announce('half.wav', len(data))[1])['id']}"
        connection = http.client.HTTPConnection("127.0.0.1", app.port, timeout=PATIENCE)
        connection.putrequest("PUT", path)
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data[: len(data) // 2])
        assert eventually(lambda: folders() == 2)
        connection.close()
    second.leave()
    assert eventually(lambda: folders() == 1)
    running = Visitor(app, first.home.rsplit("/", 1)[1])
    assert running.news["songs"][0]["state"] == "running" and app.process.poll() is None
    running.leave()


def test_a_song_that_nobody_wants_any_more_is_not_worked_on(app, visit):
    visitor = visit()
    path = visitor.send("long.wav", sound(60.0), **LONG)
    visitor.hear(lambda news: news["songs"] and news["songs"][0]["progress"] > 0)
    assert app.ask("DELETE", path)[0] == 204
    assert eventually(lambda: not app.files())
    visitor.send("short.wav", sound(0.3))
    assert visitor.finished()["state"] == "done"


def test_a_reload_keeps_the_songs(app, visit):
    visitor = visit()
    visitor.send("song.wav", sound(0.3))
    assert visitor.finished()["state"] == "done"
    visitor.leave()
    again = Visitor(app, visitor.home.rsplit("/", 1)[1])
    assert [told["state"] for told in again.news["songs"]] == ["done"]
    again.leave()


def test_what_cannot_be_is_refused_before_it_is_sent(app, visit):
    visitor = visit()
    for order, code, word in [
        ((("song.wav", 3 << 30)), 413, "up to"),
        ((("song.wav", 0)), 413, "sound"),
        ((("song.wav", 9, 0)), 400, "ddim_steps"),
        ((("song.wav", 9, 9999)), 400, "ddim_steps"),
        ((("song.wav", 9, 8, 65)), 400, "64"),
        ((("song.wav", 9, "many")), 400, "whole"),
    ]:
        status, answer = visitor.announce(*order)
        assert status == code and word in answer.decode() and answer.count(b"\n") == 0, (order, answer)
    assert app.ask("POST", f"{visitor.home}/songs", "no json")[0] == 400
    assert app.ask("POST", "/visitors/nobody/songs", "{}")[0] == 409  # no tab is open that would take the files along
    status, answer = visitor.announce("../../etc/x.wav", 5)
    path = f"{visitor.home}/songs/{json.loads(answer)['id']}"
    assert app.ask("PUT", path, b"more than five")[0] == 400 and not app.files()
    assert app.ask("PUT", path, b"again")[0] == 404


def test_nobody_sees_the_songs_of_others(app, visit):
    visitor, other = visit(), visit()
    path = visitor.send("song.wav", sound(0.3))
    assert visitor.finished()["state"] == "done"
    assert app.ask("GET", path.replace(visitor.home, other.home) + "/vocals.wav")[0] == 404
    assert not other.news["songs"]
    for name in ("../song.wav", "..%2f..%2fetc%2fpasswd", "song.wav"):
        assert app.ask("GET", f"{path}/{name}")[0] == 404


def test_a_page_from_elsewhere_is_refused(app):
    own = f"127.0.0.1:{app.port}"
    assert app.ask("GET", "/", Host=own)[0] == 200
    assert app.ask("GET", "/", Host=f"localhost:{app.port}")[0] == 200
    assert app.ask("GET", "/", Host=f"evil.example:{app.port}")[0] == 421  # a name that points here: DNS rebinding
    assert app.ask("POST", "/visitors/x/songs", Host=own, Origin="http://evil.example")[0] == 403
    assert app.ask("POST", "/visitors/x/songs", Host=own, Origin=f"http://{own}")[0] == 409
    assert is_own_name("[::1]:80", "127.0.0.1") and is_own_name("studio:80", "studio")
    assert not any(is_own_name(host, "0.0.0.0") for host in ("", "[::1", "evil.example", "127.0.0.1.evil.example:1"))


def test_the_page_names_no_other_computer(app):
    page = app.ask("GET", "/")[1].decode()
    assert not re.findall(r"(?:src|href|url|import)\W{1,3}(?:https?:)?//[^w]", page)
    connection = http.client.HTTPConnection("127.0.0.1", app.port)
    connection.request("GET", "/")
    headers = connection.getresponse().headers
    assert "default-src 'self'" in headers["content-security-policy"] and headers["cache-control"] == "no-store"


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process on Windows")
@pytest.mark.parametrize("how", [pytest.param("SIGINT", marks=pytest.mark.slow), "SIGTERM"])
def test_at_its_end_nothing_is_left(model, tmp_path, how):
    app = App(tmp_path, "--model_path", str(model))
    visitor = Visitor(app, "0" * 32)
    visitor.send("long.wav", sound(60.0), **LONG)
    visitor.hear(lambda news: news["songs"] and news["songs"][0]["progress"] > 0)
    assert app.files()
    app.process.send_signal(getattr(signal, how))
    _, errors = app.process.communicate(timeout=PATIENCE)
    assert (app.process.returncode, errors) == (130, "interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_wrong_start_is_one_sentence(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for arguments, words in [
            (["--port", str(taken.getsockname()[1])], ["--port"]),
            (["--port", "70000"], ["--port"]),
            (["--host", "no.such.host.invalid"], ["no.such.host.invalid", "--host"]),
            (["--port", "0", "--model_path", "gone.pt"], ["gone.pt"]),
        ]:
            command = ["--no-browser", "--model_path", str(model), *arguments]
            with pytest.raises(SystemExit) as caught:
                cli.main(lambda command=command: program.run(command))
            out, said = capsys.readouterr()
            assert caught.value.code == 2 and not out
            assert said.count("\n") == 1 and said.startswith("error: "), said
            assert all(word in said for word in words)


def test_a_sentence_about_a_song_names_no_folder_of_this_machine(tmp_path):
    """Such as that of a disk which is too small for the stems of an hour."""

    def work(song: QueuedSong) -> dict[str, int]:
        raise UserError(f"'{song.folder / 'vocals.wav'}' cannot be written beside '{song.source}': no space is left")

    queue = Queue(work, tmp_path)
    queue.ready(queue.add("visitor", "내 노래.wav", 1, 1, 1))
    assert eventually(lambda: queue.report("visitor")[0]["state"] == "failed")
    (told,) = queue.report("visitor")
    assert told["error"] == "'vocals.wav' cannot be written beside '내 노래.wav': no space is left"
    queue.close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc")
def test_an_hour_comes_back_whole_in_the_memory_of_five_minutes(tmp_path):
    config, path, folder = tiny_config("separation.chunk_seconds=10"), tmp_path / "model.pt", tmp_path / "temporary"
    save_checkpoint(path, {"ema": random_unet(config).state_dict(), "config": to_dict(config), "step": 1})
    folder.mkdir()
    app, peaks, shares = App(folder, "--model_path", str(path)), [], []
    try:
        visitor = Visitor(app, "0" * 32)
        for minutes in (5, 60):
            samples = (3000 * np.random.default_rng(minutes).standard_normal(60 * minutes * RATE)).astype(np.int16)
            soundfile.write(tmp_path / "song.wav", samples, RATE, "PCM_16")
            song = visitor.send("song.wav", (tmp_path / "song.wav").read_bytes())
            shares.clear()
            visitor.hear(lambda news: shares.append(news["songs"][-1]["progress"]) or len(shares) > 3)
            told = visitor.finished(patience=900)
            assert (told["state"], told["frames"]) == ("done", len(samples)), told["error"]
            assert shares == sorted(shares) and shares[-1] < 1
            status, last = app.ask("GET", f"{song}/samples?start={len(samples) - RATE}&count={RATE}")
            both = np.frombuffer(last, "<f4").reshape(2, RATE)
            assert status == 200 and np.abs(both.sum(0) - samples[-RATE:] / 2**15).max() < 1e-5
            status = Path(f"/proc/{app.process.pid}/status").read_text(encoding="utf-8")
            peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)
        assert peaks[1] < 1.1 * peaks[0], peaks
        visitor.leave()
        assert eventually(lambda: not app.files())
    finally:
        app.process.kill()


# --- installed -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_package_brings_weights_page_and_command(model, tmp_path):
    source, installed, folder = (tmp_path / name for name in ("source", "installed", "elsewhere"))
    shutil.copytree(ROOT / "diffvocsep", source / "diffvocsep", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    weights = source / "checkpoints" / "pretrained.safetensors"
    release(load_checkpoint(model), weights)  # small ones in their place
    shutil.copy(ROOT / "checkpoints" / "LICENSE", weights.parent)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(installed), str(source)]
    done = subprocess.run(pip, capture_output=True, encoding="utf-8")
    need(done.returncode == 0, f"a package index, for setuptools ({done.stderr.strip()[-300:]})")
    assert (installed / "diffvocsep" / "page" / "index.html").is_file()
    assert [path.name for path in (installed / "bin").iterdir()] == ["diffvocsep"]
    shutil.rmtree(source)
    folder.mkdir()
    (folder / "노래.wav").write_bytes(sound(0.6))
    command = [sys.executable, str(installed / "bin" / "diffvocsep")]
    environment = ENVIRONMENT | {"PYTHONPATH": str(installed)}
    for arguments, code in [(["노래.wav"], 0), (["gone.wav"], 2), (["--version"], 0)]:
        done = subprocess.run(
            [*command, *arguments], cwd=folder, env=environment, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == code, done.stderr
    command_line(tmp_path, "--input", str(folder / "노래.wav"), "--model_path", str(model))
    for stem in ("vocals", "instrumental"):
        assert (folder / f"노래_{stem}.wav").read_bytes() == (tmp_path / f"{stem}.wav").read_bytes()
    assert len(list(folder.iterdir())) == 3


# --- in a browser -------------------------------------------------------------------------------------------------


FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-sync --lang=en
    --disable-background-networking --disable-component-update --mute-audio --window-size=900,1250
    --autoplay-policy=no-user-gesture-required"""


@pytest.fixture
def browser(tmp_path):
    """Headless Chromium that keeps its downloads in `tmp_path / "downloads"`."""
    programs = [shutil.which(name) for name in ("chromium", "google-chrome", "chromium-browser")]
    program = next(filter(None, programs), None)
    need(bool(program and shutil.which("chromedriver")), "Chromium and chromedriver (apt install chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium (requirements-dev.txt)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tempfile.mkdtemp(dir=tmp_path)}")
    options.add_experimental_option("prefs", {
        "download.default_directory": str(tmp_path / "downloads"), "intl.accept_languages": "en",
    })  # fmt: skip
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


DROP = """
const data = new DataTransfer();
for (const file of arguments[0].files) data.items.add(file);
arguments[0].value = "";
const fall = new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true});
document.querySelector("#drop").dispatchEvent(fall);
"""


def drop(driver, *paths: Path) -> None:
    """Let files fall onto the page. A browser takes real files only from an input; from there they are dropped."""
    driver.execute_script("""
        if (!document.querySelector("#held")) {
            const held = Object.assign(document.createElement("input"), {type: "file", multiple: true, id: "held"});
            document.body.append(held); }""")
    held = driver.find_element("css selector", "#held")
    held.send_keys("\n".join(map(str, paths)))
    driver.execute_script(DROP, held)
    driver.execute_script("arguments[0].remove()", held)


def find(driver, selector: str):
    """The element, as soon as it is there."""
    assert eventually(lambda: bool(driver.find_elements("css selector", selector))), selector
    return driver.find_element("css selector", selector)


def test_a_song_in_a_browser(browser, tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    app = App(folder)  # with the released weights
    try:
        browser.get(app.address)
        broken = tmp_path / "broken.mp3"
        broken.write_bytes(Random(0).randbytes(3000))
        drop(browser, DEMO, broken)
        button = find(browser, "#go:enabled")
        assert button.text == "Separate 2 songs"
        button.click()
        card = find(browser, "[data-state=done]")
        assert "broken.mp3" in find(browser, "[data-state=failed] .error").text
        picture = find(browser, "[data-state=done] img")
        assert eventually(lambda: browser.execute_script("return arguments[0].naturalWidth", picture) > 900)
        if wanted := os.environ.get("PAGE_SCREENSHOT"):
            screenshot(browser, Path(wanted))
        listen_in(browser)
        for name in ("vocals.wav", "instrumental.wav"):
            card.find_element("css selector", f"[data-file='{name}']").click()
        command_line(tmp_path, "--input", str(DEMO))
        for name in ("vocals.wav", "instrumental.wav"):
            came = tmp_path / "downloads" / f"song_{name}"
            assert eventually(came.exists) and came.read_bytes() == (tmp_path / name).read_bytes()
        browser.get("about:blank")  # the tab is gone
        assert eventually(lambda: not app.files())
    finally:
        app.process.kill()


def listen_in(driver) -> None:
    """Play, switch and seek: one position for all three, and the gains of what is chosen."""
    state = "return [...document.querySelectorAll('[data-state=done] input')].map(e => Number(e.value))[0]"
    gains = "return player.gains.map(gain => Math.round(gain.gain.value * 1e3) / 1e3)"
    find(driver, "[data-state=done] .play").click()
    assert eventually(lambda: driver.execute_script(state) > 0.3)
    assert driver.execute_script(gains) == [1, 1]
    for stem, expected in [("vocals", [1, 0]), ("instrumental", [0, 1]), ("mixture", [1, 1])]:
        before = driver.execute_script(state)
        find(driver, f"[data-state=done] [data-stem={stem}]").click()
        assert eventually(lambda expected=expected: driver.execute_script(gains) == expected)
        assert before <= driver.execute_script(state) < before + 15  # it went on
    driver.execute_script("player.seek(player.card, 19.5)")
    assert eventually(lambda: driver.execute_script("return player.card === null"))  # it has come to its end
    assert driver.execute_script(state) == 0


def screenshot(driver, target: Path) -> None:
    """How docs/page.png is made: PAGE_SCREENSHOT=docs/page.png python -m pytest tests/project/test_app.py -k browser"""
    from PIL import Image

    driver.execute_script(
        "document.querySelector('[data-state=failed] .remove').click();player.seek([...cards.values()][0], 7.3)"
    )
    time.sleep(1)
    bottom = driver.execute_script("return document.querySelector('.song').getBoundingClientRect().bottom")
    image = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    image = image.crop((40, 20, image.width - 40, round(bottom) + 24))
    image.quantize(128).save(target, optimize=True)
