"""Tests of the page as text: its content, escaping, links and size."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pegasus_lightning.report import page
from pegasus_lightning.report.page import render, write_report
from pegasus_lightning.report.read import read_runs
from pegasus_lightning.report.sprites import sprite
from pegasus_lightning.runs.folder import find_runs
from pegasus_lightning.runs.scorecards import PEGASI, Figure
from pegasus_lightning.utils.errors import UserError

MakeRun = Callable[..., Path]
EVIL = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


class Elements(HTMLParser):
    """Start tags with attributes, and the text outside <script> and <style>."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] not in ("script", "style"):
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def rendered(place: Path, **options: object) -> str:
    return render(read_runs(find_runs([str(place)], "status.json")), **options)  # type: ignore[arg-type]


def test_the_page_shows_what_was_measured(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable
) -> None:
    make_run(tmp_path, "adversarial_vae", evaluated=False)
    run = make_run(tmp_path, "acai", config={"model": {"weights": {"kl": 0.5}}})
    rows = {PEGASI: {"recognised": Figure(0.22, 0.19, 0.25), "kid": Figure(0.8, 0.7, 0.9)}}
    evaluated(tmp_path / "adversarial_vae,silhouettes-s0-0123abcd", card("adversarial_vae", rows=rows))
    evaluated(run, card("acai", alarms=["Memorised?"]))
    text = Elements(rendered(tmp_path)).text
    for words in (
        "horse + bird 2 runs of 2 variants, trained 2026-02-03",
        "30.0% ±4.0 +8.0 pp",  # 30 - 22; one seed a side: no interval over seeds, and no verdict
        "pixel average control 41.0% ±1.0",
        "No health verdicts were recorded",
        "acai-s0 : Memorised?",
        "python -m pegasus_lightning model=acai seed=0",
        "model.weights.kl 0.5 1.0",
        "horse 0.81 · bird 0.34 at 0.40, nearest 0.123",
        "horse 0.10 · bird 0.20 at 0.45, nearest 0.021 too near",
        "torch 2.10.0",
    ):
        assert words in text, words
    assert text.count("too near ↓") == 0 and text.count("nearest 0.123 too near") == 0
    assert "Failed and unfinished" not in text


def test_health_verdicts_are_words_with_their_sentences(tmp_path: Path, make_run: MakeRun) -> None:
    health = [
        {"name": "critic", "verdict": "ok", "value": 1, "threshold": 2, "batch": 3, "sentence": "It sees."},
        {"name": "posterior", "verdict": "collapsed", "sentence": "3 of 128 dimensions are used."},
        "rubbish",
    ]
    make_run(tmp_path, status={"health": health})
    make_run(tmp_path, "acai", status={"health": "rubbish"})
    elements = Elements(rendered(tmp_path))
    assert "vae-s0 \u2013 finished 5 \u2013 \u2013 ok collapsed" in elements.text
    assert "acai-s0 \u2013 finished 5 \u2013 \u2013 not recorded not recorded" in elements.text
    assert "collapsed posterior 3 of 128 dimensions are used." in elements.text
    assert "No verdicts were recorded." in elements.text


def test_failed_and_unfinished_runs_are_listed_with_reason_and_log(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "vae")
    bare = {"checkpoint": False, "evaluated": False, "epochs": ()}
    failed = {"status": "failed", "exit_code": 1, "reason": "The loss is not finite at batch 300."}
    make_run(tmp_path, "acai", status=failed, **bare)
    make_run(tmp_path, "vae_gan", status={"status": "interrupted", "reason": "SIGTERM", "exit_code": 143})
    make_run(tmp_path, "two", status={"status": "running"}, evaluated=False)
    torn = make_run(tmp_path, "torn", **bare)
    (torn / "status.json").write_text("{")
    for name in ("train.log", "metrics.jsonl", "config.yaml"):
        (torn / name).unlink()
    text = Elements(rendered(tmp_path)).text
    unfinished = text[text.index("Failed and unfinished acai-s0") :]
    assert "Failed and unfinished (4)" in text
    wanted = "acai-s0 failed The loss is not finite at batch 300. Exit code 1. No model was saved. To go on"
    assert wanted in unfinished
    assert "one line the last line" in unfinished
    assert "vae_gan-s0 interrupted SIGTERM Exit code 143." in unfinished
    died = (
        "two-s0 died status.json says that it is running, but no process trains it any more; last heard of 2026-02-03"
    )
    assert died in unfinished
    assert "torn,silhouettes-s0 unknown How it ended is not known. No model was saved." in unfinished
    assert "There is no train.log." in unfinished
    assert "vae-s0" not in unfinished
    assert "status.json could not be read: it is not JSON." in text and "Not evaluated yet" in text


