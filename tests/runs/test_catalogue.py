"""Tests of `python -m pegasus_lightning.runs` on folders written by hand."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pegasus_lightning.runs.__main__ import main
from pegasus_lightning.runs.catalogue import chosen, read_catalogue, same_value
from pegasus_lightning.runs.scorecards import FILE, PEGASI, Figure, Scorecard, write_scorecard
from pegasus_lightning.runs.tables import print_runs, wrapped
from pegasus_lightning.utils.errors import UserError

CONFIG = """model:
  name: {model}
  networks:
    latent_dim: {latent}
  autoencoder_optimizer:
    lr: 0.001
data:
  source: lines
  classes:
  - horse
  - bird
trainer:
  max_epochs: 5
  gpus: null
seed: {seed}
experiment_name: a
runs_dir: {runs_dir}
run_name: null
"""


def write_run(
    folder: Path,
    psnr: float | None = 20.0,
    *,
    model: str = "vae",
    latent: int = 8,
    seed: int = 0,
    minute: int = 0,
    config: bool = True,
    **status: Any,
) -> Path:
    """Write a run's folder that began at 10:`minute` and took 90 s."""
    folder.mkdir(parents=True)
    fields = {
        "status": "finished",
        "exit_code": 0,
        "reason": None,
        "command": ["__main__.py", f"model={model}", f"seed={seed}"],
        "started": f"2026-01-02T10:{minute:02}:00+00:00",
        "updated": f"2026-01-02T10:{minute + 1:02}:30+00:00",
        "limits": {"max_epochs": 5, "max_time": None},
        "epochs": 5,
        "batches": 50,
        "metrics": {} if psnr is None else {"validation/psnr": psnr, "validation/kl": 10 - psnr / 10, "loss/kl": 9.0},
    }
    (folder / "status.json").write_text(json.dumps(fields | status))
    if config:
        (folder / "config.yaml").write_text(
            CONFIG.format(model=model, latent=latent, seed=seed, runs_dir=folder.parent)
        )
    return folder


