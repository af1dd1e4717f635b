"""Archives from strangers: what is whole is unpacked, what is hostile or damaged leaves nothing behind."""

from __future__ import annotations

import errno
import io
import stat
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffvocsep.data import archive as module
from diffvocsep.data.archive import BadArchive, unpack
from diffvocsep.util.errors import UserError

SONGS = {f"train/{song}/{stem}.wav": f"{song} {stem}".encode() * 500 for song in ("A - B", "노래 - C") for stem in "vo"}


def zipped(path: Path, entries: dict[str, bytes], **options) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, **options) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return path


def sevened(path: Path, entries: dict[str, bytes], **options) -> Path:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(path, "w", **options) as file:
        for name, content in entries.items():
            file.writef(io.BytesIO(content), name)
    return path


def files(folder: Path) -> dict[str, bytes]:
    return {f.relative_to(folder).as_posix(): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def refused(archive: Path, **options) -> str:
    """The sentence. Nothing is left of the target, and nothing else has been written."""
    before = files(archive.parent)
    with pytest.raises(BadArchive) as caught:
        unpack(archive, archive.parent / "target", **options)
    assert files(archive.parent) == before and not (archive.parent / "target").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("make", [zipped, sevened])
def test_what_was_packed_is_unpacked(tmp_path, make):
    target = tmp_path / "target"
    (target / "old").mkdir(parents=True)
    unpack(make(tmp_path / "archive", SONGS), target)
    assert files(target) == SONGS and not (target / "old").exists()


def test_folders_and_the_separator_of_windows(tmp_path):
    unpack(
        zipped(tmp_path / "a.zip", {"train/": b"", "./": b"", "train\\A - B\\vocals.wav": b"x"}), tmp_path / "target"
    )
    assert files(tmp_path / "target") == {"train/A - B/vocals.wav": b"x"}


@pytest.mark.parametrize("make", [zipped, sevened])
@pytest.mark.parametrize(
    "name", ["../outside", "train/../../outside", "/outside", "..\\outside", "C:\\outside", "a/C:outside"]
)
def test_no_path_leaves_the_folder(tmp_path, make, name):
    if make is sevened and name in ("/outside", "C:\\outside"):
        pytest.skip("py7zr does not write such names")
    try:
        path = make(tmp_path / "archive", {"train/A - B/vocals.wav": b"x", name: b"evil"})
    except ValueError:
        pytest.skip("py7zr does not write such names")
    assert "would be written outside" in refused(path)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_no_link_and_no_special_file_is_made(tmp_path, kind):
    (tmp_path / "secret").mkdir()
    link = zipfile.ZipInfo("train")
    link.create_system, link.external_attr = 3, (kind | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr(link, str(tmp_path / "secret"))
        file.writestr("train/vocals.wav", b"followed")
    assert "is a link or a special file" in refused(tmp_path / "a.zip")


def test_no_link_is_made_from_a_7z(tmp_path):
    py7zr = pytest.importorskip("py7zr")
    (tmp_path / "secret").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    with py7zr.SevenZipFile(tmp_path / "a.7z", "w") as file:
        file.write(tmp_path / "link", "train")
    assert "is a link or a special file" in refused(tmp_path / "a.7z")


def test_a_link_in_the_place_of_the_target_is_not_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"precious")
    (tmp_path / "target").symlink_to(tmp_path / "secret")
    unpack(zipped(tmp_path / "a.zip", SONGS), tmp_path / "target")
    assert files(tmp_path / "secret") == {"file": b"precious"} and files(tmp_path / "target") == SONGS


@pytest.mark.parametrize("make", [zipped, sevened])
def test_bombs_are_not_lit(tmp_path, make):
    path = make(tmp_path / "archive", {f"train/{i}.wav": bytes(300_000) for i in range(4)})
    assert path.stat().st_size < 12_000
    text = refused(path, max_bytes=1_000_000)
    assert "0.0012 GB unpacked" in text and "0.001 GB that a dataset may have" in text
    unpack(path, tmp_path / "target", max_bytes=1_200_000)


def test_many_entries_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_ENTRIES", 20)
    assert "21 entries" in refused(zipped(tmp_path / "a.zip", {f"{i}.wav": b"" for i in range(21)}))


def test_a_zip_that_lies_about_its_sizes_is_stopped(tmp_path):
    path = zipped(tmp_path / "a.zip", {"train/bomb.wav": bytes(50_000_000)})
    content = path.read_bytes()
    for size in (10).to_bytes(4, "little"), (60_000_000).to_bytes(4, "little"):
        path.write_bytes(content.replace((50_000_000).to_bytes(4, "little"), size))
        assert "is damaged" in refused(path)


def test_an_encrypted_zip_is_refused(tmp_path):
    path = zipped(tmp_path / "a.zip", {"train/a.wav": b"x"})
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refused(path)


def test_an_encrypted_7z_is_refused(tmp_path):
    assert "is encrypted" in refused(sevened(tmp_path / "a.7z", SONGS, password="secret"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("names", [("a.wav", "a.wav"), ("A.wav", "a.WAV")])
def test_two_entries_of_one_name_are_refused(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name in names:
            file.writestr(name, name)
    assert "is in it twice" in refused(tmp_path / "a.zip")


def test_a_file_where_a_folder_must_be_is_damage(tmp_path):
    assert "is damaged" in refused(zipped(tmp_path / "a.zip", {"train": b"x", "train/vocals.wav": b"x"}))


@pytest.mark.parametrize("make", [zipped, sevened])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_archives_are_damaged(tmp_path, make, share):
    path = make(tmp_path / "archive", SONGS)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is damaged" in refused(path) and "fetch it again" in refused(path)


@pytest.mark.parametrize("make", [zipped, sevened])
def test_a_flipped_bit_is_found(tmp_path, make):
    path = make(tmp_path / "archive", SONGS)
    content = bytearray(path.read_bytes())
    content[80] ^= 4
    path.write_bytes(content)
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_damage_is_found_however_a_zip_was_packed(tmp_path, method):
    content = np.random.default_rng(0).integers(0, 50, 5000, np.uint8).tobytes()
    with zipfile.ZipFile(tmp_path / "a.zip", "w", method) as file:
        file.writestr("train/a.wav", content)
    whole = (tmp_path / "a.zip").read_bytes()
    unpack(tmp_path / "a.zip", tmp_path / "there")
    assert files(tmp_path / "there") == {"train/a.wav": content}
    for place in range(50, 2000, 97):
        (tmp_path / "a.zip").write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        assert "is damaged" in refused(tmp_path / "a.zip")


def test_an_error_of_the_disk_is_no_damage(tmp_path, monkeypatch):
    def broken(*_) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    archive = zipped(tmp_path / "a.zip", SONGS)
    monkeypatch.setattr(zipfile.ZipExtFile, "read", broken)
    with pytest.raises(OSError, match="Input/output error"):
        unpack(archive, tmp_path / "target")
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("content", [b"", b"<html>Quota exceeded</html>", b"PK"])
def test_something_else_is_no_archive(tmp_path, content):
    (tmp_path / "archive").write_bytes(content)
    assert "neither a zip nor a 7z" in refused(tmp_path / "archive")


def test_without_py7zr_a_zip_still_works_and_a_7z_says_what_to_install(tmp_path, monkeypatch):
    path = sevened(tmp_path / "a.7z", SONGS)
    monkeypatch.setitem(sys.modules, "py7zr", None)
    unpack(zipped(tmp_path / "a.zip", SONGS), tmp_path / "target")
    with pytest.raises(UserError, match="pip install py7zr") as caught:
        unpack(path, tmp_path / "target")
    assert not isinstance(caught.value, BadArchive)  # there is nothing wrong with it


def test_a_full_disk_is_noticed_before(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(10, 9, 1))
    with pytest.raises(UserError, match=r"needs [\d.]+ kB unpacked but only 1 bytes are free.*make room") as caught:
        unpack(zipped(tmp_path / "a.zip", SONGS), tmp_path / "target")
    assert not isinstance(caught.value, BadArchive) and not (tmp_path / "target").exists()


# ---- odd names -----------------------------------------------------------------------------------------------------

LONG, DEEP = "a" * 300, "/".join("d" * 2000)
UNSTORABLE = [
    f"{LONG}.wav",
    f"{LONG}/a.wav",
    "노" * 90 + ".wav",
    f"{DEEP}/a.wav",
    "/".join(["e" * 200] * 30),
    "a\nb.wav",
]


@pytest.mark.parametrize("make", [zipped, sevened])
@pytest.mark.parametrize("name", UNSTORABLE, ids=lambda name: name[:3])
def test_a_name_that_no_disk_holds_is_one_short_sentence(tmp_path, make, name):
    text = refused(make(tmp_path / "archive", {"train/a.wav": b"x", name: b"x"}))
    assert "a name that not every disk can hold" in text and len(text) < 200 + len(str(tmp_path))


@pytest.mark.parametrize("wrong", [b"\xff\xfe", b"\xed\xa0", b"\xc3("])
def test_a_name_that_is_no_utf8_is_damage(tmp_path, wrong):
    path = zipped(tmp_path / "a.zip", {"tr\u00e4in/a.wav": b"x"})
    path.write_bytes(path.read_bytes().replace("\u00e4".encode(), wrong))
    assert "is damaged" in refused(path)


@pytest.mark.parametrize("name", [".", "./."])
def test_a_file_without_a_name_is_refused(tmp_path, name):
    assert "would be written outside" in refused(zipped(tmp_path / "a.zip", {name: b"x"}))


@pytest.mark.parametrize("make", [zipped, sevened])
@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("x/a", "x/a/b/c")])
def test_a_file_that_is_a_folder_too_is_damage(tmp_path, make, names):
    text = refused(make(tmp_path / "archive", dict.fromkeys(names, b"x")))
    assert "is damaged" in text and "a file and a folder at once" in text


def test_a_7z_whose_list_is_encrypted_is_refused(tmp_path):
    path = sevened(tmp_path / "a.7z", SONGS, password="secret", header_encryption=True)
    assert refused(path).endswith("is refused: it is encrypted; get it from somewhere else")


def test_after_a_refusal_the_next_archive_is_unpacked(tmp_path):
    target = tmp_path / "target"
    for name in UNSTORABLE:
        with pytest.raises(BadArchive):
            unpack(zipped(tmp_path / "a.zip", {**SONGS, name: b"x"}), target)
        unpack(zipped(tmp_path / "a.zip", SONGS), target)
        assert files(target) == SONGS


# ---- by chance -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("whole")
    content = {name: data[:200] for name, data in SONGS.items()}
    return [make(folder / str(i), content).read_bytes() for i, make in enumerate((zipped, sevened))]


def try_mutated(content: bytes, folder: Path) -> None:
    """Unpacked, or one sentence; in either case nothing lies outside of the target."""
    archive, target = folder / "a", folder / "target"
    archive.write_bytes(content)
    try:
        unpack(archive, target, max_bytes=10**6)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 300 + len(str(folder))
        assert not target.exists()
    assert {path.name for path in folder.iterdir()} <= {"a", "target"}


MUTATIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(["set", "cut", "insert", "repeat"]),
                               st.binary(min_size=1, max_size=4)), min_size=1, max_size=4)  # fmt: skip


def mutated(content: bytes, mutations: list[tuple[float, str, bytes]]) -> bytes:
    for place, kind, data in mutations:
        at = int(place * len(content))
        tail = {"set": content[at + len(data) :], "cut": content[at + 50 * len(data) :], "insert": content[at:],
                "repeat": content[max(0, at - 40) :]}[kind]  # fmt: skip
        content = content[:at] + (data if kind in ("set", "insert") else b"") + tail
    return content


QUIET = dict(deadline=None, suppress_health_check=list(HealthCheck))


@settings(max_examples=60, derandomize=True, **QUIET)
@given(st.integers(0, 1), MUTATIONS)
def test_a_mutated_archive_is_unpacked_or_one_sentence(whole, tmp_path_factory, kind, mutations):
    try_mutated(mutated(whole[kind], mutations), tmp_path_factory.mktemp("fuzz"))


@pytest.mark.fuzz
@settings(max_examples=600, **QUIET)
@given(st.integers(0, 1), MUTATIONS)
def test_600_mutated_archives_are_unpacked_or_one_sentence(whole, tmp_path_factory, kind, mutations):
    try_mutated(mutated(whole[kind], mutations), tmp_path_factory.mktemp("fuzz"))