def test_runs_without_any_scorecard_still_make_a_page(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, evaluated=False)
    elements = Elements(rendered(tmp_path))
    assert "While it trained" in elements.text
    assert "The same pairs" not in elements.text
    assert len(elements.all("img")) == 4


def test_what_a_run_says_is_text_and_never_markup(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable
) -> None:
    run = make_run(
        tmp_path,
        status={"status": "failed", "reason": EVIL, "command": ["__main__.py", EVIL], "versions": {EVIL: EVIL}}
        | {"health": [{"name": EVIL, "verdict": EVIL, "sentence": EVIL}]},
        config={EVIL: EVIL},
    )
    (run / "train.log").write_text(EVIL)
    (run / "metrics.jsonl").write_text(json.dumps({"batch": 1, f"loss/{EVIL}": 1.0}) + "\n")
    (run / "images" / "prior-epoch-0001.png").write_text(EVIL)
    strange = card(EVIL, None, classes=[EVIL, EVIL], alarms=[EVIL], settings={EVIL: EVIL})
    evaluated(run, strange)
    elements = Elements(rendered(tmp_path))
    assert len(elements.all("script")) == 1
    assert all("onerror" not in attributes for _, attributes in elements.found)
    assert all((attributes["src"] or "").startswith("data:") for attributes in elements.all("img"))


