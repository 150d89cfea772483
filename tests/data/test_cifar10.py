"""CIFAR-10 read from small test archives in the official format, with their own hashes."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torchvision

from pegasus_lightning.data.cifar10 import CLASSES, load
from pegasus_lightning.data.cifar10_archive import OFFICIAL, Archive
from pegasus_lightning.utils.errors import UserError

FOLDER = "cifar-10-batches-py"
BIRD, DOG, HORSE = 2, 5, 7
TRAIN_LABELS = {"data_batch_1": [HORSE, BIRD, DOG], "data_batch_2": [BIRD, HORSE]}
TEST_LABELS = {"test_batch": [DOG, BIRD]}


_Pickler: Any = vars(pickle)["_Pickler"]  # the pure Python pickler, whose methods can be overridden


class _Python2Pickler(_Pickler):
    """Pickler that writes text and bytes as the `str` of Python 2, like the official batches."""

    def _save_python2_str(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)

    dispatch: ClassVar = {**_Pickler.dispatch, str: _save_python2_str, bytes: _save_python2_str}


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    buffer = io.BytesIO()
    # NumPy passes its data as bytes (not latin1 text) from protocol 3 on; Python 2 used protocol 2.
    pickler = _Python2Pickler(buffer, protocol=2)
    pickler.proto = 3
    pickler.dump({"batch_label": "a batch", "labels": labels, "data": pixels, "filenames": ["x.png"] * len(labels)})
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def make_archive(source: Path, files: dict[str, bytes], **extra_members: bytes) -> Archive:
    """Write an archive of `files` to source/cifar-10-python.tar.gz, available at a file:// URL."""
    source.mkdir(exist_ok=True)
    data = tar_of({f"{FOLDER}/{name}": content for name, content in files.items()} | extra_members)
    path = source / OFFICIAL.filename
    path.write_bytes(data)
    return replace(
        OFFICIAL,
        url=path.as_uri(),
        md5=md5(data),
        train_files=tuple((name, md5(files[name])) for name in TRAIN_LABELS if name in files),
        test_files=tuple((name, md5(files[name])) for name in TEST_LABELS if name in files),
        other_files=(),
    )


@pytest.fixture
def pixels() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        name: random.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        for name, labels in (TRAIN_LABELS | TEST_LABELS).items()
    }


@pytest.fixture
def files(pixels: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: python2_batch(pixels[name], labels) for name, labels in (TRAIN_LABELS | TEST_LABELS).items()}


@pytest.fixture
def archive(tmp_path: Path, files: dict[str, bytes]) -> Archive:
    return make_archive(tmp_path / "source", files)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


