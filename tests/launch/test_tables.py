"""Tests of the tables at the end of a sweep: ranks, means over seeds, failures."""

from __future__ import annotations

import io
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.tables import (
    TAIL_BYTES,
    ShellCommand,
    clock,
    failures,
    figure,
    last_lines,
    lower_is_better,
    ranked_table,
    seeds_table,
)

TORN = [
    None,
    "",
    '{"status": "run',
    "null",
    "[1, 2]",
    '{"metrics": null, "epochs": null, "limits": null, "health": null, "started": null, "reason": null}',
    '{"metrics": [1], "epochs": "3", "limits": 3, "health": [null, {"name": null}], "started": 5, "reason": {}}',
    '{"metrics": {"final/psnr": null, "final/kl": "high", "final/excess_bce": NaN}, "epochs": true, "health": {}}',
    '{"metrics": {"final/psnr": 1' + "0" * 400 + '}, "limits": {"max_time": "soon"}, "started": "yesterday"}',
    b"\xff\xfe\x00",
]


def a_job(folder: Path, number: int, name: str, state: State = State.FINISHED, **fields: Any) -> Job:
    """A job of 20 epochs whose run folder is `folder/name`."""
    defaults = {"overrides": [f"model={name.partition('-')[0]}", f"seed={number}"], "command": ["false"]}
    log = folder / f"{name}.log"
    return Job(number, name, folder=folder / name, log=log, max_epochs=20, state=state, **(defaults | fields))


def say(job: Job, **fields: Any) -> None:
    """Write the run's status.json."""
    job.folder.mkdir(exist_ok=True)
    (job.folder / "status.json").write_text(json.dumps(fields))


def rendered(renderable: RenderableType, width: int = 200) -> list[str]:
    """Lines as in a log file, without trailing blanks."""
    console = Console(record=True, width=width, force_terminal=False, file=io.StringIO())
    console.print(renderable)
    lines = console.export_text().split("\n")[:-1]
    assert all(len(line) <= width for line in lines)
    return [line.rstrip() for line in lines]


def cells(renderable: RenderableType, width: int = 200) -> list[list[str]]:
    """Cells of the rows below the rule; they are at least two blanks apart, and empty ones are lost."""
    lines = rendered(renderable, width)
    rule = next(index for index, line in enumerate(lines) if line.startswith("──"))
    return [re.split(" {2,}", line.strip()) for line in lines[rule + 1 :]]


@pytest.fixture
def four(tmp_path: Path) -> list[Job]:
    """Two finished runs, a stopped one, a failed one, one that still runs and one that was finished before."""
    jobs = [
        a_job(tmp_path, 1, "vae-s0-11111111", began=100.0, ended=860.0),
        a_job(tmp_path, 2, "acai-s0-22222222", began=100.0, ended=3853.4),
        a_job(tmp_path, 3, "acai-s1-33333333", State.STOPPED, began=100.0, ended=107.0, exit_code=143),
        a_job(tmp_path, 4, "vae_gan-s0-44444444", State.FAILED, began=100.0, ended=141.0, exit_code=137),
        a_job(tmp_path, 5, "vae-s1-55555555", State.RUNNING, began=100.0),
        a_job(tmp_path, 6, "vae-s2-66666666", skipped=True),
    ]
    say(jobs[0], epochs=20, metrics={"final/psnr": 20.136, "final/excess_bce": 84.68, "final/kl": 40.96})
    say(jobs[1], epochs=18, metrics={"final/psnr": 21.5, "final/excess_bce": 90.0, "final/critic_real": -0.205})
    say(jobs[2], epochs=7, metrics={"validation/psnr": 25.0, "final/psnr": 25.0})
    say(jobs[4], epochs=7, metrics={"final/psnr": 99.0})
    say(jobs[5], epochs=20, metrics={"final/psnr": 20.5, "final/excess_bce": 80.0})
    return jobs


