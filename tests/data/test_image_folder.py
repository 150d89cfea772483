"""Image folders: decoding, caching, ignored files and error messages."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pegasus_lightning.data import image_folder, tensor_cache
from pegasus_lightning.data.image_folder import decode, load
from pegasus_lightning.utils.errors import UserError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def random_pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two horses (b.PNG, a.png) and a bird in train, and entries that must be ignored."""
    root = tmp_path / "images"
    for split, name, file, seed in (
        ("train", "horse", "b.PNG", 1),
        ("train", "horse", "a.png", 0),
        ("train", "bird", "c.png", 2),
        ("test", "bird", "c.png", 3),
    ):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(random_pixels(seed)).save(root / split / name / file)
    (root / "train" / "horse" / "notes.txt").write_text("no image")
    (root / "train" / "horse" / "._a.png").write_bytes(b"what macOS leaves")
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files decoded after this fixture is created."""
    names: list[str] = []

    def watched(path: Path) -> np.ndarray:
        names.append(path.name)
        return decode(path)

    monkeypatch.setattr(image_folder, "decode", watched)
    return names


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)  # type: ignore[arg-type]
    return path


def test_png_keeps_every_pixel_and_files_are_sorted(root: Path, cache: Path) -> None:
    images, labels = load(root, ["horse", "bird"], "train", cache)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 32, 32)
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 0, 1]
    for image, seed in zip(images, (0, 1, 2), strict=True):
        assert np.array_equal(image.permute(1, 2, 0).numpy(), random_pixels(seed))
    images, labels = load(root, ["bird", "horse"], "train", cache)
    assert labels.tolist() == [0, 1, 1]
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), random_pixels(2))
    images, _ = load(root, ["bird"], "test", cache)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), random_pixels(3))


def test_another_size_is_cut_to_its_central_square(tmp_path: Path) -> None:
    wide = np.full((64, 96, 3), BLUE, dtype=np.uint8)
    wide[:, :16] = wide[:, -16:] = RED
    assert np.array_equal(decode(save(tmp_path / "wide.png", wide)), np.full((32, 32, 3), BLUE).transpose(2, 0, 1))
    tall = wide.transpose(1, 0, 2).copy()
    assert np.array_equal(decode(save(tmp_path / "tall.png", tall)), np.full((32, 32, 3), BLUE).transpose(2, 0, 1))


def test_shrinking_keeps_a_ramp_in_place_and_smooths(tmp_path: Path) -> None:
    ramp = np.broadcast_to(2 * np.arange(64, dtype=np.uint8)[None, :, None], (64, 64, 3)).copy()
    shrunk = decode(save(tmp_path / "ramp.png", ramp))
    # Output column i is centred between input columns 2i and 2i + 1: (2 * 2i + 2 * (2i + 1)) / 2 = 4i + 1.
    assert shrunk[:, :, 4:28].tolist() == np.broadcast_to(4 * np.arange(4, 28) + 1, (3, 32, 24)).tolist()
    columns = np.zeros((64, 64, 3), dtype=np.uint8)
    columns[:, ::2] = 255  # too fine for 32 columns, so the result is grey
    assert (np.abs(decode(save(tmp_path / "columns.png", columns))[:, :, 4:28].astype(int) - 127) <= 26).all()


def test_every_mode_becomes_rgb(tmp_path: Path) -> None:
    clear = np.zeros((32, 32, 4), dtype=np.uint8)
    clear[:16] = (255, 0, 0, 128)  # 128/255 of red on white is (255, 127, 127); the rest is transparent
    picture = decode(save(tmp_path / "rgba.png", clear))
    assert picture[:, 0, 0].tolist() == [255, 127, 127]
    assert picture[:, 31, 0].tolist() == [255, 255, 255]

    grey = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    assert np.array_equal(decode(save(tmp_path / "grey.png", grey)), np.stack([grey] * 3))
    deep = (grey.astype(np.uint16) << 8) + 77
    assert np.array_equal(decode(save(tmp_path / "grey16.png", deep)), np.stack([grey] * 3))

    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    assert decode(tmp_path / "palette.png")[:, 3, 3].tolist() == [10, 20, 30]
    palette.save(tmp_path / "palette_clear.png", transparency=1)
    assert decode(tmp_path / "palette_clear.png")[:, 3, 3].tolist() == [255, 255, 255]

    Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    assert np.abs(decode(tmp_path / "cmyk.jpg")[:, 3, 3].astype(int) - RED).max() <= 3


def test_a_turned_photograph_is_turned_back(tmp_path: Path) -> None:
    lying = np.full((32, 32, 3), BLUE, dtype=np.uint8)
    lying[:, :16] = RED  # red on the left; orientation 6 is a quarter turn clockwise, so red moves to the top
    exif = Image.Exif()
    exif[274] = 6
    picture = decode(save(tmp_path / "turned.jpg", lying, exif=exif, quality=95)).astype(int)
    assert np.abs(picture[:, 2, 30] - RED).max() <= 5
    assert np.abs(picture[:, 30, 2] - BLUE).max() <= 5


def test_a_large_jpeg_keeps_its_picture(tmp_path: Path) -> None:
    large = np.full((768, 1024, 3), RED, dtype=np.uint8)
    large[384:] = BLUE
    picture = decode(save(tmp_path / "large.jpg", large, quality=95)).astype(int)
    assert np.abs(picture[:, 2, 16] - RED).max() <= 5
    assert np.abs(picture[:, 29, 16] - BLUE).max() <= 5


def test_unusable_files_are_named_five_at_most_and_counted(root: Path, cache: Path) -> None:
    horses = root / "train" / "horse"
    (horses / "c.jpg").write_bytes(b"not a picture")
    whole = (horses / "a.png").read_bytes()
    (horses / "d.png").write_bytes(whole[: len(whole) // 2])
    save(horses / "e.png", np.zeros((7, 20, 3), dtype=np.uint8))
    save(horses / "f.png", np.zeros((20, 81, 3), dtype=np.uint8))
    save(horses / "g.png", np.zeros((20, 80, 3), dtype=np.uint8))  # exactly 4:1 is accepted
    (horses / "h.png").symlink_to(horses / "gone.png")
    with pytest.raises(UserError) as caught:
        load(root, ["horse"], "train", cache)
    message = str(caught.value)
    assert message.startswith("5 of 8 images")
    assert "more" not in message
    assert "train/horse/c.jpg: not an image that can be read (PNG, JPEG" in message
    assert "train/horse/d.png: cannot be read" in message
    assert "train/horse/e.png: 20 x 7 pixels" in message
    assert "train/horse/f.png: 81 x 20 pixels" in message
    assert "train/horse/h.png" in message
    assert "g.png" not in message
    for number in range(3):
        (horses / f"x{number}.jpeg").write_bytes(b"")
    with pytest.raises(UserError, match=r"(?s)8 of 11 images.*and 3 more") as caught:
        load(root, ["horse"], "train", cache)
    assert str(caught.value).count("train/horse/") == 5
    assert not cache.exists()


def test_missing_folders_are_told_what_there_is(root: Path, tmp_path: Path, cache: Path) -> None:
    layout = r"\{train,test\}/<class>/\*"
    with pytest.raises(UserError, match=rf"no folder {tmp_path / 'nowhere'}.*{layout}"):
        load(tmp_path / "nowhere", ["horse"], "train", cache)
    with pytest.raises(UserError, match=rf"no class 'hrose'. Did you mean 'horse'.* bird, horse.*{layout}"):
        load(root, ["hrose"], "train", cache)
    with pytest.raises(UserError, match=r"no class '\.\./test'"):
        load(root, ["../test"], "train", cache)
    (root / "train" / "empty").mkdir()
    (root / "train" / "empty" / "a.svg").write_bytes(b"")
    with pytest.raises(UserError, match=r"no \.png, \.jpg, .* file in .*empty.*a\.svg"):
        load(root, ["empty"], "train", cache)
    shutil.move(root / "test", root / "tset")
    with pytest.raises(UserError, match=rf"no folder 'test'.*Did you mean 'tset'.* train, tset.*{layout}"):
        load(root, ["horse"], "test", cache)
    with pytest.raises(UserError, match=r"Did you mean 'train'"):
        load(root, ["horse"], "trian", cache)
    assert not cache.exists()


def test_second_load_decodes_nothing(root: Path, cache: Path, decoded: list[str]) -> None:
    first, _ = load(root, ["horse", "bird"], "train", cache)
    assert sorted(decoded) == ["a.png", "b.PNG", "c.png"]
    decoded.clear()
    second, labels = load(root, ["horse", "bird"], "train", cache)
    assert not decoded
    assert torch.equal(first, second)
    assert labels.tolist() == [0, 0, 1]
    second[0] = 0  # the caller's copy is independent of the cache
    assert torch.equal(load(root, ["horse", "bird"], "train", cache)[0], first)
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]


def test_folders_splits_and_classes_do_not_push_one_another_out_of_the_cache(
    root: Path, cache: Path, tmp_path: Path, decoded: list[str]
) -> None:
    other = Path(shutil.copytree(root, tmp_path / "other"))
    save(other / "train" / "bird" / "c.png", random_pixels(7))
    wanted = [(root, ["bird"], "train"), (root, ["bird"], "test"), (root, ["horse", "bird"], "train")]
    wanted += [(root, ["bird", "horse"], "train"), (other, ["bird"], "train")]
    first = [load(*arguments, cache)[0] for arguments in wanted]
    decoded.clear()
    again = [load(*arguments, cache)[0] for arguments in wanted]
    assert not decoded
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(again[-1][0].permute(1, 2, 0).numpy(), random_pixels(7))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "longer", "header", "empty", "stub"])
def test_corrupt_cache_is_rebuilt_and_said(
    root: Path, cache: Path, decoded: list[str], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = load(root, ["horse"], "train", cache)
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    assert data[-6144:] == first.numpy().tobytes()
    if damage == "flipped":
        data[-1000] ^= 1
    if damage == "header":
        data[0] ^= 1
    changed: dict[str, bytes | bytearray] = {
        "truncated": data[:-1],
        "longer": data + b"x",
        "empty": b"",
        "stub": data[:50],
    }
    file.write_bytes(changed.get(damage, data))
    decoded.clear()
    with caplog.at_level(logging.WARNING):
        again, _ = load(root, ["horse"], "train", cache)
    assert torch.equal(first, again)
    assert sorted(decoded) == ["a.png", "b.PNG"]
    (record,) = [record for record in caplog.records if record.name == tensor_cache.__name__]
    what = "is corrupt: " if damage == "flipped" else "cannot be read ("
    assert record.getMessage().startswith(f"The image cache {file} {what}")
    assert record.getMessage().endswith(": decoding the images again.")
    decoded.clear()
    load(root, ["horse"], "train", cache)
    assert not decoded  # the cache was rewritten


@pytest.mark.parametrize("change", ["pixels", "written to, but of the same size and time", "renamed", "added", "code"])
def test_a_change_decodes_again(
    root: Path, cache: Path, decoded: list[str], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(root, ["horse"], "train", cache)
    decoded.clear()
    file = root / "train" / "horse" / "a.png"
    before = file.stat()
    if change == "pixels":
        save(file, random_pixels(9))
    if change == "written to, but of the same size and time":
        while file.stat().st_ctime_ns == before.st_ctime_ns:  # the file system's clock has millisecond resolution
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change == "renamed":
        file.rename(file.with_name("z.png"))
    if change == "added":
        save(file.with_name("k.png"), random_pixels(9))
    if change == "code":
        monkeypatch.setattr(image_folder, "DECODING_VERSION", image_folder.DECODING_VERSION + 1)
    load(root, ["horse"], "train", cache)
    assert len(decoded) == 2 + (change == "added")
    assert len(list(cache.iterdir())) == 1  # outdated caches are removed


def test_no_cache_is_no_obstacle(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("a file where the cache's folder should be")
    with caplog.at_level(logging.WARNING):
        images, _ = load(root, ["bird"], "train", blocked)
    assert len(images) == 1
    assert "cannot be cached" in caplog.text


def test_a_failed_write_keeps_the_old_cache_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, key, old = tmp_path / "a.safetensors", hashlib.sha256(b"old").digest(), np.zeros((2, 3), dtype=np.uint8)
    tensor_cache.load_or_build(path, key, old.shape, lambda: old)
    kept = path.read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    new = tensor_cache.load_or_build(path, hashlib.sha256(b"new").digest(), old.shape, lambda: old + 1)
    assert (new == 1).all()
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == kept


def test_default_folder_respects_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    load(root, ["bird"], "train")
    assert len(list((tmp_path / "xdg" / "pegasus_lightning").iterdir())) == 1
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert tensor_cache.default_folder() == Path("~/.cache/pegasus_lightning")


def test_every_format_is_read_and_what_is_left_out_is_said(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "train" / "horse"
    folder.mkdir(parents=True)
    for ending in ("webp", "bmp", "tif", "gif", "jfif", "TIFF"):
        options = {"format": "JPEG"} if ending == "jfif" else {"lossless": True} if ending == "webp" else {}
        later = {"save_all": True, "append_images": [Image.new("RGB", (32, 32), BLUE)]} if ending == "gif" else {}
        Image.new("RGB", (32, 32), RED).save(folder / f"a.{ending}", **options, **later)
    (folder / "notes.txt").write_text("no image")
    images, _ = load(tmp_path, ["horse"], "train", cache)
    assert len(images) == 6
    assert (images.float() - torch.tensor(RED)[:, None, None]).abs().max() < 4
    assert f"1 of 7 files in {folder} are left out: .txt." in caplog.text


def test_a_postscript_file_named_png_is_not_opened(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "train" / "horse"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n")
    with pytest.raises(UserError, match=r"a\.png: not an image that can be read"):
        load(tmp_path, ["horse"], "train", cache)


def test_images_one_folder_deeper_are_told(tmp_path: Path, cache: Path) -> None:
    deeper = tmp_path / "train" / "horse" / "brown"
    deeper.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(deeper / "a.png")
    with pytest.raises(UserError, match="images one folder deeper, in brown: move them up"):
        load(tmp_path, ["horse"], "train", cache)


def test_an_accent_typed_in_another_way_is_the_same_name(tmp_path: Path, cache: Path) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    for there, typed in ((decomposed, composed), (composed, decomposed)):
        folder = tmp_path / ascii(there) / "train" / there
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), RED).save(folder / "a.png")
        images, _ = load(tmp_path / ascii(there), [typed], "train", cache)
        assert len(images) == 1


def test_a_size_is_judged_as_it_would_be_decoded(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folder, "MAX_PIXELS", 300_000)
    folder = tmp_path / "train" / "horse"
    folder.mkdir(parents=True)
    Image.new("RGB", (4000, 4000), RED).save(folder / "a.jpg")  # decoded at 500 x 500
    images, _ = load(tmp_path, ["horse"], "train", cache)
    assert images[0, :, 16, 16].tolist() == [254, 0, 0]
    Image.new("RGB", (600, 501)).save(folder / "b.png")
    with pytest.raises(UserError, match=r"b\.png: 600 x 501 pixels, too large: above 0 megapixels"):
        load(tmp_path, ["horse"], "train", cache)
