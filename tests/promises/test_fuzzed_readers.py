"""Promise 18: readers of foreign files are given damaged and hostile ones; each is read rightly or refused at once."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pegasus_lightning.data import tensor_cache
from pegasus_lightning.export.model_files import export_checkpoint, load_export
from pegasus_lightning.launch.jobs import read_jobs
from pegasus_lightning.launch.tables import last_lines
from pegasus_lightning.panel.pictures import read_pictures
from pegasus_lightning.panel.score import _read_key, _read_ratings
from pegasus_lightning.recognisers.network import Recogniser
from pegasus_lightning.runs.checkpoints import latest_checkpoint, load_model, read_checkpoint
from pegasus_lightning.runs.trained import open_run
from pegasus_lightning.train.callbacks.run_logger import RunLogger
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.torch_file import read_torch_file

pytestmark = pytest.mark.promise(18)

EACH = 100  # fuzzed inputs of a reader
SECONDS, MEGABYTES = 10.0, 1000  # for one input (a busy machine), and for all of a reader
ODD = [None, True, -1, 0, 10**7, 10**18, 10**30, 1e308, float("nan"), "", "x", "${oc.env:HOME}", "\ud800", "../../x"]
ODD += [[], {}, [[]] * 3, {"a": None}, "9" * 5000, [1] * 1000]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run of an earlier release."""
    place = next((Path(__file__).parents[1] / "fixtures/0.1/runs/variants").glob("vae,*"))
    return Path(shutil.copytree(place, tmp_path_factory.mktemp("run") / "vae-s0-01234567"))


@pytest.fixture
def checkpoint(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "last.ckpt"))


def spoil_bytes(data: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat or put in some bytes."""
    changed = bytearray(data)
    for _ in range(draw.choice([1, 1, 4, 64])):
        changed[draw.randrange(len(changed))] = draw.randrange(256)
    start, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    junk = draw.randbytes(draw.choice([1, 8, 500]))
    ways = [bytes(changed), data[:start], data[:start] + data[end:], data[:end] + data[start:]]
    return draw.choice([*ways, bytes(changed), data[:start] + junk + data[start:], b""])


def spoil_values(content: Any, draw: random.Random) -> Any:
    """Return plain content with a value somewhere in it replaced or left out."""
    places: list[tuple[Any, Any]] = []

    def look(value: Any) -> None:
        for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            look(value[key])

    whole = {"all": pickle.loads(pickle.dumps(content))}
    look(whole)
    holder, key = draw.choice(places)
    if draw.random() < 0.2 and holder is not whole:
        del holder[key]
    else:
        holder[key] = draw.choice(ODD)
    return whole["all"]


def spoil_json(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return spoil_bytes(data, draw)
    return json.dumps(spoil_values(json.loads(data), draw)).encode()


@pytest.fixture
def fuzz(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., int]]:
    """fuzz(path, spoil, read): call `read` for spoiled contents of `path`. Return how many were refused."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def all_of_them(path: Path, spoil: Callable[[bytes, random.Random], bytes], read: Callable[[], object]) -> int:
        data, refused = path.read_bytes(), 0
        for seed in range(EACH):
            path.write_bytes(spoil(data, random.Random(seed)))
            began = time.monotonic()
            try:
                read()
            except UserError as error:
                refused += 1
                assert "\n" not in str(error), seed
            except Exception as error:
                raise AssertionError(f"seed {seed}: {path.read_bytes()[:200]!r}") from error
            assert time.monotonic() - began < SECONDS, seed
        path.write_bytes(data)
        read()
        return refused

    yield all_of_them
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.slow
def test_checkpoints(checkpoint: Path, fuzz: Any) -> None:
    weights = {name: value.clone() for name, value in read_checkpoint(checkpoint)["state_dict"].items()}

    def read() -> None:
        found = read_checkpoint(checkpoint)["state_dict"]
        assert found.keys() == weights.keys() and all(torch.equal(found[name], weights[name]) for name in weights)

    assert fuzz(checkpoint, spoil_bytes, read) > EACH // 2

    def spoil(data: bytes, draw: random.Random) -> bytes:
        content = torch.load(checkpoint.with_name("good.ckpt"), weights_only=True)
        content["hyper_parameters"] = spoil_values(content["hyper_parameters"], draw)
        torch.save(content, checkpoint.with_name("bad.ckpt"))
        return checkpoint.with_name("bad.ckpt").read_bytes()

    shutil.copy(checkpoint, checkpoint.with_name("good.ckpt"))
    assert fuzz(checkpoint, spoil, lambda: load_model(checkpoint)) > EACH // 3


@pytest.mark.slow
def test_configurations_of_runs(run: Path, fuzz: Any) -> None:
    import yaml

    def spoil(data: bytes, draw: random.Random) -> bytes:
        if draw.random() < 0.4:
            return spoil_bytes(data, draw)
        return yaml.safe_dump(spoil_values(yaml.safe_load(data), draw)).encode()

    def read() -> None:
        config = open_run(run).config
        assert config is None or (type(config.seed) is int and not config.data.get("cache"))

    assert fuzz(run / "config.yaml", spoil, read) > EACH // 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["config.json", "SHA256SUMS", "encoder.safetensors"])
def test_exports(checkpoint: Path, tmp_path: Path, fuzz: Any, name: str) -> None:
    folder = export_checkpoint(checkpoint, tmp_path / "export").folder
    codes = torch.zeros(1, 16)
    image = load_export(folder).decode(codes)
    spoil = spoil_json if name == "config.json" else spoil_bytes
    refused = fuzz(folder / name, spoil, lambda: torch.testing.assert_close(load_export(folder).decode(codes), image))
    assert refused > EACH * 0.9


@pytest.mark.slow
def test_caches_of_pictures(tmp_path: Path, fuzz: Any) -> None:
    pictures = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, 3, 32, 32)
    path = tmp_path / "cache.safetensors"
    tensor_cache.load_or_build(path, b"key", pictures.shape, lambda: pictures)

    def read() -> None:
        found = tensor_cache._read(path, b"key", pictures.shape)
        assert found is None or np.array_equal(found, pictures)

    assert fuzz(path, spoil_bytes, read) == 0