def place_by_hand(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / FOLDER
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


class Malice:
    """Object that writes a file when unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.sentinel), "w")


def three_ways(message: str, archive: Archive, root: Path) -> bool:
    by_hand = archive.url in message and archive.filename in message and str(root) in message
    return by_hand and "data=image_folder data.root=" in message and "data=silhouettes" in message


def test_the_official_archive_is_the_one_torchvision_knows() -> None:
    assert OFFICIAL.url == torchvision.datasets.CIFAR10.url
    assert OFFICIAL.md5 == "c58f30108f718f92721af3b95e74349a"
    assert [name for name, _ in OFFICIAL.train_files] == [f"data_batch_{number}" for number in range(1, 6)]
    assert OFFICIAL.test_files == (("test_batch", "40351d587109b95175f43aff81a1287e"),)


def test_planes_are_red_green_blue_and_rows_run_left_to_right(root: Path, tmp_path: Path) -> None:
    row = np.zeros((1, 3072), dtype=np.uint8)
    row[0, 5] = 10  # red, row 0, column 5
    row[0, 1024 + 32] = 20  # green, row 1, column 0
    row[0, 2048 + 31 * 32 + 30] = 30  # blue, row 31, column 30
    data = python2_batch(row, [HORSE])
    archive = make_archive(tmp_path / "source", {"data_batch_1": data})
    images, labels = load(root, ["horse"], "train", archive=archive)
    wanted = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    wanted[0, 0, 0, 5], wanted[0, 1, 1, 0], wanted[0, 2, 31, 30] = 10, 20, 30
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(images, wanted)
    assert labels.tolist() == [0]


def test_labels_follow_the_order_of_the_classes_asked_for(
    root: Path, archive: Archive, pixels: dict[str, np.ndarray]
) -> None:
    images, labels = load(root, ["horse", "bird"], "train", archive=archive)
    assert labels.tolist() == [0, 1, 1, 0]  # horse, bird, (dog left out), bird, horse
    rows = np.concatenate([pixels["data_batch_1"][:2], pixels["data_batch_2"]])
    assert np.array_equal(images.flatten(1).numpy(), rows)
    assert load(root, ["bird", "horse"], "train", archive=archive)[1].tolist() == [1, 0, 0, 1]
    assert load(root, ["bird", "dog"], "test", archive=archive)[1].tolist() == [1, 0]


def test_torchvision_reads_the_same_from_the_same_files(
    root: Path, archive: Archive, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, labels = load(root, CLASSES, "train", archive=archive)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", archive.train_files)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", archive.test_files)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_load_meta", lambda self: None)
    theirs = torchvision.datasets.CIFAR10(root, train=True)
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), theirs.data)
    assert labels.tolist() == theirs.targets


def test_unknown_class_is_told_the_nearest_and_creates_nothing(root: Path, archive: Archive) -> None:
    with pytest.raises(UserError, match=r"no class 'hrose'. Did you mean 'horse'"):
        load(root, ["bird", "hrose"], "train", archive=archive)
    with pytest.raises(UserError, match=r"twice"):
        load(root, ["bird", "bird"], "train", archive=archive)
    with pytest.raises(UserError, match=r"Did you mean 'train'"):
        load(root, ["bird"], "trian", archive=archive)
    assert not root.exists()


def test_archive_put_there_by_hand_is_unpacked_without_a_network(root: Path, archive: Archive) -> None:
    root.mkdir()
    source = Path(archive.url.removeprefix("file://"))
    source.rename(root / archive.filename)
    images, _ = load(root, ["bird"], "train", download=False, archive=archive)
    assert len(images) == 2
    (root / archive.filename).unlink()  # the unpacked files suffice
    assert len(load(root, ["bird"], "train", download=False, archive=archive)[0]) == 2


@pytest.mark.promise(11)
@pytest.mark.parametrize("wall", ["hash", "unpickler"])
def test_altered_batch_is_refused_and_never_run(
    root: Path, tmp_path: Path, archive: Archive, files: dict[str, bytes], wall: str
) -> None:
    sentinel = tmp_path / "sentinel"
    evil = pickle.dumps({"data": Malice(sentinel), "labels": []})
    place_by_hand(root, files | {"data_batch_2": evil})
    if wall == "hash":
        pattern = r"data_batch_2 is corrupt .* delete it"
    else:  # a forged hash
        archive = replace(archive, train_files=(("data_batch_2", md5(evil)),))
        pattern = r"was not loaded"
    with pytest.raises(UserError, match=pattern):
        load(root, ["bird"], "train", archive=archive)
    assert not sentinel.exists()


@pytest.mark.promise(11)
def test_altered_batch_is_refused_before_it_is_unpickled(
    root: Path, archive: Archive, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    flipped = bytearray(files["data_batch_1"])
    flipped[-100] ^= 1
    place_by_hand(root, files | {"data_batch_1": bytes(flipped)})
    unpickled: list[object] = []
    monkeypatch.setattr("pegasus_lightning.data.cifar10._ArrayUnpickler", lambda *_, **__: unpickled.append(1))
    with pytest.raises(UserError, match=r"data_batch_1 is corrupt"):
        load(root, ["bird"], "train", archive=archive)
    assert not unpickled


@pytest.mark.promise(11)
@pytest.mark.parametrize("name", ["../sentinel", f"{FOLDER}/../../sentinel", "/ABSOLUTE"])
def test_tar_with_a_member_outside_is_refused(root: Path, tmp_path: Path, files: dict[str, bytes], name: str) -> None:
    name = name.replace("/ABSOLUTE", str(tmp_path / "sentinel"))
    archive = make_archive(tmp_path / "source", files, **{name: b"escaped"})
    with pytest.raises(UserError, match=r"is unsafe"):
        load(root, ["bird"], "train", archive=archive)
    assert not list(tmp_path.rglob("sentinel"))
    assert not (root / FOLDER).exists()


@pytest.mark.promise(11)
def test_tar_with_a_link_is_refused(root: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        link = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    archive = make_archive(tmp_path / "source", files)
    Path(archive.url.removeprefix("file://")).write_bytes(buffer.getvalue())
    with pytest.raises(UserError, match=r"is unsafe"):
        load(root, ["bird"], "train", archive=replace(archive, md5=md5(buffer.getvalue())))


@pytest.mark.promise(11)
def test_archive_by_hand_with_a_wrong_hash_is_not_opened(
    root: Path, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.mkdir()
    (root / archive.filename).write_bytes(b"half an archive")
    monkeypatch.setattr(tarfile, "open", lambda *_, **__: pytest.fail("opened before its hash was checked"))
    with pytest.raises(UserError, match=r"is corrupt .* delete it") as caught:
        load(root, ["bird"], "train", archive=archive)
    assert three_ways(str(caught.value), archive, root)


@pytest.mark.promise(11)
def test_nothing_but_the_known_files_is_unpacked(root: Path, tmp_path: Path, files: dict[str, bytes]) -> None:
    archive = make_archive(tmp_path / "source", files, **{"extra.py": b"", f"{FOLDER}/readme.html": b""})
    load(root, ["bird"], "train", archive=archive)
    assert sorted(path.name for path in root.rglob("*") if path.is_file() and path.parent != root) == sorted(files)
    assert not (root / "extra.py").exists()


def test_altered_batch_inside_a_good_archive_is_not_unpacked(root: Path, archive: Archive) -> None:
    altered = replace(archive, train_files=(("data_batch_1", "0" * 32),))
    with pytest.raises(UserError, match=r"data_batch_1 in .* is corrupt"):
        load(root, ["bird"], "train", archive=altered)
    assert not (root / FOLDER / "data_batch_1").exists()


@pytest.mark.parametrize("cause", ["switched off", "no such address", "broken"])
def test_without_the_data_the_message_gives_three_ways_and_nothing_is_left(
    root: Path, archive: Archive, cause: str
) -> None:
    if cause == "no such address":
        archive = replace(archive, url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    if cause == "broken":
        source = Path(archive.url.removeprefix("file://"))
        source.write_bytes(source.read_bytes()[:-10])
    with pytest.raises(UserError) as caught:
        load(root, ["bird"], "train", download=cause != "switched off", archive=archive)
    assert three_ways(str(caught.value), archive, root)
    assert root.exists() == (cause != "switched off")
    assert [path.name for path in root.glob("*") if not path.name.endswith(".lock")] == []


def test_what_a_killed_download_left_is_removed_by_the_next(root: Path, archive: Archive) -> None:
    root.mkdir()
    leftover = root / f".{archive.filename}.1234abcd.tmp"
    leftover.write_bytes(b"half")
    assert len(load(root, ["bird"], "train", archive=archive)[0]) == 2
    assert not leftover.exists()
    assert (root / archive.filename).exists()