def test_the_best_stands_first_and_what_did_not_finish_last(four: list[Job]) -> None:
    assert rendered(ranked_table(four, "final/psnr"))[:4] == [
        "Ranked by final/psnr, highest first",
        "                              final  excess            C",
        "rank     run                   PSNR     BCE    KL   real  epochs     time",
        "─────────────────────────────────────────────────────────────────────────",
    ]
    assert cells(ranked_table(four, "final/psnr")) == [
        ["1", "acai-s0-22222222", "21.50", "90.0", "-", "-0.20", "18/20", "1:02:33"],
        ["2", "vae-s2-66666666", "20.50", "80.0", "-", "-", "20/20", "before"],
        ["3", "vae-s0-11111111", "20.14", "84.7", "41.0", "-", "20/20", "12:40"],
        ["stopped", "acai-s1-33333333", "25.00", "-", "-", "-", "7/20", "0:07"],
        ["failed", "vae_gan-s0-44444444", "-", "-", "-", "-", "-", "0:41"],
    ]


def test_the_lowest_is_best_of_what_is_better_low(four: list[Job]) -> None:
    table = ranked_table(four, "final/excess_bce")
    assert rendered(table)[0] == "Ranked by final/excess_bce, lowest first"
    assert [row[:4] for row in cells(table)[:3]] == [
        ["1", "vae-s2-66666666", "80.0", "20.50"],
        ["2", "vae-s0-11111111", "84.7", "20.14"],
        ["3", "acai-s0-22222222", "90.0", "21.50"],
    ]


def test_a_finished_run_without_the_metric_has_no_rank(four: list[Job]) -> None:
    rows = cells(ranked_table(four, "final/kl"))
    assert [row[:3] for row in rows[:3]] == [
        ["1", "vae-s0-11111111", "41.0"],
        ["-", "acai-s0-22222222", "-"],
        ["-", "vae-s2-66666666", "-"],
    ]
    assert all(row[2] == "-" for row in cells(ranked_table(four, "final/unheard_of")))


@pytest.mark.parametrize(
    ("metric", "lower"),
    [
        ("final/psnr", False),
        ("final/excess_bce", True),
        ("validation/excess_bce", True),
        ("evaluation/recognised", False),
        ("evaluation/kid", True),
        ("loss/reconstruction", True),
        ("final/critic_real", False),
        ("speed/images_per_second", False),
    ],
)
def test_which_way_a_metric_is_better(metric: str, lower: bool) -> None:
    assert lower_is_better(metric) is lower


def test_bad_verdicts_stand_under_the_name(four: list[Job]) -> None:
    health = [
        {"name": "posterior", "verdict": "bad", "value": 0.1},
        {"name": "critic", "verdict": "ok"},
        {"name": "modes", "verdict": "Failed"},
    ]
    say(four[0], metrics={"final/psnr": 22.0}, health=health)
    assert [row[:2] for row in cells(ranked_table(four, "final/psnr"))[:3]] == [
        ["1", "vae-s0-11111111"],
        ["posterior, modes"],
        ["2", "acai-s0-22222222"],
    ]


def test_a_run_whose_time_was_over_says_so_under_its_name(four: list[Job]) -> None:
    reason = "trainer.max_time=1h: 18 of 20 epochs"
    say(four[1], status="finished", reason=reason, epochs=18, metrics={"final/psnr": 21.5})
    assert [row[:2] for row in cells(ranked_table(four, "final/psnr"))[:3]] == [
        ["1", "acai-s0-22222222"],
        ["out of time"],
        ["2", "vae-s2-66666666"],
    ]


def test_a_narrow_terminal_folds_names_and_cuts_no_figure(tmp_path: Path) -> None:
    names = ["adversarial_vae,silhouettes,latent_dim=128-s0-efbd3233", "vae,silhouettes-s0-8de89863"]
    jobs = [a_job(tmp_path, number, name, began=0.0, ended=3753.4) for number, name in enumerate(names)]
    figures = {"final/psnr": 20.1, "final/excess_bce": 84.7, "final/kl": 41.0, "final/critic_real": -0.2}
    for job in jobs:
        say(job, epochs=20, metrics=figures | {"final/critic_fake": 0.1})
    lines = rendered(ranked_table(jobs, "final/psnr"), width=80)[4:]
    figures_of = [line.split()[-7:] for line in lines if "1:02:33" in line]
    assert figures_of == [["20.10", "84.7", "41.0", "-0.20", "0.10", "20/20", "1:02:33"]] * 2
    assert "".join(line[6:].split(" ")[0] for line in lines) == "".join(names)
    assert [row[1] for row in cells(ranked_table(jobs, "final/psnr"), width=200)] == names


