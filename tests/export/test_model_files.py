"""Tests of exports: weights, metadata, refusals, writing again."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from pegasus_lightning import __version__
from pegasus_lightning.export import __main__ as export
from pegasus_lightning.export import model_files
from pegasus_lightning.export.model_files import export_checkpoint, load_export
from pegasus_lightning.models.two_player import TwoPlayerModel
from pegasus_lightning.runs.checkpoints import load_model, save_atomically
from pegasus_lightning.utils import files
from pegasus_lightning.utils.errors import UserError

NETWORKS = ("encoder", "decoder")
PLAIN = {"sample_codes": False, "networks": {"batch_norm": False, "critic_batch_norm": False}}  # as in acai_paper
CASES = {
    "averaged": ("adversarial_vae", {"ema_decay": 0.9}),
    "as trained": ("vae", {}),
    "plain autoencoder": ("acai", PLAIN),
    "spectral": ("vae_gan", {"ema_decay": 0.9, "networks": {"spectral_norm": "all", "upsampling": "nearest"}}),
    "deep": ("vae", {"networks": {"conv_layers": 4, "fc_layers": 2}}),
}
OURS = {"networks": {"decoder": "residual"}, "learned_mixing": True, "ema_decay": 0.9}

Save = Callable[..., Path]


def stir(model: TwoPlayerModel, seed: int) -> None:
    """Give every tensor other values, also averages, running means and variances."""
    source = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            noise = torch.randn(value.shape, generator=source)
            value.copy_(noise.abs() + 0.5 if name.endswith("running_var") else value + 0.1 * noise)
        else:
            value.fill_(77)


@pytest.fixture
def save(tmp_path: Path, tiny: Callable[..., TwoPlayerModel]) -> Save:
    """save(case, batches_done, run) writes a checkpoint as training does and returns its path."""

    def write(case: str = "averaged", batches_done: int = 1234, run: str = "run") -> Path:
        model = tiny(*(CASES | {"learned mixing": ("pegasus", OURS)})[case], seed=5)
        stir(model, batches_done)
        content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
        path = tmp_path / run / "checkpoints" / "last.ckpt"
        save_atomically(content | {"batches_done": batches_done}, path)
        return path

    return write


@pytest.fixture
def exported(save: Save, tmp_path: Path) -> Path:
    """An export of the averaged case."""
    return export_checkpoint(save(), tmp_path / "export").folder


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file under a folder, also of hidden ones."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sign(folder: Path) -> None:
    """Write a SHA256SUMS that fits the present files, as a forger would."""
    files = {name: data for name, data in contents(folder).items() if name != "SHA256SUMS"}
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    (folder / "SHA256SUMS").write_text("".join(lines))


def change_config(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    sign(folder)


# The weights.


@pytest.mark.parametrize("case", CASES)
def test_a_loaded_export_is_the_model_bit_for_bit(save: Save, tmp_path: Path, images: Tensor, case: str) -> None:
    checkpoint = save(case)
    export_checkpoint(checkpoint, tmp_path / "export")
    model, loaded = load_model(checkpoint), load_export(tmp_path / "export")
    with torch.no_grad():
        wanted, got = model.encode(images), loaded.encode(images)
        assert wanted.mean.std() > 0.01  # not all the same
        assert torch.equal(got.mean, wanted.mean)
        assert torch.equal(got.log_variance, wanted.log_variance)
        codes = wanted.sample(torch.Generator().manual_seed(0))
        assert torch.equal(got.sample(torch.Generator().manual_seed(0)), codes)
        pictures = loaded.decode(codes)
        assert torch.equal(pictures, model.decode(codes))
        assert pictures.shape == images.shape
        assert pictures.min() >= 0 and pictures.max() <= 1
    assert loaded.config == model.config
    assert got.deterministic is (case == "plain autoencoder")


@pytest.mark.parametrize("case", CASES)
def test_the_files_hold_the_weights_of_inference_and_no_others(save: Save, tmp_path: Path, case: str) -> None:
    checkpoint = save(case)
    written = export_checkpoint(checkpoint, tmp_path / "export")
    assert sorted(os.listdir(written.folder)) == [
        "SHA256SUMS",
        "config.json",
        "decoder.safetensors",
        "encoder.safetensors",
    ]
    trained = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert any(name.startswith("critic.") for name in trained) is (CASES[case][0] != "vae")
    averaged = "averaged." if case in ("averaged", "spectral") else ""
    for network in NETWORKS:
        prefix = f"{averaged}{network}."
        wanted = {name.removeprefix(prefix): value for name, value in trained.items() if name.startswith(prefix)}
        found = load_file(written.folder / f"{network}.safetensors")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) and found[name].dtype == wanted[name].dtype for name in found)
        running = [name for name in found if name.endswith("running_mean")]
        assert bool(running) is (case != "plain autoencoder")


def test_a_learned_mixing_goes_along(save: Save, tmp_path: Path, images: Tensor) -> None:
    checkpoint = save("learned mixing")
    written = export_checkpoint(checkpoint, tmp_path / "export")
    assert "mixer.safetensors" in os.listdir(written.folder)
    loaded, model = load_export(written.folder), load_model(checkpoint)
    ratios = torch.tensor([0.1, 0.4, 0.5, 0.9])
    with torch.no_grad():
        codes = model.encode(images).mean
        found = loaded.mix(codes, codes.flip(0), ratios)
        assert torch.equal(found, model.mix(codes, codes.flip(0), ratios))  # of the averaged mixer
        left = (torch.arange(32) < 16).expand(len(codes), 1, 32, 32)
        painted = loaded.mix(codes, codes.flip(0), ratios, left)
        assert torch.equal(painted, model.mix(codes, codes.flip(0), ratios, left))
        assert not torch.equal(painted, found)
    straight = codes + (codes.flip(0) - codes) * ratios[:, None]
    assert (found - straight).abs().max() > 0.01
    plain = load_export(export_checkpoint(save("averaged", run="other"), tmp_path / "other-export").folder)
    first, second = torch.tensor([[0.0, 2.0]]), torch.tensor([[4.0, 0.0]])
    assert plain.mix(first, second, torch.tensor([0.25])).tolist() == [[1.0, 1.5]]


def test_gradients_reach_the_codes_and_no_weight(exported: Path, images: Tensor) -> None:
    loaded = load_export(exported)
    codes = loaded.encode(images).mean.requires_grad_()
    loaded.decode(codes).sum().backward()
    assert codes.grad is not None and codes.grad.abs().sum() > 0
    parameters = [*loaded.encoder.parameters(), *loaded.decoder.parameters()]
    assert not any(parameter.requires_grad for parameter in parameters)
    assert not loaded.encoder.training and not loaded.decoder.training


def test_what_is_loaded_does_not_change_with_the_file(exported: Path) -> None:
    loaded, path = load_export(exported), exported / "decoder.safetensors"
    before = {name: value.clone() for name, value in loaded.decoder.state_dict().items()}
    with open(path, "r+b") as file:  # in place, as `cp` does
        file.write(bytes(path.stat().st_size))
    assert all(torch.equal(before[name], value) for name, value in loaded.decoder.state_dict().items())


def test_nothing_is_drawn_from_the_global_generator(save: Save, tmp_path: Path) -> None:
    checkpoint, before = save("spectral"), torch.get_rng_state()
    export_checkpoint(checkpoint, tmp_path / "export")
    load_export(tmp_path / "export")
    assert torch.equal(torch.get_rng_state(), before)


# Metadata.


def test_each_file_says_what_it_is(save: Save, tmp_path: Path) -> None:
    checkpoint = save("plain autoencoder", 1234)
    export_checkpoint(checkpoint, tmp_path / "export")
    content = torch.load(checkpoint, weights_only=True)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    for network in NETWORKS:
        with safe_open(tmp_path / "export" / f"{network}.safetensors", "pt") as file:
            said = file.metadata()
        assert json.loads(said.pop("model")) == content["hyper_parameters"]["model"]
        assert said == {
            "package": "pegasus_lightning",
            "package_version": __version__,
            "format_version": "1",
            "checkpoint_sha256": digest,
            "batches_done": "1234",
            "seed": "5",
            "classes": '["horse", "bird"]',
            "network": network,
        }
    config = json.loads((tmp_path / "export" / "config.json").read_text())
    assert set(config.pop("files")) == {"encoder.safetensors", "decoder.safetensors", "config.json"}
    assert config == {
        "package": "pegasus_lightning",
        "package_version": __version__,
        "format_version": 1,
        "checkpoint_sha256": digest,
        "batches_done": 1234,
        "seed": 5,
        "classes": ["horse", "bird"],
        "model": content["hyper_parameters"]["model"],
    }
    loaded = load_export(tmp_path / "export")
    assert loaded.classes == ["horse", "bird"]
    assert loaded.about == config


def test_the_sums_are_those_of_the_files(exported: Path) -> None:
    lines = (exported / "SHA256SUMS").read_text().splitlines()
    files = {name: data for name, data in contents(exported).items() if name != "SHA256SUMS"}
    assert lines == [f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in sorted(files)]


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="there is no sha256sum")
def test_sha256sum_reads_the_sums(exported: Path) -> None:
    def check() -> subprocess.CompletedProcess[str]:
        command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
        return subprocess.run(command, cwd=exported, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})

    assert check().stdout == "config.json: OK\ndecoder.safetensors: OK\nencoder.safetensors: OK\n"
    flip(exported / "decoder.safetensors")
    assert check().returncode == 1


def test_the_same_checkpoint_gives_the_same_bytes(save: Save, tmp_path: Path) -> None:
    checkpoint = save()
    one, two = (contents(export_checkpoint(checkpoint, tmp_path / name).folder) for name in ("one", "two"))
    assert one == two
    size = int.from_bytes(one["encoder.safetensors"][:8], "little")
    assert size % 8 == 0  # alignment that the format requires


# Refusals.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["encoder.safetensors", "decoder.safetensors", "SHA256SUMS"])
def test_a_flipped_bit_is_refused(exported: Path, name: str) -> None:
    flip(exported / name)
    with pytest.raises(UserError, match=r"corrupt|does not list"):
        load_export(exported)


def test_another_seed_in_the_config_is_refused(exported: Path) -> None:
    path = exported / "config.json"
    path.write_text(path.read_text().replace('"seed": 5', '"seed": 6'))
    with pytest.raises(UserError, match=r"config\.json is corrupt: its SHA-256"):
        load_export(exported)


@pytest.mark.parametrize("name", ["encoder.safetensors", "config.json", "SHA256SUMS"])
def test_a_missing_file_is_named(exported: Path, name: str) -> None:
    (exported / name).unlink()
    with pytest.raises(UserError, match=name):
        load_export(exported)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2, "package_version": "9.9"}, r"by pegasus_lightning 9\.9 in format 2; .* reads up to 1"),
        ({"format_version": "1"}, "format_version is '1'"),
        ({"package": "another"}, "is not an export of pegasus_lightning"),
        ({"model": {"name": "os.system"}}, "no model named 'os.system'"),
        ({"model": {"name": "vae", "_target_": "os.system"}}, "does not fit this version"),
        ({"model": ["vae"]}, "does not fit this version"),
        ({"seed": 6}, r"encoder\.safetensors and the config\.json beside it come from different exports"),
    ],
)
def test_another_config_is_refused_though_the_sums_agree(exported: Path, change: dict[str, Any], said: str) -> None:
    change_config(exported, change)
    with pytest.raises(UserError, match=said):
        load_export(exported)


def test_a_newer_format_is_named_before_its_sums_are_read(exported: Path) -> None:
    change_config(exported, {"format_version": 2})
    (exported / "SHA256SUMS").write_text("in a way of its own")
    with pytest.raises(UserError, match="in format 2"):
        load_export(exported)


def test_networks_of_two_exports_are_not_mixed(exported: Path, save: Save, tmp_path: Path) -> None:
    other = export_checkpoint(save(batches_done=1235), tmp_path / "other").folder
    shutil.copy(other / "decoder.safetensors", exported)
    sign(exported)
    with pytest.raises(UserError, match=r"decoder\.safetensors and the config\.json beside it come from different"):
        load_export(exported)


def test_another_shape_than_the_config_says_is_refused(save: Save, tmp_path: Path) -> None:
    folder = export_checkpoint(save("as trained"), tmp_path / "export").folder
    config = json.loads((folder / "config.json").read_text())
    config["model"]["networks"]["latent_dim"] = 10**9  # would not fit into memory
    for network in NETWORKS:
        strings = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
        strings = {key: value for key, value in strings.items() if key != "files"} | {"network": network}
        tensors = load_file(folder / f"{network}.safetensors")
        (folder / f"{network}.safetensors").write_bytes(model_files.safetensors.save(tensors, strings))
    change_config(folder, config)
    with pytest.raises(UserError, match="of more than 1e\\+09 parameters"):
        load_export(folder)


@pytest.mark.parametrize("more", ["../secret", "/etc/hostname", "extra.bin"])
def test_sums_that_name_other_files_are_refused(exported: Path, more: str) -> None:
    (exported.parent / "secret").write_text("secret")
    with open(exported / "SHA256SUMS", "a") as file:
        file.write(f"{hashlib.sha256(b'secret').hexdigest()}  {more}\n")
    with pytest.raises(UserError, match="does not list what an export consists of"):
        load_export(exported)


@pytest.mark.parametrize("name", ["config.json", "decoder.safetensors"])
def test_a_file_that_the_sums_leave_out_is_not_trusted(exported: Path, name: str) -> None:
    lines = (exported / "SHA256SUMS").read_text().splitlines(keepends=True)
    (exported / "SHA256SUMS").write_text("".join(line for line in lines if name not in line))
    with pytest.raises(UserError, match="does not list what an export consists of"):
        load_export(exported)


class Malice:
    """Unpickling this would make the folder `sentinel`."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


