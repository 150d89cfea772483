"""A fuzzer with a seed: one damaged or absurd file in each of 200 runs; none ends the report of the runs beside it."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegasus_lightning.report.__main__ import main
from pegasus_lightning.report.page import PAGE_BYTES

COUNT, BATCH, SECONDS = 200, 20, 60
STRUCTURED = ("status.json", "config.yaml", "evaluation/plain/scorecard.json", "panel/a.json")
GALLERY, PICTURE = "evaluation/plain/gallery.npz", "images/interpolations-epoch-0005.png"
FILES = (*STRUCTURED, "metrics.jsonl", "train.log", GALLERY, PICTURE, ".lock")
ABSURD: tuple[Any, ...] = (
    *(None, True, -1, 10**400, 2**63, 1e308, -1e-320, float("nan"), float("inf"), "", "many", "$\\frac{$", "\ud800"),
    *("x" * 100_000, "\x1b[31m\u202e", "<script>", "${oc.env:HOME}", "trainer.max_time=", [], {}, [[]], [{"name": []}]),
    *({"a": {"b": None}}, {"name": {}}, ["horse"], list(range(5000)), {str(i): i for i in range(5000)}, "../../x"),
)


def damaged(content: Any, chance: random.Random) -> Any:
    """JSON content with one to three absurd values, keys or gaps at random places."""
    for _ in range(chance.randint(1, 3)):
        at, value = content, chance.choice(ABSURD)
        while isinstance(at, (dict, list)) and at:
            key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if isinstance(at[key], (dict, list)) and at[key] and chance.random() < 0.7:
                at = at[key]
                continue
            if chance.random() < 0.2 and isinstance(at, dict):
                del at[key]
            elif chance.random() < 0.2 and isinstance(at, dict):
                at[str(value)[:300]] = at[key]
            else:
                at[key] = value
            break
    return content


def wrong_gallery(path: Path, chance: random.Random) -> bytes:
    """A gallery with one array of another shape, kind, size or value."""
    arrays = dict(np.load(path))
    name = chance.choice(sorted(arrays))
    array = arrays[name]
    changed: list[Callable[[], np.ndarray]] = [
        lambda: array.astype(float) * np.nan,
        lambda: np.full(array.shape, np.inf),
        lambda: np.full(array.shape, -(10**18)),
        lambda: array.astype(complex),
        lambda: array.astype(str),
        lambda: array[..., None],
        lambda: array[:0] if array.ndim else array[None],
        lambda: np.zeros((), dtype=object),
        lambda: np.zeros((3, 7, 3, 2, 2), dtype=np.uint8),
        lambda: np.zeros((2, 600, 3, 32, 32), dtype=np.uint8),
    ]
    arrays[name] = chance.choice(changed)()
    with io.BytesIO() as buffer:
        np.savez(buffer, allow_pickle=True, **arrays)
        if chance.random() < 0.3:  # a header that promises a petabyte
            with zipfile.ZipFile(buffer, "a") as archive:
                header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (33554432, 33554432, 3, 32, 32), }\n"
                archive.writestr("frames.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A black picture of side x side pixels in few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head, rows = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), zlib.compress(bytes((side + 1) * 100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def spoil(run: Path, number: int) -> str:
    """Damage one file of a run, as the number says; return what was done."""
    chance = random.Random(number)
    path = run / chance.choice(FILES)
    name = path.relative_to(run).as_posix()
    path.parent.mkdir(exist_ok=True)
    if name == ".lock":
        (run / "status.json").write_text('{"status": "running"}')
        path.touch()
    whole = path.read_bytes()
    special = {
        "fifo": lambda: (path.unlink(), os.mkfifo(path)),
        "folder": lambda: (path.unlink(), path.mkdir()),
        "link out": lambda: (path.unlink(), path.symlink_to("/etc/passwd")),
        "link to a device": lambda: (path.unlink(), path.symlink_to("/dev/zero")),
        "loop of links": lambda: (path.unlink(), path.symlink_to(path)),
        "link to nothing": lambda: (path.unlink(), path.symlink_to(run / "gone")),
        "a terabyte": lambda: os.truncate(path, 1 << 40),
    }
    plain = {
        "truncated": lambda: whole[: int(len(whole) * chance.random())],
        "flipped": lambda: bytes(b ^ (1 << chance.randrange(8)) if chance.random() < 0.01 else b for b in whole),
        "noise": lambda: chance.randbytes(3000),
        "deep": lambda: b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "another's": lambda: (run / chance.choice(STRUCTURED)).read_bytes(),
        "PostScript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "zeros": lambda: bytes(100_000),
    }
    fitting: dict[str, Callable[[], bytes]] = {}
    if name in STRUCTURED:
        content = json.loads(whole) if name != "config.yaml" else _config(run)
        fitting = {f"absurd {i}": lambda: json.dumps(damaged(content, chance)).encode() for i in range(12)}
    elif name == "metrics.jsonl":
        line = {"batch": 1, "loss/kl": 1.0, "loss/$\\frac{$": 2.0, "critic/real": 0.5}
        many = {f"loss/{i}": i for i in range(3000)}
        fitting = {f"absurd {i}": lambda: _lines(line, chance) for i in range(8)}
        fitting |= {"many tags": lambda: _lines(line | many, chance)}
    elif name == GALLERY:
        fitting = {f"arrays {i}": lambda: wrong_gallery(path, chance) for i in range(20)}
    elif name == PICTURE:
        fitting = {"huge": lambda: huge_png(13_000), "long": lambda: huge_png(60_000)}
    what = chance.choice([*special, *plain, *fitting])
    if what in special:
        if what == "a terabyte" and path.stat().st_dev != os.stat("/tmp").st_dev:
            return "nothing"
        special[what]()
    else:
        content_now = (plain | fitting)[what]()
        path.write_bytes(content_now)
    return f"{name}: {what}"


def _lines(line: dict[str, Any], chance: random.Random) -> bytes:
    return "\n".join(json.dumps(damaged(dict(line), chance)) for _ in range(9)).encode()


def _config(run: Path) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))


class Late(BaseException):
    """Too late; no `except OSError` catches it, as it would a TimeoutError."""


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Raise Late after so long."""

    def late(*_: object) -> None:
        raise Late

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