def test_means_and_deviations_over_seeds_by_hand(tmp_path: Path) -> None:
    values = {"vae-s0-00000001": 19.0, "vae-s1-00000002": 20.0, "vae-s12-00000003": 24.0, "acai-s0-00000004": 21.5}
    jobs = [a_job(tmp_path, number, name) for number, name in enumerate(values, start=1)]
    for job in jobs:
        job.overrides[0] = f"model={job.name.partition('-')[0]}"
        say(job, metrics={"final/psnr": values[job.name]} | ({"final/kl": 40.0} if job.number < 2 else {}))
    failed = a_job(tmp_path, 9, "vae-s3-00000009", State.FAILED)
    say(failed, metrics={"final/psnr": 1000.0})
    table = seeds_table([*jobs, failed], "final/psnr")
    assert table is not None
    # Of 19, 20 and 24: mean 21, squares of the deviations 4 + 1 + 9 = 14, over n - 1: 7, its root 2.65.
    assert cells(table) == [["acai", "1", "21.50", "-"], ["vae", "3", "21.00 ± 2.65", "40.0"]]
    assert seeds_table([jobs[0], jobs[3], failed], "final/psnr") is None


def test_runs_of_one_name_and_different_settings_are_not_taken_for_seeds(tmp_path: Path) -> None:
    jobs = []
    for number, (rate, seed) in enumerate([("1", 0), ("1", 1), ("2", 0), ("2", 1)]):
        overrides = ["model=vae", f"data.classes=[{rate}]", f"seed={seed}"]
        jobs.append(a_job(tmp_path, number, f"vae-s{seed}-0000000{number}", overrides=overrides))
        say(jobs[-1], metrics={"final/psnr": 20.0 + number})
    table = seeds_table(jobs, "final/psnr")
    assert table is not None
    assert [row[:3] for row in cells(table)] == [
        ["vae (data.classes=[2])", "2", "22.50 ± 0.71"],
        ["vae (data.classes=[1])", "2", "20.50 ± 0.71"],
    ]


def test_a_failure_is_told_with_the_end_of_its_log_and_how_to_run_it_alone(four: list[Job]) -> None:
    stopped, failed = four[2], four[3]
    failed.slot, failed.overrides = "GPU 1", ["model=vae_gan", "data.classes=[cat,ship]"]
    failed.log.write_bytes(
        b"1\n2\n\x1b[32mepoch\x1b[0m\t1\r\nbar 10%\rbar 50%\rbar 80%\r\nbad \xff byte [bold]\n\x1b]0;title\x07end\n\n"
    )
    stopped.reason = "stopped by SIGTERM"
    stopped.log.write_text("\n".join("abcdef"))
    first, second = failures(four, lines=4)
    assert rendered(second) == [
        "",
        "vae_gan-s0-44444444 failed after 0:41 on GPU 1, exit code 137: killed by SIGKILL",
        f"  the end of its log: {failed.log}",
        "    epoch   1",
        "    bar 80%",
        "    bad \ufffd byte [bold]",
        "    end",
        "  to run it alone:",
        "    python -m pegasus_lightning model=vae_gan 'data.classes=[cat,ship]'",
    ]
    assert rendered(first) == [
        "",
        "acai-s1-33333333 stopped after 0:07, exit code 143",
        "  stopped by SIGTERM",
        f"  the end of its log: {stopped.log}",
        *("    d", "    e", "    f"),
        "  to run it alone:",
        "    python -m pegasus_lightning model=acai seed=3",
    ]


