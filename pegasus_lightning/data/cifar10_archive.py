"""Download, verification and safe unpacking of the CIFAR-10 archive.

The archive's hash and its member list are checked first. Then only files known by name and hash are written, under
names given here.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import logging
import tarfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from filelock import FileLock
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import whole_file

CHUNK_BYTES = 1 << 20
NETWORK_TIMEOUT_SECONDS = 30.0

logger = logging.getLogger(__name__)

NamesAndHashes = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Archive:
    """URL and MD5 of an archive, and the files in its folder as (name, MD5)."""

    url: str
    filename: str
    md5: str
    folder: str
    train_files: NamesAndHashes
    test_files: NamesAndHashes
    other_files: NamesAndHashes = ()


OFFICIAL = Archive(
    url=CIFAR10.url,
    filename=CIFAR10.filename,
    md5=CIFAR10.tgz_md5,
    folder=CIFAR10.base_folder,
    train_files=tuple((name, md5) for name, md5 in CIFAR10.train_list),
    test_files=tuple((name, md5) for name, md5 in CIFAR10.test_list),
    # Unpacked only so that torchvision can use the same folder.
    other_files=((CIFAR10.meta["filename"], CIFAR10.meta["md5"]),),
)


class _Unavailable(Exception):
    """Reason why the data is not available; part of the first line of the UserError."""


def ensure(root: Path, archive: Archive, files: NamesAndHashes, download: bool) -> None:
    """Make sure that `files` exist in root/folder: unpack the archive in `root`, or download it first.

    Files that exist are not checked here; their reader checks the hash. No partial file is left behind. Raise UserError
    if the files are not available; the message lists every remedy.
    """
    if not _missing(root, archive, files):
        return
    try:
        _fetch(root, archive, files, download)
    except (_Unavailable, OSError, EOFError, tarfile.TarError, zlib.error, http.client.HTTPException) as error:
        raise UserError(
            f"CIFAR-10 is not available in {root}: {error}. There are three ways to continue:\n"
            f"  1. download {archive.url} by hand and put {archive.filename} into {root} "
            "(it is checked and unpacked);\n"
            "  2. data=image_folder data.root=<folder>: images of your own, <folder>/{train,test}/<class>/*.png;\n"
            "  3. data=silhouettes: drawn pictures, no download."
        ) from error


def md5_of(file: BinaryIO) -> str:
    """Return the hexadecimal MD5 of the unread rest of `file`."""
    digest = hashlib.md5(usedforsecurity=False)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


def _missing(root: Path, archive: Archive, files: NamesAndHashes) -> NamesAndHashes:
    return tuple((name, md5) for name, md5 in files if not (root / archive.folder / name).exists())


def _fetch(root: Path, archive: Archive, files: NamesAndHashes, download: bool) -> None:
    """Write the missing files into root/folder, from the archive in `root` or from its URL."""
    tarball = root / archive.filename
    if not tarball.exists() and not download:
        raise _Unavailable("the archive is missing, and downloading is switched off (data.download=true downloads)")
    root.mkdir(parents=True, exist_ok=True)
    # The jobs of a sweep start together: one downloads, the others wait for it.
    with FileLock(root / f".{archive.filename}.lock"):
        if not _missing(root, archive, files):
            return
        if not tarball.exists():
            _download(archive, tarball)
        _unpack(archive, tarball)


def _download(archive: Archive, tarball: Path) -> None:
    for leftover in tarball.parent.glob(f".{tarball.name}.*.tmp"):  # of a killed run: this process holds the lock
        leftover.unlink()
    logger.info("Downloading %s to %s", archive.url, tarball)
    request = urllib.request.Request(archive.url, headers={"User-Agent": "pegasus_lightning"})
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT_SECONDS) as response, whole_file(tarball) as file:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=archive.filename, disable=None) as progress:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                progress.update(len(chunk))
        if digest.hexdigest() != archive.md5:  # raised here, inside `whole_file`, to discard the file
            raise _Unavailable(f"{archive.url} sent a corrupt file (MD5 {digest.hexdigest()}, not {archive.md5})")


def _unpack(archive: Archive, tarball: Path) -> None:
    """Check the hash of the archive and of each known file, and write those files only, under names given here."""
    folder = tarball.parent / archive.folder
    with open(tarball, "rb") as file:
        if md5_of(file) != archive.md5:
            raise _Unavailable(f"{tarball} is corrupt (its MD5 is not {archive.md5}): delete it")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:gz") as tar:
            members = {member.name: member for member in tar.getmembers()}
            for name, member in members.items():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                    raise _Unavailable(f"{tarball} is unsafe (it has a member '{name}'): delete it")
            folder.mkdir(exist_ok=True)
            known = archive.train_files + archive.test_files + archive.other_files
            for name, md5 in _missing(tarball.parent, archive, known):
                wanted = members.get(f"{archive.folder}/{name}")
                source = tar.extractfile(wanted) if wanted is not None else None
                if source is None:
                    raise _Unavailable(f"{tarball} lacks {archive.folder}/{name}: delete it")
                data = source.read()
                if md5_of(io.BytesIO(data)) != md5:
                    raise _Unavailable(f"{archive.folder}/{name} in {tarball} is corrupt: delete the archive")
                with whole_file(folder / name) as target:
                    target.write(data)