@pytest.mark.slow
def test_recognisers(tmp_path: Path, fuzz: Any) -> None:
    path = tmp_path / "judge.pt"
    model = Recogniser("averaging", ("horse", "bird"))
    torch.save(model.state_dict(), path)

    def read() -> None:
        found = read_torch_file(path)
        assert all(torch.equal(found[name], value) for name, value in model.state_dict().items())

    assert fuzz(path, spoil_bytes, read) > EACH // 2


@pytest.mark.slow
def test_pictures_keys_ratings_jobs_logs(tmp_path: Path, fuzz: Any) -> None:
    pictures = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, 3, 32, 32)
    np.savez_compressed(tmp_path / "images.npz", images=pictures)

    def read_npz() -> None:
        assert np.array_equal(read_pictures(tmp_path / "images.npz").numpy(), pictures)

    assert fuzz(tmp_path / "images.npz", spoil_bytes, read_npz) > EACH // 2
    key = {"panel": "0123456789ab", "classes": ["horse", "bird"], "sources": {"a": {}, "b": {"run": "x"}}}
    key |= {"pictures": [{"number": n, "source": "ab"[n % 2], "index": 0} for n in range(1, 5)]}
    (tmp_path / "key.json").write_text(json.dumps(key))
    assert fuzz(tmp_path / "key.json", spoil_json, lambda: _read_key(tmp_path / "key.json")) > EACH // 3
    (tmp_path / "a.csv").write_text("panel,number,letter,realism\n0123456789ab,1,W,3\n0123456789ab,2,B,5\n")

    def read_csv() -> None:
        found = _read_ratings(tmp_path / "a.csv", key)
        assert found and all(1 <= number <= 4 and 0 <= letter < 6 for number, (letter, _) in found.items())

    assert fuzz(tmp_path / "a.csv", spoil_bytes, read_csv) > EACH // 3
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": [{"name": "a", "state": "failed"}]}))

    def jobs() -> None:
        assert all("state" in job for job in read_jobs(tmp_path / "sweep.json"))

    assert fuzz(tmp_path / "sweep.json", spoil_json, jobs) > EACH // 4
    assert fuzz(tmp_path / "a.csv", spoil_bytes, lambda: last_lines(tmp_path / "a.csv", 3)) == 0
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps({"batch": n, "loss/kl": n / 10}) + "\n" for n in range(1, 9)))

    def resume() -> None:
        RunLogger(tmp_path, 5, 5)._take_back(6)
        lines = [json.loads(line) for line in metrics.read_bytes().splitlines()]
        assert all(0 <= line["batch"] <= 5 for line in lines)

    assert fuzz(metrics, spoil_bytes, resume) == 0


# Single attacks, fast.


def saved(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [("latent_dim", 10**7), ("channels", 10**5), ("residual_blocks", 10**9), ("critic_channels", 10**15)],
)
def test_a_checkpoint_of_absurd_networks_is_refused_and_nothing_allocated(
    checkpoint: Path, field: str, value: int
) -> None:
    saved(checkpoint, lambda content: content["hyper_parameters"]["model"]["networks"].update({field: value}))
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    if field == "critic_channels":  # a plain VAE has no critic: nothing is made of it
        assert load_model(checkpoint).critic is None
        return
    with pytest.raises(UserError, match=r"last\.ckpt (describes a network of more|does not)"):
        load_model(checkpoint)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200
    assert time.monotonic() - began < SECONDS


