"""Tests of run folders: names, hash of the configuration, how they are found, status.json, train.log."""

from __future__ import annotations

import copy
import errno
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from pegasus_lightning.launch.planning import readable_name
from pegasus_lightning.runs import folder as folder_module
from pegasus_lightning.runs.folder import (
    RunName,
    Status,
    config_hash,
    find_runs,
    log_to,
    read_status,
    run_folder,
    run_name,
    run_session,
    stop_logging,
)
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import UserError


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    return plain(TRAIN.compose(["data=silhouettes"]))


def changed(config: dict[str, Any], key: str, value: object) -> dict[str, Any]:
    """A copy of `config` with the field of a dotted key changed."""
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
        ("data.classes", ["bird", "horse"]),  # their order matters
        ("data.batch_size", 128),
        ("data.drawing_seed", 1),
        ("trainer.precision", "32"),
        ("model.r2", 1.0),
        ("model.networks.residual_blocks", 1),
        ("model.networks.critic_layers", 3),
        ("model.networks.critic_patches", True),
    ],
)
def test_what_makes_another_run_changes_the_hash(original: dict[str, Any], key: str, value: object) -> None:
    assert config_hash(changed(original, key, value)) != config_hash(original)


@pytest.mark.promise(8)
@pytest.mark.parametrize(
    ("preset", "wanted"),
    [
        ("adversarial_vae", "ba4aa84672d78ee7d67438df8d77ddeb79f354e54305a6fa49a2c57e2f87658e"),
        ("vae", "3f50edb550116464d978db954db9b47ad87e541c8bd34c4003418ac29a8be5be"),
    ],
)
def test_a_run_from_before_a_setting_existed_keeps_its_folder(preset: str, wanted: str) -> None:
    """The hashes are those of commit dc08fc7: a setting that was added since is left out at its default."""
    assert config_hash(plain(TRAIN.compose(["data=silhouettes", f"model={preset}"]))) == wanted


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
        ("logger", ["csv", "wandb"]),
    ],
)
def test_where_and_how_long_does_not_change_the_hash(original: dict[str, Any], key: str, value: object) -> None:
    before = copy.deepcopy(original)
    assert config_hash(changed(original, key, value)) == config_hash(original)
    assert original == before  # the caller's configuration is not changed


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


@pytest.mark.parametrize(
    ("name", "parts", "short", "caption"),
    [
        ("vae,lines-s0-0123abcd", ("vae,lines", "0", "0123abcd", ""), "vae,lines-s0", "vae-s0"),
        ("acai,lines,lr=1e-3-s12-89abcdef", ("acai,lines,lr=1e-3", "12", "89abcdef", ""), "acai,lines,lr=1e-3-s12",
         "acai,lr=1e-3-s12"),
        ("vae-s0", ("vae", "0", "", ""), "vae-s0", "vae-s0"),
        ("a,lines-s0-0123abcd-x", ("a,lines", "0", "0123abcd", "x"), "a,lines-s0-0123abcd-x", "a-s0-0123abcd-x"),
        ("exp-s01", ("exp", "01", "", ""), "exp-s01", "exp-s01"),
        ("vae-s1-s0", ("vae-s1", "0", "", ""), "vae-s1-s0", "vae-s1-s0"),
        ("vae-s3-2", ("vae", "3", "", "2"), "vae-s3-2", "vae-s3-2"),
        # No seed: everything is readable.
        ("first_run", ("first_run", None, "", ""), "first_run", "first_run"),
        ("vae,lines", ("vae,lines", None, "", ""), "vae,lines", "vae"),
        ("vae-0123abcd", ("vae-0123abcd", None, "", ""), "vae-0123abcd", "vae-0123abcd"),
        ("lines-sx-0123abcd", ("lines-sx-0123abcd", None, "", ""), "lines-sx-0123abcd", "lines-sx-0123abcd"),
        ("", ("", None, "", ""), "", ""),
        # What looks like a seed in the readable part is not one.
        ("mine-s3-s0-0123abcd", ("mine-s3", "0", "0123abcd", ""), "mine-s3-s0", "mine-s3-s0"),
        ("a-s1-89abcdef-s0", ("a-s1-89abcdef", "0", "", ""), "a-s1-89abcdef-s0", "a-s1-89abcdef-s0"),
        ("vae-0123abcd-s0", ("vae-0123abcd", "0", "", ""), "vae-0123abcd-s0", "vae-0123abcd-s0"),
        # Seven digits, or a letter beyond f, are a suffix.
        ("vae-s0-0123abc", ("vae", "0", "", "0123abc"), "vae-s0-0123abc", "vae-s0-0123abc"),
        ("vae-s0-0123abcg", ("vae", "0", "", "0123abcg"), "vae-s0-0123abcg", "vae-s0-0123abcg"),
    ],
)  # fmt: skip
def test_the_parts_of_a_name_by_hand(name: str, parts: tuple[Any, ...], short: str, caption: str) -> None:
    parsed = RunName.parse(name)
    assert tuple(parsed) == parts
    assert (parsed.short, parsed.caption("lines"), parsed.caption(None)) == (short, caption, short)


