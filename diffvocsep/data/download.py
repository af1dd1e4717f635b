"""MUSDB18-HQ from where it is kept, into an empty folder: fetched, checked, unpacked, and only then in its place.

Everything unfinished lies in the hidden folder `<root>/.download`, so that no half of a dataset is taken for one, and
an interrupted download goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from tqdm.auto import tqdm

from ..config import DataConfig
from ..util.atomic import replace_file
from ..util.errors import UserError, size
from .archive import BadArchive, remove, unpack

WORK, LOCK = ".download", ".download.lock"  # in the root
ARCHIVE, UNPACKED = "archive", "unpacked"  # in WORK, each there only when complete
BLOCK = 1 << 20
ATTEMPTS = 5  # without a new byte
PAUSE = 2.0  # s before the second attempt; twice as long before each further one
TIMEOUT = 60.0  # s without an answer


@dataclass(frozen=True)
class Source:
    """Where an archive is, and what is known of it."""

    name: str
    url: str
    size: int  # bytes
    unpacked: int  # bytes, about
    sha256: str | None = None  # of exactly this file


ZENODO = Source(
    "Zenodo record 3338373",
    "https://zenodo.org/records/3338373/files/musdb18hq.zip?download=1",
    22_656_664_047,
    32_100_000_000,
    "baac80d0483c61d74b2e5f3be75fa557eec52898339e6aa45c1fa48833c5d21d",  # as pinned by torchaudio.datasets.MUSDB_HQ
)
GDRIVE = Source("Google Drive", "1ieGcVPPfgWg__BTDlIGi1TpntdOWwwdn", ZENODO.size, ZENODO.unpacked)
LICENCE = "for non-commercial, academic use; see https://zenodo.org/records/3338373"


def ensure_musdbhq(data: DataConfig) -> None:
    """Download and unpack MUSDB18-HQ into `data.musdbhq_root`, if that is missing or empty.

    Raises:
        UserError: a download that is needed is not allowed, does not fit, fails, or is not what it should be.
    """
    root = Path(data.musdbhq_root)
    if not _is_missing(root):
        return
    if not data.download:
        raise UserError(
            f"there is no dataset in '{root}' and nothing is fetched (data.download is false, or this is a check); set "
            "data.musdbhq_root to the folder of MUSDB18-HQ, or start train.py with data.download=true"
        )
    work = root / WORK
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(root / LOCK):  # of several processes, one works and the others wait
        if not _is_missing(root):
            return
        if not (work / UNPACKED).is_dir():
            _fetch(data, work)
            _unpack(work)
        _move(work / UNPACKED, root)
        shutil.rmtree(work, ignore_errors=True)


def needs_download(data: DataConfig) -> bool:
    """Whether `ensure_musdbhq` would download: it may, and neither the dataset nor the whole archive is there."""
    root = Path(data.musdbhq_root)
    fetched = (root / WORK / UNPACKED).is_dir() or (root / WORK / ARCHIVE).is_file()
    return data.download and _is_missing(root) and not fetched


def source_of(data: DataConfig) -> Source:
    return GDRIVE if data.download_source == "gdrive" else ZENODO


def _is_missing(root: Path) -> bool:
    """Whether there is nothing to see in `root`, or not all of it has been moved there."""
    if not root.is_dir() or (root / WORK / UNPACKED).is_dir():
        return True
    return all(f.name.startswith(".") for f in root.iterdir())


def _fetch(data: DataConfig, work: Path) -> None:
    """Download the archive to `work`, unless all of it is there."""
    archive = work / ARCHIVE
    if archive.is_file():
        return
    source = source_of(data)
    name = "-".join(filter(None, (data.download_source, data.download_id)))  # what came of another id is another file
    partial = work / f"{name}.part"
    done = sum(f.stat().st_size for f in work.glob(f"{partial.name}*"))
    print(
        f"MUSDB18-HQ is fetched from {source.name} to '{work.parent}': {source.size / 1e9:.1f} GB, unpacked "
        f"{source.unpacked / 1e9:.0f} GB, {LICENCE} (data.download=false forbids it)",
        file=sys.stderr,
    )
    needed, free = source.size - done + source.unpacked, shutil.disk_usage(work).free
    if needed > free:
        raise UserError(
            f"MUSDB18-HQ needs another {size(needed)} until it is unpacked, but {size(free)} are free "
            f"in '{work.parent}'; make room, or set data.musdbhq_root to another disk"
        )
    if data.download_source == "gdrive":
        fetch_gdrive(data.download_id or source.url, partial)
    else:
        fetch_http(source, partial)
    replace_file(partial, archive)


def fetch_gdrive(file_id: str, target: Path) -> None:
    """Fetch a file from Google Drive, going on where an earlier attempt stopped."""
    try:
        import gdown
    except ImportError:
        raise UserError(
            "data.download_source gdrive needs the package gdown; install it with: pip install gdown, or set "
            "data.download_source to zenodo"
        ) from None
    try:
        got = gdown.download(id=file_id, output=str(target), resume=True)
    except Exception as error:  # of gdown, requests, ...: a quota that is used up, no network, no such file
        got, reason = None, (str(error).strip().splitlines() or [type(error).__name__])[0]
    else:
        reason = "no reason given"
    if got is None or not target.is_file():
        raise UserError(
            f"Google Drive does not give the file {file_id} ({reason.rstrip('.:')}); try again later, or set "
            "data.download_source to zenodo"
        )


def fetch_http(source: Source, target: Path) -> None:
    """Fetch `source` to `target`, going on where an earlier attempt stopped; check its length and its checksum."""
    failures = 0
    with tqdm(total=source.size, desc="Downloading", unit="B", unit_scale=True) as bar:
        while (done := target.stat().st_size if target.exists() else 0) < source.size:
            bar.n = done
            try:
                _append_rest(source, target, done, bar)
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code != 429:
                    raise UserError(f"{source.name} refuses the download ({error}); see {source.url}") from None
                reason: object = error
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
            else:
                reason = "the connection ended early"
            now = target.stat().st_size if target.exists() else 0
            failures = 0 if now > done else failures + 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{source.name} cannot be reached ({reason}); the same command goes on from the {now / 1e9:.2f} GB "
                    "that are there"
                )
            if failures:
                time.sleep(PAUSE * 2 ** (failures - 1))
    if target.stat().st_size != source.size or (source.sha256 and _sha256(target) != source.sha256):
        target.unlink()
        raise UserError(f"what came from {source.name} is not the file that it should be; run the same command again")


def _append_rest(source: Source, target: Path, done: int, bar: tqdm) -> None:
    """Append to `target` what follows its first `done` bytes, until the connection ends."""
    request = urllib.request.Request(source.url, headers={"Range": f"bytes={done}-", "User-Agent": "diffvocsep"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {done}-")
        if not resumed:  # the server sends everything
            bar.n = done = 0
        with target.open("ab" if resumed else "wb") as file:
            while done <= source.size and (block := answer.read(BLOCK)):
                file.write(block)
                done += len(block)
                bar.update(len(block))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, tqdm(total=path.stat().st_size, desc="Checking", unit="B", unit_scale=True) as bar:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _unpack(work: Path) -> None:
    """Unpack the archive to `work/unpacked` and delete it, as a bad one is deleted too."""
    unpacking = work / "unpacking"
    try:
        unpack(work / ARCHIVE, unpacking)
        dataset = _dataset_folder(unpacking)
        if not dataset:
            remove(unpacking)
            raise BadArchive("there are no songs as in MUSDB18-HQ in what was fetched; see data.download_id")
    except BadArchive:
        remove(work / ARCHIVE)
        raise
    replace_file(dataset, work / UNPACKED)
    remove(unpacking)
    remove(work / ARCHIVE)


def _dataset_folder(folder: Path) -> Path | None:
    """The folder, or one at most two levels below, that holds `train` or songs."""
    for pattern in ("", "*", "*/*"):
        for parent in sorted(folder.glob(pattern)) if pattern else [folder]:
            folders = [f for f in parent.iterdir() if f.is_dir()] if parent.is_dir() else []
            if any(f.name.lower() == "train" or any(f.glob("[Vv]ocals.*")) for f in folders):
                return parent
    return None


def _move(unpacked: Path, root: Path) -> None:
    """Move the dataset to its place. If this stops half-way, `unpacked` is still there, and the next call goes on."""
    for entry in list(unpacked.iterdir()):
        replace_file(entry, root / entry.name)
    remove(unpacked)