def test_the_page_names_no_address_but_its_own(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path)
    text = rendered(tmp_path)
    assert (
        re.findall(r"https?:|//[a-z]", re.sub(r"data:image/webp;base64,[\w+/=]*|^\s*//.*$", "", text, flags=re.M)) == []
    )
    elements = Elements(text)
    for _, attributes in elements.found:
        for name in ("src", "href", "srcset", "action", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    policy = next(a["content"] for a in elements.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'; img-src data:;")


def test_the_page_can_be_read_by_all(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path)
    make_run(tmp_path, "acai", status={"status": "failed"})
    elements = Elements(rendered(tmp_path))
    assert elements.all("html") == [{"lang": "en"}]
    assert all(attributes.get("alt") for attributes in elements.all("img"))
    assert all(a.get("aria-label") for _, a in elements.found if a.get("role") == "img")
    assert all(a.get("scope") in ("col", "row") for a in elements.all("th"))
    assert len(elements.all("caption")) == len(elements.all("table"))
    ids = [a["id"] for _, a in elements.found if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in elements.all("a")} | {f"#{a['for']}" for a in elements.all("label") if "for" in a}
    assert targets <= {f"#{name}" for name in ids}
    levels = [int(tag[1]) for tag, _ in elements.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    sliders = [a for a in elements.all("input") if a.get("type") == "range"]
    assert [a["aria-valuetext"] for a in sliders] == ["0.50", "epoch 5", "epoch 5"]


def test_the_same_files_make_the_same_page(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path)
    assert rendered(tmp_path) == rendered(tmp_path)


def test_photographs_are_shown_or_left_out(tmp_path: Path, make_run: MakeRun, pictures: Callable) -> None:
    make_run(tmp_path)
    shown, hidden = rendered(tmp_path), rendered(tmp_path, originals=False)
    arrays = pictures()
    photographs = sprite(np.stack([arrays[name] for name in ("first", "second", "blend", "cutmix")]))
    twins = sprite(np.stack([arrays["pegasi"], arrays["neighbours"]]))
    alone, frames = sprite(arrays["pegasi"][None]), sprite(arrays["frames"].swapaxes(0, 1))
    assert [address in shown for address in (photographs, twins, alone, frames)] == [True, True, False, True]
    assert [address in hidden for address in (photographs, twins, alone, frames)] == [False, False, True, True]
    assert shown.count("reconstructions after epoch") == 2 and "reconstructions after epoch" not in hidden
    assert "Originals, the images of the data set, are left out" in hidden


def test_a_gallery_without_photographs_is_shown_as_it_is(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable, pictures: Callable
) -> None:
    run = make_run(tmp_path, evaluated=False)
    unseen = dict.fromkeys(("first", "second", "blend", "cutmix", "neighbours"))
    evaluated(run, card("vae"), pictures=pictures(**unseen))
    text = Elements(rendered(tmp_path)).text
    assert "Pairs, mixed at every ratio" in text and "nearest 0.123" in text
    assert ", original" not in text and "CutMix (no model)" not in text and "beside the nearest" not in text


def test_models_with_other_pairs_stand_apart(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable, pictures: Callable
) -> None:
    for name, pairs in (("vae", 0), ("acai", 0), ("vae_gan", 1)):
        indices = np.arange(8).reshape(4, 2) + pairs
        evaluated(make_run(tmp_path, name, evaluated=False), card(name), pictures=pictures(pair_indices=indices))
    elements = Elements(rendered(tmp_path))
    assert len([a for a in elements.all("section") if a.get("class") == "pairs"]) == 2
    assert "The same pairs in every model (2 of 2)" in elements.text


def test_an_unknown_baseline_is_refused_and_a_known_one_used(tmp_path: Path, make_run: MakeRun) -> None:
    make_run(tmp_path, "vae")
    make_run(tmp_path, "acai")
    assert "Baseline: vae ." in Elements(rendered(tmp_path, baseline="vae")).text
    with pytest.raises(UserError, match=r"no variant 'vea' among these runs. Did you mean 'vae'"):
        rendered(tmp_path, baseline="vea")


def test_a_page_stays_within_its_bound(tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small page limit with incompressible pictures of twice its size."""
    for name in ("vae", "acai"):
        run = make_run(tmp_path, name, epochs=(1, 2, 3, 4, 5, 6))
        for path in (run / "images").glob("*.png"):
            pixels = np.random.default_rng(int(path.stem[-4:])).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    free = len(rendered(tmp_path))
    monkeypatch.setattr(page, "PAGE_BYTES", free // 2)
    text = rendered(tmp_path)
    assert free // 5 < len(text) <= free // 2
    assert "of 6 saved epochs are shown, so that the page stays small." in text


def test_an_out_that_cannot_be_is_refused_and_the_old_page_stays(tmp_path: Path, make_run: MakeRun) -> None:
    run = make_run(tmp_path)
    (tmp_path / "file").write_text("")
    for out, said in (
        (tmp_path, "is a folder. Name a file in it"),
        (tmp_path / "page", r"must end in .html. Did you mean --out .*page.html"),
        (tmp_path / "file" / "page.html", "cannot be written: Not a directory|cannot be written: File exists"),
    ):
        with pytest.raises(UserError, match=said):
            write_report([str(run)], str(out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", run.name]


@pytest.mark.slow
def test_eight_runs_with_ten_epochs_of_four_grids_take_less_than_15_megabytes(
    tmp_path: Path, make_run: MakeRun, evaluated: Callable, card: Callable, pictures: Callable
) -> None:
    """Grids of the size that training draws, with slightly blurred noise; frames of noise."""
    random = np.random.default_rng(0)
    cells = Image.fromarray(random.integers(0, 256, (110, 185, 3), dtype=np.uint8)).resize((370, 220))
    cells.resize((1110, 660), Image.Resampling.NEAREST).save(tmp_path / "grid.png")
    frames = random.integers(0, 256, (8, 21, 3, 32, 32), dtype=np.uint8)
    few = {
        name: random.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8) for name in ("first", "second", "blend", "cutmix")
    }
    for number in range(8):
        run = make_run(tmp_path, f"variant_{number}", epochs=(), evaluated=False)
        evaluated(
            run,
            card(f"variant_{number}"),
            pictures=pictures(frames=frames, ratios=np.linspace(0, 1, 21), pair_indices=np.zeros((8, 2)), **few),
        )
        for kind in ("interpolations", "mixes", "prior", "reconstructions"):
            for epoch in range(10):
                shutil.copy(tmp_path / "grid.png", run / "images" / f"{kind}-epoch-{epoch:04d}.png")
    path, _ = write_report([str(tmp_path)])
    assert 9_000_000 < path.stat().st_size < 15_000_000
