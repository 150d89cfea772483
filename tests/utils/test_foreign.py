"""Tests of the door for files that others may have made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from pegasus_lightning.utils.foreign import (
    Unreadable,
    inside,
    is_inside,
    open_picture,
    open_regular,
    parse_json,
    read_json,
    read_text,
    read_yaml,
)


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "holds a list, not a dict"),
        (b'{"a": ' + b"[" * 41 + b"]" * 41 + b"}", "is nested too deeply"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested too deeply"),
        (b'{"a": ' + b"9" * 400 + b"}", "too many digits"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (b'{"a": "\xff"}', "is not text in UTF-8"),
        (b"[" + b"0," * 2_000_001 + b"0]", "holds a list"),
    ],
)
def test_a_json_file_that_is_not_believed(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(Unreadable, match="some.json " + ".*" + reason):
        read_json(path)


def test_a_json_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    path.write_text('{"a": [1, -2.5, "é", null, true, NaN], "b": {"c": {}}}')
    content = read_json(path)
    assert content["a"][:5] == [1, -2.5, "é", None, True] and content["b"] == {"c": {}}
    assert parse_json(path, "[3]", list) == [3]
    with pytest.raises(Unreadable, match=r"too large: more than 0\.5 MB"):
        path.write_text("1" * (1 << 19) + " ")
        read_json(path, limit=1 << 19)


@pytest.mark.promise(18)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: ${oc.env:HOME}", "an interpolation"),
        ("a: &a [x, x]\nb: &b [" + "*a," * 2000 + "]\nc: [" + "*b," * 2000 + "]", "more than 2000000 values"),
        ("a: &a [*a]", "nested too deeply"),
        ("a: &a {x: 1}\nb: {<<: [*a, *a]}", "a merge key"),
        ("a: 2020-01-01", "holds a date"),
        ("a: !!python/object/apply:os.system [true]", "is not YAML"),
        ("a: !!bool x", "is not YAML .KeyError"),
        ("a: !!timestamp x", "is not YAML .AttributeError"),
        ("\ta: 1", "is not YAML"),
        ("- a", "holds a list, not a dict"),
        ("? [1, 2]\n: 3", "is not YAML|holds a tuple"),
    ],
)
def test_a_yaml_file_that_is_not_believed(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(Unreadable, match=reason):
        read_yaml(path)


@pytest.mark.promise(18)
def test_the_values_of_a_yaml_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: [1, 2]\nb: 3")  # the mapping, two keys, two values, two numbers
    assert read_yaml(path, entries=7) == {"a": [1, 2], "b": 3}
    with pytest.raises(Unreadable, match="holds more than 6 values"):
        read_yaml(path, entries=6)


def test_a_yaml_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model:\n  lr: 1.0e-05\n  name: '1e3'\nseed: 3\nroot: null\n")
    assert read_yaml(path) == {"model": {"lr": 1e-5, "name": "1e3"}, "seed": 3, "root": None}


@pytest.mark.promise(18)
def test_a_fifo_a_folder_and_a_missing_file_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, reason in [
        ("pipe", "not a regular file"),
        ("gone", "No such file"),
        (".", "not a regular file|directory"),
    ]:
        with pytest.raises(Unreadable, match=reason):
            open_regular(tmp_path / name)
    with pytest.raises(Unreadable, match="cannot be opened"):
        read_text(Path("nul\0"))


@pytest.mark.promise(18)
def test_a_picture_of_another_format_or_an_absurd_size_is_refused(tmp_path: Path) -> None:
    Image.new("L", (300, 200)).save(tmp_path / "fine.png")
    (tmp_path / "postscript.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with open_picture(tmp_path / "fine.png", ["PNG"], pixels=60_000) as picture:
        assert picture.size == (300, 200) and picture.getpixel((0, 0)) == 0
    for name, reason in [("fine.png", "above 0 megapixels"), ("postscript.png", r"not a picture .*\(PNG\)")]:
        with pytest.raises(Unreadable, match=reason):
            open_picture(tmp_path / name, ["PNG"], pixels=59_999)
    size = (tmp_path / "fine.png").stat().st_size
    with pytest.raises(Unreadable, match="is too large: more than"):
        open_picture(tmp_path / "fine.png", ["PNG"], limit=size - 1)


def test_a_link_out_of_a_folder_is_not_inside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "own.txt").touch()
    (run / "link.txt").symlink_to("/etc/hostname")
    (run / "loop").symlink_to(run / "loop")
    (tmp_path / "other").symlink_to(run)
    assert is_inside(run / "own.txt", run) and is_inside(tmp_path / "other" / "own.txt", run)
    assert not is_inside(run / "link.txt", run)
    assert inside(run / "own.txt", run) == run / "own.txt"
    with pytest.raises(Unreadable, match=r"link\.txt is a link that leads out of the folder"):
        inside(run / "link.txt", run)
