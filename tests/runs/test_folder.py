"""Names of run folders, the configuration's hash, status.json, train.log."""

from __future__ import annotations

import copy
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pegasus_lightning.launch.planning import readable_name
from pegasus_lightning.runs.folder import Status, config_hash, log_to, read_status, run_folder, run_name, stop_logging
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    return plain(TRAIN.compose(["data=silhouettes"]))


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of `config` with one field, given by its dotted key, changed."""
    config = copy.deepcopy(config)
    section = config
    *groups, last = key.split(".")
    for group in groups:
        section = section[group]
    assert section[last] != value
    section[last] = value
    return config


def reversed_keys(node: object) -> object:
    return {key: reversed_keys(node[key]) for key in reversed(node)} if isinstance(node, dict) else node


def test_the_hash_does_not_depend_on_the_order_of_keys(original: dict[str, Any]) -> None:
    backwards = reversed_keys(original)
    assert isinstance(backwards, dict)
    assert list(backwards) == list(reversed(original))
    assert config_hash(backwards) == config_hash(original)
    assert re.fullmatch("[0-9a-f]{64}", config_hash(original))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("model.name", "vae"),
        ("model.networks.latent_dim", 64),
        ("model.networks.spectral_norm", "all"),
        ("model.weights.kl", 0.5),
        ("model.critic_optimizer.lr", 1e-3),
        ("model.ema_decay", 0.999),
        ("data.classes", ["bird", "horse"]),  # which is first matters
        ("data.batch_size", 128),
        ("data.drawing_seed", 1),
        ("trainer.precision", "32"),
    ],
)
def test_what_makes_another_run_changes_the_hash(original: dict[str, Any], key: str, value: object) -> None:
    assert config_hash(changed(original, key, value)) != config_hash(original)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.max_epochs", 3),
        ("trainer.max_time", "2h"),
        ("trainer.gpus", 1),
        ("trainer.cpu_processes", 2),
        ("trainer.threads", 1),
        ("runs_dir", "elsewhere"),
        ("resume", "must"),
        ("experiment_name", "other"),
        ("callbacks.progress_bar", False),
    ],
)
def test_where_and_how_long_does_not_change_the_hash(original: dict[str, Any], key: str, value: object) -> None:
    before = copy.deepcopy(original)
    assert config_hash(changed(original, key, value)) == config_hash(original)
    assert original == before  # nothing is taken out of the caller's configuration


@pytest.mark.promise(8)
def test_two_seeds_never_share_a_folder(original: dict[str, Any]) -> None:
    names = {run_name(changed(original, "seed", seed), "vae") for seed in range(1, 20)}
    assert len(names) == 19
    assert all(re.fullmatch(r"vae-s\d+-[0-9a-f]{8}", name) for name in names)


@pytest.mark.promise(8)
def test_the_same_name_for_different_configurations_is_told_apart(original: dict[str, Any]) -> None:
    assert run_name(original, "vae") != run_name(changed(original, "model.weights.kl", 0.25), "vae")


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    ("readable", "head"),
    [
        ("acai,latent_dim=64", "acai,latent_dim=64"),
        ("acai,cache=/home/me/my pictures/x", "acai,cache=_home_me_my_pictures_x"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "run"),
        ("", "run"),
        ("classes=[cat,ship]", "classes=_cat,ship"),
        ("naïve\nname\0", "naïve_name"),
    ],
)
def test_any_text_becomes_a_folder_name(original: dict[str, Any], readable: str, head: str) -> None:
    name = run_name(original, readable)
    assert name == f"{head}-s0-{config_hash(original)[:8]}"
    assert "/" not in name


@pytest.mark.promise(8)
@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_a_long_name_is_cut_before_its_seed_and_hash(original: dict[str, Any], seed: int) -> None:
    config = changed(original, "seed", seed) if seed else original
    name = run_name(config, "acai," + "x" * 500)
    assert len(name) == 120
    assert name.endswith(f"-s{seed}-{config_hash(config)[:8]}")


def test_a_folder_lies_in_its_experiment(original: dict[str, Any]) -> None:
    config = changed(changed(original, "runs_dir", "/data/runs"), "experiment_name", "ablation")
    assert run_folder(config, "vae") == Path("/data/runs/ablation") / run_name(original, "vae")


def test_status_is_rewritten_whole(tmp_path: Path, original: dict[str, Any]) -> None:
    status = Status.begin(tmp_path, original)
    begun = read_status(tmp_path)
    assert begun is not None
    assert (begun["status"], begun["exit_code"], begun["reason"]) == ("running", None, None)
    assert begun["config_hash"] == config_hash(original)
    assert {"python", "torch", "pytorch-lightning", "hydra-core", "pegasus-lightning"} <= begun["versions"].keys()
    status.update(status="failed", exit_code=1, reason="ValueError: no")
    ended = json.loads((tmp_path / "status.json").read_text())
    assert (ended["status"], ended["exit_code"], ended["reason"]) == ("failed", 1, "ValueError: no")
    assert ended["started"] == begun["started"]
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize("content", [None, "", '{"status": "fin', "[1, 2]"])
def test_a_status_that_cannot_be_read_is_none(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert read_status(tmp_path) is None


def test_the_log_is_appended_to_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("before\n")
    handler = log_to(path)
    logging.getLogger("pegasus_lightning.anything").warning("a warning")
    logging.getLogger("somebody.else").warning("not ours")
    stop_logging(handler)
    logging.getLogger("pegasus_lightning.anything").warning("too late")
    lines = path.read_text().splitlines()
    assert len(lines) == 2
    assert lines[0] == "before"
    assert lines[1].endswith("WARNING a warning")
    assert handler not in logging.getLogger("pegasus_lightning").handlers


def test_what_does_not_make_the_run_does_not_move_its_folder() -> None:
    def folder(*overrides: str) -> Path:
        config = TRAIN.compose(["data=silhouettes", *overrides])
        return run_folder(plain(config), readable_name(config, {"model": "vae", "data": "silhouettes"}, overrides))

    usual = folder()
    assert folder("data.on_device=false", "trainer.log_every_n_steps=7", "callbacks.images=false") == usual
    assert folder("data.flip=false") != usual
    assert folder("trainer.precision=32") != usual