def evaluate(run: Path, key: str = "same", **figures: float) -> None:
    row = {name: Figure(value, value, value) for name, value in figures.items()}
    card = Scorecard(
        str(run), run.name, "vae", 0, 50, ["horse", "bird"], key, {}, {}, {}, {PEGASI: row}, {PEGASI: 10}, {}
    )
    (run / "evaluation" / key).mkdir(parents=True)
    write_scorecard(run / "evaluation" / key / FILE, card)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder `runs` in the current folder: a variant with two seeds, one with three."""
    monkeypatch.chdir(tmp_path)
    for seed, psnr in ((0, 20.0), (1, 24.0)):
        write_run(Path(f"runs/a/vae,lines-s{seed}-0000000{seed}"), psnr, seed=seed, minute=seed)
    for seed, psnr in ((0, 22.0), (1, 23.0), (2, 22.5)):
        name = f"runs/b/acai,lines,latent_dim=4-s{seed}-1000000{seed}"
        write_run(Path(name), psnr, model="acai", latent=4, seed=seed, minute=10 + seed)
    return tmp_path / "runs"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    """Return the lines that a command line prints, on stderr if it is refused."""
    assert main(arguments) == code
    said = capsys.readouterr()
    assert not (said.err if code == 0 else said.out)
    return (said.out or said.err).splitlines()


def test_the_newest_run_comes_first_and_what_is_piped_is_whole(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "list") == [
        "Of all: lines",
        "                                              valid.",
        "name                  status    epochs  time    PSNR   KL",
        "─" * 57,
        "acai,latent_dim=4-s2  finished     5/5  1:30   22.50  7.8",
        "acai,latent_dim=4-s1  finished     5/5  1:30   23.00  7.7",
        "acai,latent_dim=4-s0  finished     5/5  1:30   22.00  7.8",
        "vae-s1                finished     5/5  1:30   24.00  7.6",
        "vae-s0                finished     5/5  1:30   20.00  8.0",
    ]
    rows = answer(capsys, "list", "run=runs", "--sort", "validation/psnr")[4:]
    assert [row.split()[4] for row in rows] == ["24.00", "23.00", "22.50", "22.00", "20.00"]


def test_states_are_those_of_the_folder_and_damage_is_no_traceback(runs: Path) -> None:
    write_run(runs / "c/running", status="running")
    write_run(runs / "c/died", status="running")
    write_run(runs / "c/short", reason="trainer.max_time=1m: 2 of 5 epochs", epochs=2)
    write_run(runs / "c/failed", None, status="failed", reason="\x1b[31mNaN", config=False)
    (write_run(runs / "c/torn") / "status.json").write_text('{"status": "fin')
    (write_run(runs / "c/fifo") / "status.json").unlink()
    os.mkfifo(runs / "c/fifo/status.json")
    (write_run(runs / "c/odd", metrics=[1], limits=None, command={}, machines=3) / "config.yaml").write_text("- 1")
    (runs / "c/sweep-0123abcd").mkdir()
    (runs / "c/sweep-0123abcd/sweep.json").write_text("{}")
    with open(runs / "c/running/.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = {entry.folder.name: entry.state for entry in read_catalogue([str(runs / "c")])}
    assert found == {
        "running": "running",
        "died": "died",
        "short": "out of time",
        "failed": "failed",
        "torn": "unreadable",
        "fifo": "unreadable",
        "odd": "finished",
    }
    for run in found:
        assert main(["show", f"runs/c/{run}"]) == 0
    for command in ("list", "csv", "compare", "best"):
        assert main([command, "runs"]) == 0


def test_what_a_dry_run_left_behind_shows_only_when_it_is_named(runs: Path) -> None:
    dry = write_run(runs / ".dry_run/vae,lines-s0-00000000", 99.0)
    assert len(read_catalogue(["runs"])) == 5
    assert [entry.folder.name for entry in read_catalogue(["runs/.dry_run"])] == [dry.name]


def test_runs_are_chosen_by_status_preset_and_setting(runs: Path) -> None:
    command = ["__main__.py", "model=four_conv_layers"]
    write_run(runs / "c/failed", None, model="adversarial_vae", command=command, status="failed")
    entries = read_catalogue(["runs"])

    def names(**asked: list[str]) -> list[str]:
        return [entry.name for entry in chosen(entries, **asked)]

    assert names(states=["failed"]) == names(models=["four_conv_layers"]) == ["failed"]
    assert names(models=["adversarial_vae"]) == []
    assert names(where=["model.networks.latent_dim=4", "seed=1"]) == ["acai,lines,latent_dim=4-s1"]
    assert names(where=["model=vae", "seed=0", "model.autoencoder_optimizer.lr=1e-3"]) == ["vae,lines-s0"]
    with pytest.raises(UserError, match=r"No run has a setting latent_dim\. Did you mean 'model.networks.latent_dim'"):
        names(where=["latent_dim=4"])
    assert same_value(["horse", "bird"], "[horse, 'bird']") and same_value(None, "null") and same_value(True, "True")
    assert not same_value(1, "10") and not same_value("a", "null") and not same_value(False, "0")


def test_the_best_run_stands_beside_the_mean_over_its_seeds(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = answer(capsys, "best")
    assert [line.split()[0] for line in said[3:5]] == ["vae-s1", "vae-s0"]
    assert said[5:] == [
        "vae-s1 has the highest validation/psnr of 5 runs: 24.00.",
        "It is one of 2 seeds; their mean is 22.00.",
        "Of those with several seeds, acai,latent_dim=4 has the best mean: 22.50 (3 seeds).",
        "runs/a/vae,lines-s1-00000001",
    ]
    assert answer(capsys, "best", "--lowest", "--model", "acai")[-1] == "runs/b/acai,lines,latent_dim=4-s0-10000000"
    assert "add --lowest or --highest" in answer(capsys, "best", "--by", "validation/kl", code=2)[0]
    assert "Did you mean 'validation/kl'?" in answer(capsys, "best", "--by", "validation/k", code=2)[0]


def test_figures_of_scorecards_know_their_direction(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sorted(runs.glob("a/*"))
    evaluate(first, kid=0.2, recognised=0.3)
    evaluate(second, kid=0.1, recognised=0.2)
    assert answer(capsys, "best", "--by", "kid")[-1].endswith("s1-00000001")
    assert answer(capsys, "best", "--by", "recognised")[-1].endswith("s0-00000000")
    assert not any("not comparable" in line for line in answer(capsys, "best", "--by", "kid"))
    evaluate(runs / "b/acai,lines,latent_dim=4-s0-10000000", "other", kid=0.3)
    assert any("not comparable" in line for line in answer(capsys, "best", "--by", "kid"))
    row = next(line for line in answer(capsys, "list", "runs/a") if line.startswith("vae-s0"))
    assert row.split()[-1] == "30.0%"


def test_in_a_terminal_columns_go_and_names_are_wrapped(runs: Path) -> None:
    long = "acai,lines,channels=32,latent_dim=64,spectral_norm=critic,batch_size=16-s0-20000000"
    figures = {"validation/psnr": 20.0, "final/psnr": 21.0, "validation/kl": 9.0}
    run = write_run(runs / "c" / long, metrics=figures | {f"validation/critic_{who}": 0.5 for who in ("real", "fake")})
    evaluate(run, winged=0.25, recognised=0.5)
    text = io.StringIO()
    console = Console(file=text, width=66, force_terminal=True, color_system=None, highlight=False)
    print_runs(console, read_catalogue([str(run)]))
    lines = text.getvalue().splitlines()
    assert max(map(len, lines)) <= 66
    end = next(
        index for index, line in enumerate(lines) if line.startswith("No room here for: C fake, C real, time, KL")
    )
    assert "".join(line[:24].strip() for line in lines[3:end]) == long.removesuffix("-20000000")
    assert "20.00" in lines[3] and "25.0%" in lines[3] and "50.0%" in lines[3]
    assert wrapped("a,bb,ccc", 5) == "a,bb,\nccc"


def test_a_run_is_shown_with_what_was_typed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs / "a/vae,lines-s0-00000000"
    (run / "images").mkdir()
    (run / "images" / "mixes-epoch-0001.png").touch()
    command = [
        "__main__.py",
        "seed=3",
        "model=vae",
        "model.networks.latent_dim=16",
        "seed=0",
        "data.classes=[horse,bird]",
    ]
    fields = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(fields | {"command": command}))
    said = [line.strip() for line in answer(capsys, "show", "run=runs/a/*s0*")]
    typed = "seed=3 model=vae model.networks.latent_dim=16 seed=0 'data.classes=[horse,bird]'"
    assert f"command     python -m pegasus_lightning {typed}" in said
    assert "seed=3" not in said  # typed again as seed=0
    assert "model.networks.latent_dim=16  (config.yaml: 8)" in said  # the others are as they were typed
    assert sum("(config.yaml" in line for line in said) == 1
    assert "epochs      5 of 5, 50 batches" in said
    assert said[-1] == "there       runs/a/vae,lines-s0-00000000/images (newest: mixes-epoch-0001.png)"
    assert "holds 5 runs: name one of" in answer(capsys, "show", "runs", code=2)[0]


def test_a_comparison_tells_settings_from_chance(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs / "a/vae,lines-s0-00000000/config.yaml"
    config.write_text(config.read_text().replace("gpus: null", "gpus: 0"))  # makes no other run
    said = answer(capsys, "compare", "runs/a")
    rows = [line.split() for line in said if line]
    assert ["seed", "1", "0"] in rows and ["validation/psnr", "24.00", "20.00"] in rows
    assert not any(row[0] in ("model.name", "loss/kl") for row in rows)
    assert said[-1] == "They differ in nothing but the seed: so far apart are figures by chance."
    rows = [line.split() for line in answer(capsys, "compare", "runs/a/*s0*", "runs/b/*s1*")]
    assert ["model.networks.latent_dim", "4", "8"] in rows  # the newest run first
    assert not any(row[:1] == ["runs_dir"] for row in rows)  # a and b
    assert " ".join(rows[-1]).startswith("Their seeds differ too")
    assert "nothing to compare" in answer(capsys, "compare", "runs/a/*s0*", code=2)[0]


def test_csv_has_a_row_a_run_and_is_written_whole(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO("\n".join(answer(capsys, "csv", "runs")))))
    assert [row["name"] for row in rows][-1] == "vae-s0"
    assert rows[0]["folder"] == "runs/b/acai,lines,latent_dim=4-s2-10000002"
    told = ("max_epochs", "seconds", "model.networks.latent_dim", "validation/psnr", "loss/kl")
    assert [rows[0][key] for key in told] == ["5", "90", "4", "22.5", "9.0"]
    assert "data.source" not in rows[0]  # all have the same
    assert answer(capsys, "csv", "--out", "all.csv", "--where", "seed=0") == ["all.csv"]
    assert len(Path("all.csv").read_text().splitlines()) == 3
    assert "must end in .csv" in answer(capsys, "csv", "--out", "runs/a", code=2)[0]
    assert "there is no folder new" in answer(capsys, "csv", "--out", "new/all.csv", code=2)[0]


def test_nothing_slow_is_imported(runs: Path) -> None:
    code = "import sys; from pegasus_lightning.runs.__main__ import main; main(['list']); main(['show', 'runs/a/*s0*'])"
    code += "; sys.exit(', '.join({'torch', 'pytorch_lightning', 'hydra', 'omegaconf', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.strip() == ""