def test_a_folder_lies_in_its_experiment(original: dict[str, Any]) -> None:
    config = changed(changed(original, "runs_dir", "/data/runs"), "experiment_name", "ablation")
    assert run_folder(config, "vae") == Path("/data/runs/ablation") / run_name(original, "vae")


# Finding runs.

MARKERS = pytest.mark.parametrize("marker", ["status.json", "checkpoints"])


def make_run(folder: Path) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    (folder / "status.json").write_text("{}")
    return folder


def found(marker: str, *places: Path | str) -> list[Path]:
    return find_runs([str(place) for place in places], marker)


@MARKERS
def test_runs_are_found_up_to_three_deep(tmp_path: Path, marker: str) -> None:
    runs = [make_run(tmp_path / name) for name in ("acai-s1", "b/vae-s0", "sweep/day/acai-s0", "sweep/vae-s2")]
    make_run(tmp_path / "four" / "deep" / "is" / "no-s0")
    make_run(tmp_path / "b" / ".staged-s0")  # incomplete
    make_run(runs[0] / "inside")  # inside a run, not a run
    (tmp_path / "notes.txt").write_text("no run")
    assert found(marker, tmp_path) == runs
    assert found(marker, runs[1]) == found(marker, f"{runs[1]}/") == [runs[1]]


@MARKERS
def test_places_are_found_in_the_order_asked_each_once(tmp_path: Path, marker: str) -> None:
    one, two = make_run(tmp_path / "one"), make_run(tmp_path / "two")
    (tmp_path / "link").symlink_to("one")
    assert found(marker, two, one, two) == [two, one]
    assert found(marker, two, tmp_path / "link", tmp_path) == [two, tmp_path / "link"]


@MARKERS
def test_patterns_and_the_home_folder_are_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, marker: str
) -> None:
    one, two = make_run(tmp_path / "runs" / "vae-s1"), make_run(tmp_path / "runs" / "vae-s0")
    other = make_run(tmp_path / "runs" / "acai-s0")
    (tmp_path / "runs" / "vae-notes").mkdir()  # matches, but is no run
    assert found(marker, f"{tmp_path}/*/vae*") == [two, one]
    assert found(marker, f"{tmp_path}/r*") == [other, two, one]  # a folder of runs that matches
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found(marker, "~/runs/vae-s1", "~/runs", "~/runs/v*") == [one, other, two]


def test_checkpoint_files_and_their_folder_are_places_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "vae-s0")
    file = run / "checkpoints" / "last.ckpt"
    assert found("checkpoints", run / "checkpoints") == [run]
    assert found("checkpoints", file) == found("checkpoints", run / "checkpoints" / "*.ckpt") == [file]


@pytest.mark.parametrize(
    ("marker", "what"), [("status.json", "run folder"), ("checkpoints", "run folder or checkpoint")]
)
def test_a_place_without_runs_is_named_and_what_was_meant(tmp_path: Path, marker: str, what: str) -> None:
    def message_of(*places: Path) -> str:
        with pytest.raises(UserError) as error:
            found(marker, *places)
        return str(error.value)

    example, quotes = (
        "Name a run's folder or a folder of runs, such as runs/first_run.",
        "Patterns need quotes, such as",
    )
    missing, empty = tmp_path / "zzz", tmp_path / "photos"
    start = f"There is no {what} {missing}."
    assert message_of(missing) == f"{start} {quotes} 'runs/*/vae*'."
    empty.mkdir()
    wanted = f"{empty} holds no run: no folder in it has {marker}. {example}"
    assert (
        message_of(empty) == message_of(make_run(tmp_path / "vae-s0"), empty) == wanted
    )  # a good place hides no bad one
    assert message_of(missing).startswith(f"{start} Folders there: photos, vae-s0. {quotes}")
    near = tmp_path / "vae-s1"
    assert message_of(near).startswith(f"There is no {what} {near}. Did you mean 'vae-s0'? {quotes}")
    assert message_of(tmp_path / "p*") == f"{tmp_path / 'p*'} holds no run: no folder in it has {marker}. {example}"
    assert f"There is no {what}" in message_of(tmp_path / "nowhere" / "at" / "all")
    if marker == "status.json":
        (tmp_path / "config.yaml").write_text("")
        assert message_of(tmp_path / "config.yaml") == f"{tmp_path / 'config.yaml'} is a file. {example}"


# The status and the log.


def test_a_run_that_a_full_disk_ended_is_not_left_as_running(
    tmp_path: Path, original: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, full = tmp_path / "run", OSError(errno.ENOSPC, "No space left on device")

    def write(path: Path, content: Any) -> None:
        raise full

    with pytest.raises(OSError, match="No space left"), run_session(run, original):
        monkeypatch.setattr(folder_module, "write_json", write)
        raise full
    status = json.loads((run / "status.json").read_text())
    assert (status["status"], status["exit_code"]) == ("failed", 1)
    assert status["reason"] == "OSError: [Errno 28] No space left on device"


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
