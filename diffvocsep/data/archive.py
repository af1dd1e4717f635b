"""Unpack zip and 7z archives from strangers so that nothing is written outside of the target folder.

What is refused, before anything is written: names that lead elsewhere (`../`, absolute, a drive) or that no disk can
hold, links and other special files, encryption, two entries of one name, a file where another entry needs a folder, and
more or larger entries than a dataset can have. A zip entry that is larger than announced is stopped at that size.
"""

from __future__ import annotations

import errno
import lzma
import shutil
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm.auto import tqdm

from ..util.errors import UserError, size
from ..util.strict_yaml import shorten

MAX_BYTES = 100 * 10**9  # bytes unpacked; MUSDB18-HQ has 32e9
MAX_ENTRIES = 100_000
BLOCK_BYTES = 1 << 20
MAX_DEPTH, MAX_NAME_BYTES, MAX_PATH_BYTES = 50, 255, 4000  # folders in one another, bytes of a name and of a path
DAMAGE_ERRORS = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, FileExistsError,
          NotADirectoryError, IsADirectoryError, ValueError, struct.error, OverflowError, RuntimeError)  # fmt: skip
ZIP, SEVEN_ZIP = b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c"


class BadArchive(UserError):
    """The archive is damaged or hostile, or none at all: there is no use in keeping it."""


@dataclass(frozen=True)
class _Entry:
    name: str
    size: int  # bytes, as announced
    folder: bool
    special: bool  # a link, a device, ...
    encrypted: bool = False