def test_no_code_in_an_export_is_run(exported: Path, tmp_path: Path) -> None:
    evil = pickle.dumps(Malice(tmp_path / "sentinel"))
    (exported / "encoder.safetensors").write_bytes(evil)
    sign(exported)
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_export(exported)
    assert not (tmp_path / "sentinel").exists()
    pickle.loads(evil)  # the data does run code if it is unpickled
    assert (tmp_path / "sentinel").exists()


@pytest.mark.parametrize("text", [None, "{}", "[1]", "not JSON", '{"package": "pegasus_lightning"}'])
def test_a_folder_that_is_no_export_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=str(tmp_path)):
        load_export(tmp_path)


def test_a_config_that_lacks_something_is_refused(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    del config["classes"], config["model"]
    (exported / "config.json").write_text(json.dumps(config))
    sign(exported)
    with pytest.raises(UserError, match="lacks classes, model"):
        load_export(exported)


# Writing again, and errors while writing.


def test_an_export_is_left_alone_while_its_checkpoint_is_the_same(save: Save, tmp_path: Path) -> None:
    checkpoint, folder = save(), tmp_path / "export"
    first = export_checkpoint(checkpoint, folder)
    inode = folder.stat().st_ino
    second = export_checkpoint(checkpoint, folder)
    assert (first.new, second.new) == (True, False)
    assert second.sizes == first.sizes == {name: len(data) for name, data in contents(folder).items()}
    assert folder.stat().st_ino == inode
    assert export_checkpoint(save(batches_done=1235), folder).new
    assert load_export(folder).about["batches_done"] == 1235


def test_a_corrupt_export_is_made_anew(save: Save, tmp_path: Path) -> None:
    checkpoint, folder = save(), tmp_path / "export"
    good = contents(export_checkpoint(checkpoint, folder).folder)
    flip(folder / "encoder.safetensors")
    assert export_checkpoint(checkpoint, folder).new
    assert contents(folder) == good


@pytest.mark.parametrize("there_before", [True, False])
def test_a_full_disk_changes_nothing(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    folder = tmp_path / "export"
    if there_before:
        export_checkpoint(save(batches_done=1), folder)
    checkpoint = save(batches_done=2)
    before = contents(tmp_path)
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == "decoder.safetensors":
            write(self, data[:100])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="export cannot be written: No space left on device"):
        export_checkpoint(checkpoint, folder)
    assert contents(tmp_path) == before
    assert sorted(os.listdir(tmp_path)) == ["export", "run"] if there_before else ["run"]


def test_a_checkpoint_that_is_replaced_meanwhile_is_not_exported(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_and_train_on(path: Path) -> TwoPlayerModel:
        model = load_model(path)
        save(batches_done=1235)
        return model

    checkpoint = save(batches_done=1234)
    monkeypatch.setattr(model_files, "load_model", load_and_train_on)
    with pytest.raises(UserError, match="was replaced while it was read"):
        export_checkpoint(checkpoint, tmp_path / "export")
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize(("place", "reads_allowed"), [("run", 0), ("file", 0), ("file", 1), ("file", 2)])
def test_an_unreadable_checkpoint_ends_in_one_message_and_exit_code_2(
    save: Save,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
    reads_allowed: int,
) -> None:
    checkpoint, before = save(), contents(tmp_path)
    reads: list[Path] = []

    def locked(path: Path, mode: str = "r") -> Any:  # file modes would not stop root
        if path == checkpoint:
            reads.append(path)
            if len(reads) > reads_allowed:
                raise PermissionError(13, "Permission denied", str(path))
        return open(path, mode)

    monkeypatch.setattr(files, "open", locked, raising=False)
    assert export.main([str(checkpoint if place == "file" else tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"pegasus_lightning: {checkpoint} cannot be read: Permission denied. Make it")
    assert said.err.count("\n") == 1
    assert len(reads) == reads_allowed + 1
    assert contents(tmp_path) == before
    assert os.listdir(tmp_path) == ["run"]


def test_a_read_that_fails_without_a_name_is_told_of_what_was_asked_for(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> str:
        raise OSError(5, "Input/output error")  # as `read` raises it, without a file name

    monkeypatch.setattr(model_files, "sha256", failing)
    with pytest.raises(UserError, match=f"^{exported} cannot be read: Input/output error"):
        load_export(exported)


@pytest.mark.parametrize("foreign", [["config.json"], ["photo.jpg"], ["SHA256SUMS", "photo.jpg"]])
def test_a_folder_with_something_else_in_it_is_left_alone(save: Save, tmp_path: Path, foreign: list[str]) -> None:
    checkpoint, folder = save(), tmp_path / "export"
    folder.mkdir()
    for name in foreign:
        (folder / name).write_text("precious")
    with pytest.raises(UserError, match="holds something else"):
        export_checkpoint(checkpoint, folder)
    assert contents(folder) == dict.fromkeys(foreign, b"precious")