def test_a_compressed_checkpoint_is_refused(checkpoint: Path) -> None:
    with zipfile.ZipFile(checkpoint) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    with zipfile.ZipFile(checkpoint, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in entries.items():
            new.writestr(name, data)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(checkpoint)


class Room:
    """Unpickling this takes 100 GB."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return bytearray, (10**11,)


def test_a_pickle_asks_for_nothing_that_the_file_does_not_hold(checkpoint: Path) -> None:
    saved(checkpoint, lambda content: content.update(callbacks=Room()))
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(checkpoint)
    whole = torch.zeros(1).expand(10**6)  # a million numbers in four bytes
    torch.save({"a": whole}, checkpoint)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_torch_file(checkpoint)


def test_an_alias_bomb_in_a_checkpoint_is_refused(checkpoint: Path) -> None:
    bomb: list[Any] = []
    for _ in range(30):
        bomb = [bomb, bomb]
    saved(checkpoint, lambda content: content["hyper_parameters"].update(bomb=bomb))
    with pytest.raises(UserError, match="more than 2000000 values"):
        read_checkpoint(checkpoint)


def test_no_reader_waits_for_a_fifo(run: Path, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.npz"
    os.mkfifo(fifo)
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.yaml").unlink()
    os.mkfifo(copy / "config.yaml")
    readers: list[Callable[[], object]] = [
        lambda: read_checkpoint(fifo),
        lambda: read_pictures(fifo),
        lambda: _read_key(fifo),
        lambda: _read_ratings(fifo, {}),
        lambda: read_jobs(fifo),
        lambda: open_run(copy),
    ]
    for read in readers:
        with pytest.raises(UserError, match=r"(fifo\.npz|config\.yaml).* not a regular file"):
            read()
    assert last_lines(fifo, 3) == [] and tensor_cache._read(fifo, b"", (1,)) is None
    for name in ("last.ckpt", "last.ckpt.sha256"):
        (copy / "checkpoints" / name).unlink(missing_ok=True)
        os.mkfifo(copy / "checkpoints" / name)
    with pytest.raises(UserError, match="is corrupt"):
        latest_checkpoint(copy)
    os.mkfifo(tmp_path / "metrics.jsonl")
    RunLogger(tmp_path, 5)._take_back(6)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_an_array_larger_than_its_file_or_than_any_panel_is_refused(tmp_path: Path) -> None:
    for shape, reason in (((10**12, 3, 32, 32), "of at most 320 MB"), ((2, 3, 32, 32), "ValueError")):
        path = tmp_path / "x.npz"
        with zipfile.ZipFile(path, "w") as archive, archive.open("images.npy", "w") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            file.write(b"\0" * 100)
        with pytest.raises(UserError, match=reason):
            read_pictures(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed: 0\ndata: {source: silhouettes, classes: ['${oc.env:HOME}', bird]}", "an interpolation"),
        ("seed: x\ndata: {source: silhouettes}", "its seed is 'x'"),
        ("data: {source: silhouettes}", "its seed is None"),
        ("seed: 0\ndata: {source: silhouettes, batch_size: many}", "section `data`"),
        ("seed: 0\ndata: {source: silhouettes, classes: 3}", "section `data`"),
    ],
)
def test_a_configuration_that_is_not_believed(run: Path, tmp_path: Path, text: str, reason: str) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=f"config.yaml .*{reason}"):
        open_run(copy)


def test_where_a_foreign_run_caches_and_downloads_nothing_is_written(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / "config.yaml").write_text(
        f"seed: 0\ndata: {{source: image_folder, root: {tmp_path / 'a'}, cache: {tmp_path / 'b'}}}\n"
    )
    config = open_run(copy).config
    assert config is not None and config.data.cache is None and config.data.root == str(tmp_path / "a")
    (copy / "config.yaml").write_text(f"seed: 0\ndata: {{source: cifar10, root: {tmp_path / 'a'}, download: true}}\n")
    config = open_run(copy).config
    assert config is not None and config.data.download is False
    (tmp_path / "elsewhere.yaml").write_text("seed: 0\ndata: {source: silhouettes}\n")
    (copy / "config.yaml").unlink()
    (copy / "config.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(UserError, match="link out of the run's folder"):
        open_run(copy)


def test_a_damaged_and_shortened_log_is_said_once_and_the_rest_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [json.dumps({"batch": n, "loss/kl": 0.5}).encode() + b"\n" for n in (1, 2, 3, 9)]
    bad = [b"\xff\xfe\n", b'{"batch": "x"}\n', b"[" * 5000 + b"\n", b'{"batch": 2, "a": 1' + b"0" * 5000 + b"}\n"]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join([*bad, *good]) + b'{"batch": 4, "lo')
    RunLogger(tmp_path, resumed_at=8, logged_at=6)._take_back(9)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b"".join(good[:3])
    said = capsys.readouterr().out
    assert said.count("4 damaged lines") == 1
    assert "lacks the figures of batches 4 to 6" in said and "up to batch 6 are lost" in said
