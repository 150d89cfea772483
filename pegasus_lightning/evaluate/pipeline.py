"""The work of `evaluate`: a scorecard, a gallery and TensorBoard figures of each run."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from pegasus_lightning.data.settings import data_settings, validate_data
from pegasus_lightning.evaluate.benchmark import Benchmark
from pegasus_lightning.evaluate.inception import inception_network
from pegasus_lightning.evaluate.settings import EvaluateConfig
from pegasus_lightning.evaluate.summary import WIDTH, lines_of, page_command, sentence
from pegasus_lightning.evaluate.tables import comparison_table, console_table
from pegasus_lightning.generate.judge import winged_store
from pegasus_lightning.generate.session import Session, open_session
from pegasus_lightning.recognisers import winged
from pegasus_lightning.recognisers.network import REPORTS
from pegasus_lightning.recognisers.store import RecogniserStore, StoredRecogniser
from pegasus_lightning.recognisers.training import independent_recipe, standard_recipe, winged_recipe
from pegasus_lightning.runs.folder import EVENT_FILES, events_folder, read_status
from pegasus_lightning.runs.places import check_writable, digest, path_shown, title
from pegasus_lightning.runs.scorecards import (
    FILE,
    GALLERY,
    HPARAMS,
    PEGASI,
    Scorecard,
    is_outdated,
    read_scorecard,
    with_panel,
    write_scorecard,
)
from pegasus_lightning.runs.trained import TrainedRun
from pegasus_lightning.utils.compose import typed
from pegasus_lightning.utils.devices import one_device
from pegasus_lightning.utils.errors import UserError
from pegasus_lightning.utils.files import sha256, whole_folder

# Settings that change nothing but where results go and what is kept beside the figures.
PLACES = ("run", "checkpoint", "pretrained", "out", "gpus", "recognisers")
NOT_FIGURES = (*PLACES, "originals", "again", "verbose", "winged", "prepare")
EVENTS = ".evaluation"  # suffix of the event file that holds the figures


def evaluate(config: DictConfig, data_overrides: Sequence[str]) -> list[Scorecard]:
    """Evaluate runs for a validated `EvaluateConfig`. Return their scorecards, in the order of the runs.

    Raise UserError, before anything is written, if a run, device, data or class is missing, or results cannot be
    written.
    """
    session = open_session(typed(config, EvaluateConfig), data_overrides, "images from")
    settings: EvaluateConfig = session.settings
    homes = [_home(run, settings, session) for run in session.runs]  # before a recogniser is trained
    inception = inception_network() if settings.inception else None
    recipe = independent_recipe if settings.reporter == "independent" else standard_recipe
    assert session.data is not None
    reports = session.store.get(session.data, recipe(REPORTS))
    winged_judge = _winged_judge(session)
    identity = {key: value for key, value in asdict(settings).items() if key not in NOT_FIGURES}
    judge = session.judge_name
    # Without a search the selecting recogniser only decides which pegasi the gallery shows.
    identity["score"] = identity["score"] | {"judge": "none" if settings.search.method == "none" else judge}
    key = digest([identity, session.origin, reports.path.name, *([winged_judge.path.name] if winged_judge else [])])

    titles = [title(settings, [[key, judge], sha256(run.checkpoint), settings.originals]) for run in session.runs]
    folders = [home / name for home, name in zip(homes, titles, strict=True)]  # now: a run may be training on

    benchmark: Benchmark | None = None
    cards = []
    for run, folder in zip(session.runs, folders, strict=True):
        if not settings.again and (judged := _judged(folder)) is not None:
            cards.append(judged)
            print(f"Already judged: {run.name} (again=true judges it once more)", flush=True)
        else:
            benchmark = benchmark or Benchmark(session, reports, inception, winged_judge)
            card, gallery = benchmark.measure(run, key, identity)
            with whole_folder(folder) as staged:
                write_scorecard(staged / FILE, card)
                with open(staged / GALLERY, "wb") as file:
                    np.savez_compressed(file, **gallery)  # type: ignore[arg-type]
            cards.append(card)
            if len(session.runs) > 1:
                print(f"{len(cards)} of {len(session.runs)}: {run.name}", flush=True)
        if run.folder is not None and settings.out is None and settings.checkpoint == "last":
            _log(run.folder, cards[-1])
    _tell(session, cards, folders)
    return cards


def _tell(session: Session, cards: Sequence[Scorecard], folders: Sequence[Path]) -> None:
    """Print what was found: a sentence, for several runs a line each, where the figures are, and what shows them."""
    settings: EvaluateConfig = session.settings
    told = [
        card if run.folder is None else with_panel(card, run.folder)
        for run, card in zip(session.runs, cards, strict=True)
    ]
    if settings.verbose:
        print("\n\n".join(map(console_table, told)))
        print(f"\n{comparison_table(told)}" if len(told) > 1 else "", end="\n\n")
    print(textwrap.fill(sentence(told), WIDTH, break_on_hyphens=False, break_long_words=False))
    if len(told) > 1:
        print(f"\n{lines_of(told)}\n")
    for card in told:
        of = f" ({card.name})" if len(told) > 1 else ""
        print("".join(f"ALARM: {alarm}{of}\n" for alarm in card.alarms), end="")
    for folder in folders:
        print(f"  scorecard  {path_shown(folder / FILE)}")
    homes = [run.folder for run in session.runs]
    if settings.out is None and None not in homes:
        files = any(Path(place).expanduser().is_file() for place in settings.run)
        print(f"  the page   {page_command([path_shown(home) for home in homes if home] if files else settings.run)}")
    if not settings.verbose:
        print("  tables     the same command with verbose=true")


def train_recognisers(config: DictConfig, data_overrides: Sequence[str]) -> list[StoredRecogniser]:
    """Train the recognisers that an evaluation with a validated `EvaluateConfig` needs for the images of `data=...`.

    Return them. Raise UserError if no images are named, or they are missing.
    """
    settings = typed(config, EvaluateConfig)
    if not data_overrides:
        raise UserError("Recognisers of which images? Add data=cifar10, or data=image_folder data.root=FOLDER.")
    data = data_settings(None, data_overrides)
    assert data is not None
    validate_data(data)
    folder = None if settings.recognisers is None else Path(settings.recognisers).expanduser()
    store = RecogniserStore(folder, one_device(settings.gpus))
    recipe = independent_recipe if settings.reporter == "independent" else standard_recipe
    trained = [store.get(data, recipe(REPORTS))]
    if settings.winged:
        trained.append(winged_store(store, data.classes).get(data, winged_recipe(REPORTS, winged.REPORTS)))
    for stored in trained:
        print(f"Trained: {stored.path}", flush=True)
    return trained


def _judged(folder: Path) -> Scorecard | None:
    """Return the scorecard of an evaluation; None if there is none, or one that has to be made again."""
    if not (folder / FILE).exists() or not (folder / GALLERY).exists() or is_outdated(folder / FILE):
        return None
    try:
        return read_scorecard(folder / FILE)
    except UserError as error:  # whose advice is this very command
        print(error, flush=True)
        return None


def _winged_judge(session: Session) -> StoredRecogniser | None:
    """Return the winged judge that reports, as the setting `winged` wants it."""
    settings: EvaluateConfig = session.settings
    if settings.winged is False:
        return None
    assert session.data is not None
    store, recipe = winged_store(session.store, session.data.classes), winged_recipe(REPORTS, winged.REPORTS)
    return store.get(session.data, recipe) if settings.winged else store.find(session.data, recipe)


def _home(run: TrainedRun, settings: EvaluateConfig, session: Session) -> Path:
    """Return the folder for one run's results, a folder for each evaluation. Raise UserError if it is not writable."""
    if settings.out is not None:
        home = Path(settings.out).expanduser() / (run.name if len(session.runs) > 1 else "")
    elif run.folder is not None:
        home = run.folder / "evaluation"
    elif settings.pretrained is not None:  # not into the installed package
        home = Path("pegasi") / run.name / "evaluation"
    else:
        home = run.checkpoint.with_name(f"{run.checkpoint.stem}-evaluation")
    return check_writable(home, "out=FOLDER")


def _log(run: Path, card: Scorecard) -> None:
    """Write the pegasi's figures into the run's TensorBoard run, replacing those of an earlier evaluation.

    The training declared them as metrics of the run's row in HParams.
    """
    from torch.utils.tensorboard import SummaryWriter

    folder = events_folder(run)
    status = read_status(run)
    if status is None or status.get("status") == "running":
        return  # a second writer would stop a TensorBoard that follows the training
    for old in folder.glob(f"{EVENT_FILES}{EVENTS}"):
        old.unlink()
    with SummaryWriter(str(folder), filename_suffix=EVENTS) as writer:
        for name in HPARAMS:
            writer.add_scalar(f"evaluation/{name}", card.rows[PEGASI][name].value, card.batches)