def fault(runs: list[Path], page: Path) -> str | None:
    """What is wrong with the report of these runs; None if nothing is."""
    page.unlink(missing_ok=True)
    try:
        with at_most(SECONDS):
            code = main([*map(str, runs), "--out", str(page), "--baseline", "healthy"])
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    if code != 0 or not page.exists():
        return f"exit code {code}"
    text = page.read_text()
    if len(text.encode()) > PAGE_BYTES or text.count("<script") != 1 or "root:x:" in text:
        return "the page is too large, or holds what it should not"
    figures = text[text.index('id="pegasi-') :]
    if ">healthy-s0</a>" not in text or "healthy <small>baseline" not in figures or "30.0%" not in figures:
        return "the healthy run is not on the page"
    return None


@pytest.mark.slow
@pytest.mark.promise(18)
def test_no_damaged_run_ends_the_report_of_the_runs_beside_it(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    healthy = make_run(tmp_path, "healthy")
    row = {letter: {"value": 0.5, "low": 0.4, "high": 0.6} for letter in ("H", "R", "W", "B", "N", "realism")}
    record = {"batches": 100, "parents": {"split": "test"}, "settings": {"count": 2000}, "pegasi": "p"}
    runs: dict[Path, str] = {}
    for number in range(COUNT):
        run = make_run(tmp_path, f"spoiled_{number}", epochs=(5,))
        (run / "panel").mkdir()
        (run / "panel" / "a.json").write_text(json.dumps(record | {"rows": {"p": row}}))
        runs[run] = f"{number}: {spoil(run, number)}"
    page, found = tmp_path / "page.html", []
    places = list(runs)
    waiting = [places[i : i + BATCH] for i in range(0, COUNT, BATCH)]
    while waiting:
        batch = waiting.pop()
        said = fault([run for run in [healthy, *batch] if (run / "status.json").exists()], page)
        if said is not None and len(batch) > 1:  # search in both halves
            waiting += [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
        elif said is not None:
            found.append(f"{runs[batch[0]]}: {said}")
    assert len(set(runs.values())) == COUNT and found == []