def unpack(archive: Path, target: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpack into `target`, which is made anew; it exists afterwards only if all of the archive is in it.

    Args:
        largest: bytes that the contents may have.

    Raises:
        BadArchive: no zip or 7z archive, a damaged or a hostile one.
        UserError: no `py7zr` for a 7z, or a disk that is too full.
    """
    with archive.open("rb") as file:
        magic = file.read(6)
    if magic[:4] == ZIP:
        unpack_into = _unpack_zip
    elif magic == SEVEN_ZIP:
        unpack_into = _unpack_7z
    else:
        raise BadArchive(f"'{archive}' is neither a zip nor a 7z archive; perhaps a web page came instead, try again")
    remove(target)
    target.mkdir(parents=True)
    try:
        unpack_into(archive, target, max_bytes)
    except BaseException:
        remove(target)
        raise


def remove(path: Path) -> None:
    """Remove a file, a folder or a link, not what it leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def _safe_targets(archive: Path, entries: list[_Entry], target: Path, max_bytes: int) -> dict[str, Path]:
    """Where each entry is to be written. Raises UserError for anything that a dataset has no use for."""

    def refuse(entry: _Entry, reason: str) -> None:
        raise BadArchive(
            f"'{archive}' is refused: its entry {shorten(repr(entry.name))} {reason}; get it from somewhere else"
        )

    total = sum(entry.size for entry in entries)
    if len(entries) > MAX_ENTRIES or total > max_bytes:
        raise BadArchive(
            f"'{archive}' is refused: it has {len(entries)} entries and {total / 1e9:.3g} GB unpacked, more than the "
            f"{MAX_ENTRIES} and {max_bytes / 1e9:.3g} GB that a dataset may have; get it from somewhere else"
        )
    destinations: dict[str, Path] = {}
    taken = set()
    for entry in entries:
        path = PurePosixPath(entry.name.replace("\\", "/"))
        nameless = not path.parts and not entry.folder
        if path.is_absolute() or nameless or ".." in path.parts or ":" in entry.name or "\0" in entry.name:
            refuse(entry, "would be written outside of the folder")
        if not _storable(path, target):
            refuse(entry, "has a name that not every disk can hold")
        if entry.special:
            refuse(entry, "is a link or a special file")
        if entry.encrypted:
            refuse(entry, "is encrypted")
        if not entry.folder and str(path).lower() in taken:
            refuse(entry, "is in it twice")
        taken.add(str(path).lower())
        destinations[entry.name] = target.joinpath(*path.parts)
    folders = {folder for destination in destinations.values() for folder in destination.parents}
    for entry in entries:
        if not entry.folder and destinations[entry.name] in folders:
            raise _damaged_archive(archive, f"its entry {shorten(repr(entry.name))} is a file and a folder at once")
    free = shutil.disk_usage(target).free
    if total > free:
        raise UserError(
            f"'{archive}' needs {size(total)} unpacked but only {size(free)} are free in '{target.parent}'; make room"
        )
    return destinations


def _storable(path: PurePosixPath, target: Path) -> bool:
    try:
        sizes = [len(part.encode()) for part in (*path.parts, str(target.joinpath(*path.parts[: MAX_DEPTH + 1])))]
    except UnicodeEncodeError:  # half a character
        return False
    control = any(ord(character) < 32 for character in str(path))
    return (
        len(path.parts) <= MAX_DEPTH
        and max(sizes[:-1], default=0) <= MAX_NAME_BYTES
        and sizes[-1] <= MAX_PATH_BYTES
        and not control
    )


def _damaged_archive(archive: Path, reason: object) -> BadArchive:
    text = str(reason).strip().splitlines() or ["no reason given"]
    return BadArchive(f"'{archive}' is damaged ({shorten(text[-1], 120)}); fetch it again")


def _unpack_zip(archive: Path, target: Path, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(archive) as file:
            infos = file.infolist()
            destinations = _safe_targets(archive, [_zip_entry(info) for info in infos], target, max_bytes)
            total = sum(info.file_size for info in infos)
            with tqdm(total=total, desc=f"Unpacking {archive.name}", unit="B", unit_scale=True) as bar:
                for info in infos:
                    destination = destinations[info.filename]
                    if info.is_dir():
                        destination.mkdir(parents=True, exist_ok=True)
                        continue
                    destination.parent.mkdir(parents=True, exist_ok=True)
                    written = 0
                    with file.open(info) as source, destination.open("xb") as sink:
                        while block := _read_block(source):
                            written += len(block)
                            if written > info.file_size:
                                raise zipfile.BadZipFile(f"{info.filename} is larger than announced")
                            sink.write(block)
                            bar.update(len(block))
                    if written != info.file_size:
                        raise zipfile.BadZipFile(f"{info.filename} ends early")
    except DAMAGE_ERRORS as error:
        raise _damaged_archive(archive, error) from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # an error of the disk; EINVAL: the archive points before its own beginning
            raise
        raise _damaged_archive(archive, error) from None


def _read_block(source: IO[bytes]) -> bytes:
    try:
        return source.read(BLOCK_BYTES)
    except OSError as error:
        if error.errno is not None:  # an error of the disk
            raise
        raise zipfile.BadZipFile(str(error)) from None  # bzip2 raises plain OSErrors for damaged data


def _zip_entry(info: zipfile.ZipInfo) -> _Entry:
    kind = stat.S_IFMT(info.external_attr >> 16)
    special = kind not in (0, stat.S_IFREG, stat.S_IFDIR)
    return _Entry(info.filename, info.file_size, info.is_dir(), special, bool(info.flag_bits & 1))


def _unpack_7z(archive: Path, target: Path, max_bytes: int) -> None:
    try:
        import py7zr
    except ImportError:
        raise UserError(f"'{archive}' is a 7z archive; to unpack it: pip install py7zr") from None
    try:
        with py7zr.SevenZipFile(archive) as file:
            if file.needs_password():
                raise BadArchive(f"'{archive}' is refused: it is encrypted; get it from somewhere else")
            entries = [_Entry(i.filename, i.uncompressed or 0, i.is_directory, not (i.is_directory or i.is_file))
                       for i in file.list()]  # fmt: skip
            _safe_targets(archive, entries, target, max_bytes)
            print(f"unpacking {archive.name}: {sum(e.size for e in entries) / 1e9:.3g} GB", flush=True)
            file.extractall(target)
    except py7zr.exceptions.PasswordRequired:  # even the list of names is encrypted
        raise BadArchive(f"'{archive}' is refused: it is encrypted; get it from somewhere else") from None
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise _damaged_archive(archive, error) from None
    except (UserError, OSError, MemoryError):  # of the disk or the computer, not of the archive
        raise
    except py7zr.exceptions.UnsupportedCompressionMethodError as error:
        raise UserError(f"'{archive}' is packed in a way that py7zr does not know ({error})") from None
    except Exception as error:  # the decoders of 7z have errors of many kinds for damaged data
        raise _damaged_archive(archive, error) from None
    for path in target.rglob("*"):  # the list of names may have lied
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise BadArchive(f"'{archive}' is refused: its entry '{path.name}' is a link or a special file")