@pytest.mark.parametrize(
    ("state", "code", "reason", "said"),
    [
        (State.FAILED, 137, "", "exit code 137: killed by SIGKILL"),
        (State.FAILED, 139, "", "exit code 139: killed by SIGSEGV"),
        (State.FAILED, 137, "killed by SIGKILL (out of memory?)", "exit code 137"),
        (State.STOPPED, 143, "", "exit code 143: stopped by SIGTERM"),
        (State.STOPPED, 137, "", "exit code 137: killed by SIGKILL"),
        (State.FAILED, 1, "", "exit code 1"),
        (State.FAILED, 128, "", "exit code 128"),
        (State.FAILED, 255, "", "exit code 255"),
        (State.FAILED, None, "", "no exit code"),
    ],
)
def test_exit_codes_in_words(tmp_path: Path, state: State, code: int | None, reason: str, said: str) -> None:
    job = a_job(tmp_path, 1, "vae", state, exit_code=code, reason=reason)
    lines = rendered(failures([job])[0])
    assert lines[1] == f"vae {state}, {said}"
    assert f"  its log is empty or missing: {job.log}" in lines


def test_the_reason_is_the_runs_own_where_the_pool_knows_none(tmp_path: Path) -> None:
    job = a_job(tmp_path, 1, "vae", State.FAILED)
    say(job, reason="\x1b[31m\nFloatingPointError: loss/kl is nan\nmore")
    assert rendered(failures([job])[0])[2] == "  FloatingPointError: loss/kl is nan"


def test_of_a_huge_log_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * TAIL_BYTES + b"rest\nlast\n")
    assert last_lines(path, 12) == ["last"]
    path.write_bytes(b"\r".join(b"%d%%" % percent for percent in range(100)) * 1000)
    assert last_lines(path, 12) == ["99%"]
    assert last_lines(path, 0) == []


@pytest.mark.parametrize(("width", "lines"), [(34, 4), (46, 3), (80, 2), (300, 1)])
def test_a_long_command_can_be_copied(width: int, lines: int) -> None:
    words = ["python", "-m", "pegasus_lightning", "data.classes=[cat,ship]", "model=vae", "it's", "seed=1"]
    console = Console(width=width, force_terminal=False, file=io.StringIO())
    console.print(ShellCommand(words, indent=4))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(len(line) <= width for line in text.split("\n"))
    assert text.count("\n") == lines
    told = subprocess.run(["sh", "-c", f"printf '%s\\n' {text}"], capture_output=True, text=True, check=True).stdout
    assert told.splitlines() == words


@pytest.mark.parametrize("content", TORN)
def test_a_torn_status_costs_its_figures_and_nothing_else(tmp_path: Path, content: str | bytes | None) -> None:
    jobs = [
        a_job(tmp_path, 1, "vae-s0-00000001"),
        a_job(tmp_path, 2, "vae-s1-00000002", State.FAILED),
        a_job(tmp_path, 3, "acai-s0-00000003"),
    ]
    for job in jobs[:2]:
        job.folder.mkdir()
        if content is not None:
            raw = content if isinstance(content, bytes) else content.encode()
            (job.folder / "status.json").write_bytes(raw)
    say(jobs[2], metrics={"final/psnr": 20.0}, epochs=20)
    assert cells(ranked_table(jobs, "final/psnr")) == [
        ["1", "acai-s0-00000003", "20.00", "20/20", "-"],
        ["-", "vae-s0-00000001", "-", "-", "-"],
        ["failed", "vae-s1-00000002", "-", "-", "-"],
    ]
    jobs[2].name, jobs[2].overrides = "vae-s2-00000003", ["model=vae", "seed=3"]
    table = seeds_table(jobs, "final/psnr")
    assert table is not None
    assert cells(table) == [["vae", "2", "20.00"]]
    assert rendered(failures(jobs)[0])[1] == "vae-s1-00000002 failed, no exit code"


def test_infinity_and_truth_are_no_figures() -> None:
    assert figure({"metrics": {"a": float("-inf")}}, "a") is None
    assert figure({"metrics": {"a": 3}}, "a") == 3.0
    assert figure({"metrics": {"a": True}}, "a") is None


def test_clock() -> None:
    assert [clock(s) for s in (-3, 0.4, 59.6, 760, 3753.4, 363845)] == [
        "0:00",
        "0:00",
        "1:00",
        "12:40",
        "1:02:33",
        "101:04:05",
    ]
