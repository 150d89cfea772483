"""A search over settings: Optuna chooses the settings of each trial when a slot of the pool is free for it.

Everything about the trials is in `journal.log`, Optuna's own format, in the search's folder. The objective and the
values that prune are those of the run's `status.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pegasus_lightning.launch.best import print_best
from pegasus_lightning.launch.jobs import Job, State
from pegasus_lightning.launch.planning import plan, plan_sweep
from pegasus_lightning.launch.pool import correct_status
from pegasus_lightning.launch.settings import PoolSettings, SearchSettings
from pegasus_lightning.launch.space import Dimension, probes, read_space
from pegasus_lightning.launch.sweep import (
    FILE,
    announce,
    carry_out,
    fill_slots,
    holding,
    job_of,
    run_sweep,
    slots_for,
    try_long,
)
from pegasus_lightning.launch.tables import epochs_of, figure, head_of, lower_is_better
from pegasus_lightning.runs.checkpoints import LIMITS, is_finished
from pegasus_lightning.runs.folder import config_hash
from pegasus_lightning.runs.state import PRUNED
from pegasus_lightning.train.settings import TRAIN
from pegasus_lightning.utils.compose import plain
from pegasus_lightning.utils.errors import UserError

JOURNAL = "journal.log"
ATTEMPTS = 50  # draws in a row that give no new run, after which the space counts as exhausted
DIVERGED = "became NaN or infinite"  # in the reason of a run that would fail in the same way again
LEFT_OUT, ENDED_EARLY = "left_out", "pruned"  # attributes of trials: why
CUT = "its settings were not all drawn"  # a kill came before


def run_search(overrides: Sequence[str], settings: SearchSettings, pool: PoolSettings) -> int:
    """Search with `overrides`, some of which have several values. Return the exit code, as `run_sweep` does.

    Failed trials count as failures, pruned ones do not. Raise UserError if the same search is running already.
    """
    fixed, space = read_space(settings.params, overrides)
    tried, _ = plan_sweep((TRAIN.compose(words, with_hydra=True), words) for words in probes(fixed, space))
    runs = [tried[index % len(tried)] for index in range(settings.n_trials)]  # in place of those to come
    if tried[0].config.trainer.dry_run:
        counts = [runs.count(run) for run in tried]
        return run_sweep(tried, pool, counts)
    home, config = tried[0].folder.parent, tried[0].config
    known = [config_hash(plain(config)), *(str(dimension) for dimension in space), pool.rank_by, settings.seed]
    limits = [plain(config)["trainer"].get(name) for name in LIMITS]  # the value of a trial depends on them
    identity = hashlib.sha256(json.dumps([known, limits]).encode()).hexdigest()[:8]
    with holding(home / f"search-{identity}") as folder:
        search = Search(folder, config, fixed, space, settings, pool.rank_by)
        slots = slots_for(runs, pool)
        announce(f"Search of {len(search.jobs)} trials", search.jobs, slots, home, folder)
        received, works = try_long(runs, slots, pool, folder) if not search.trials else (None, True)
        if not works:
            return 1
        train = partial(
            fill_slots, search.jobs, slots, pool, folder / FILE, search.finished, search.watch, search.prepare
        )
        code = carry_out(search.jobs, config, slots, pool, folder, received, train)
        print_best(search.jobs, space, search.values(), pool.rank_by)
        return code or int(not search.jobs)


class Search:
    """The trials of a search as jobs of the pool. Those that have no settings yet get them in `prepare`.

    Args:
        folder: of the search, `search-<hash>`; its lock is held.
        config: the configuration of any run of the search.
        fixed: overrides of every trial.
        space: the settings to choose.
        rank_by: the metric that is the objective.
    """

    def __init__(
        self,
        folder: Path,
        config: DictConfig,
        fixed: Sequence[str],
        space: Sequence[Dimension],
        settings: SearchSettings,
        rank_by: str,
    ) -> None:
        self.folder, self.space, self.settings, self.rank_by = folder, space, settings, rank_by
        # The runs have a part of the search's name: another search in the same folder has runs of its own.
        self.name = config.run_name or f"trial-{folder.name.partition('-')[2][:4]}"
        self.max_epochs = config.trainer.max_epochs
        self.fixed = [text for text in fixed if not text.startswith("run_name=")]
        self.study = _open(folder / JOURNAL, "minimize" if lower_is_better(rank_by) else "maximize", settings)
        self.trials: dict[int, Any] = {}  # Optuna's, by number of the job
        self.seen: dict[int, int] = {}  # the newest epoch, by number of the job
        self.told: set[int] = set()  # numbers of the jobs that have ended for Optuna
        self.wanted: dict[int, dict[str, Any]] = {}  # configurations, by number of the job
        self.jobs: list[Job] = []
        self._said: set[str] = set()  # errors
        self._restore()

    def _restore(self) -> None:
        """Make the jobs: those of the trials in the journal, and a queued one for each that is to come."""
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(deepcopy=False):
            if LEFT_OUT in frozen.user_attrs:
                continue
            job = self._placeholder(len(self.jobs) + 1)
            unfit = self._assign(job, frozen.params)
            if unfit is not None and frozen.state is TrialState.RUNNING:  # killed before it was left out
                self._leave_out(Trial(self.study, frozen._trial_id), unfit)
                continue
            self.jobs.append(job)
            self.trials[job.number] = frozen
            job.end_early, status = frozen.user_attrs.get(ENDED_EARLY, ""), job.status()
            if frozen.state is TrialState.RUNNING:
                self.trials[job.number] = Trial(self.study, frozen._trial_id)
                if not job.end_early or job.state is State.FINISHED:
                    continue
                job.state, job.skipped = State.PRUNED, True  # the sweep was killed before its trial had ended
            else:
                self.told.add(job.number)
                states = {TrialState.COMPLETE: State.FINISHED, TrialState.PRUNED: State.PRUNED}
                job.state, job.skipped = states.get(frozen.state, State.FAILED), True
            if job.state is State.PRUNED:
                job.reason = job.end_early
                if status and status.get("status") != "finished" and status.get("reason") != job.reason:
                    correct_status(job, status)  # the sweep was killed before it wrote that
        self.jobs += [self._placeholder(number) for number in range(len(self.jobs) + 1, self.settings.n_trials + 1)]
        self.watch()

    def _placeholder(self, number: int) -> Job:
        name = f"{self.name}-{number:02}"
        place, log = self.folder.parent / name, self.folder / "logs" / f"{number}.log"
        return Job(number, name, [], place, [], log, self.max_epochs, label=f"trial {number:02}")

    def _assign(self, job: Job, params: Mapping[str, Any]) -> str | None:
        """Give a job the settings of a trial. Return why they make no new run, or None."""
        if params.keys() != {dimension.key for dimension in self.space}:
            return CUT
        values = [dimension.written(params[dimension.key]) for dimension in self.space]
        twin = next((other for other in self.jobs if other is not job and set(values) <= set(other.overrides)), None)
        if twin is not None:
            return f"these are the settings of trial {twin.number}"
        words = [*self.fixed, *values, f"run_name={self.name}-{job.number:02}"]
        try:
            run = plan(TRAIN.compose(words, with_hydra=True), words)
        except UserError as error:
            return str(error)
        except (HydraException, OmegaConfBaseException) as error:
            return TRAIN.explain(error, words)
        made = job_of(job.number, run, self.folder / "logs")
        for field in fields(Job):
            setattr(job, field.name, getattr(made, field.name))
        job.label = self._placeholder(job.number).label
        self.wanted[job.number] = plain(run.config)
        return None

    def finished(self, job: Job) -> bool:
        """Return whether the folder of a job holds its finished run."""
        return is_finished(job.folder, self.wanted[job.number])

    def prepare(self, job: Job) -> bool:
        """Draw the settings of a job that has none yet. Return whether it is to start.

        Raise OSError if the draw cannot be written, unless trials are running, which may free room.
        """
        if not any(job is one for one in self.jobs):  # it was dropped as the search ended early
            return False
        self.watch()  # the newest results come first
        if job.number in self.trials:
            return True
        try:
            return self._draw(job)
        except OSError as error:
            if not any(one.state is State.RUNNING for one in self.jobs):
                raise
            self._say(error)
            return False

    def _draw(self, job: Job) -> bool:
        import optuna

        for _ in range(ATTEMPTS):
            # The draws of a trial depend on the seed, its number and the results so far: not on kills of the search.
            number = sum(known.user_attrs.get(LEFT_OUT) != CUT for known in self.study.get_trials(deepcopy=False))
            self.study.sampler = optuna.samplers.TPESampler(
                seed=self.settings.seed * 1_000_003 + number,
                n_startup_trials=self.settings.random_trials,
                constant_liar=True,  # trials that are running count as bad, so that others differ
            )
            trial = self.study.ask({dimension.key: dimension.distribution() for dimension in self.space})
            unfit = self._assign(job, trial.params)
            if unfit is None:
                self.trials[job.number] = trial
                return job.state is State.QUEUED  # or finished already, in an earlier search
            self._leave_out(trial, unfit)
        print(f"The search ends early: {ATTEMPTS} draws in a row gave no new run, the last because {unfit}", flush=True)
        self.jobs[:] = [job for job in self.jobs if job.number in self.trials]
        return False

    def _leave_out(self, trial: Any, reason: str) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(LEFT_OUT, reason)
        self.study.tell(trial.number, state=TrialState.FAIL)

    def watch(self) -> None:
        """Tell Optuna what is new: validations of running trials, some of which are pruned, and how trials ended.

        A trial that failed for another reason than its settings stays open: the same command tries it again. What
        cannot be written, as on a full disk, is told at a later call, or by the same command.
        """
        try:
            self._tell_news()
        except OSError as error:
            self._say(error)

    def _say(self, error: OSError) -> None:
        if str(error) not in self._said:
            self._said.add(str(error))
            print(f"The search goes on, but its journal cannot be written: {error}", file=sys.stderr, flush=True)

    def _tell_news(self) -> None:
        from optuna.trial import TrialState

        for job in self.jobs:
            if job.state is State.QUEUED or job.number not in self.trials or job.number in self.told:
                continue
            status, trial = job.status(), self.trials[job.number]
            value, epoch = figure(status, self.rank_by), epochs_of(status)
            if job.state is State.RUNNING:
                if value is not None and epoch and not job.end_early and status.get("status") != "finished":
                    self._report(job, trial, value, epoch)
            elif job.state is State.FINISHED and value is not None:
                self.study.tell(trial.number, value)
                self.told.add(job.number)
            elif job.end_early:
                self.study.tell(trial.number, state=TrialState.PRUNED)
                self.told.add(job.number)
            elif job.state is State.FINISHED or (job.state is State.FAILED and DIVERGED in job.reason):
                self.study.tell(trial.number, state=TrialState.FAIL)
                self.told.add(job.number)

    def _report(self, job: Job, trial: Any, value: float, epoch: int) -> None:
        every = self.wanted[job.number]["trainer"]["validate_every_n_epochs"]
        if epoch % every or self.seen.get(job.number) == epoch:
            return
        if epoch in self.study.get_trials(deepcopy=False)[trial.number].intermediate_values:  # before a kill
            self.seen[job.number] = epoch
            return
        trial.report(value, epoch)
        self.seen[job.number] = epoch
        if self.settings.prune and epoch < job.max_epochs and trial.should_prune():
            style = head_of(self.rank_by)[1]
            reason = (
                f"{PRUNED}{epoch} of {job.max_epochs}, as {self.rank_by} {value:{style}} is worse than the "
                "median of the finished trials"
            )
            # In the journal first: such a trial is not continued, whatever happens now. It is told when it has ended,
            # as it may finish before it reads the signal.
            trial.set_user_attr(ENDED_EARLY, reason)
            job.end_early = reason

    def values(self) -> dict[int, float]:
        """Return the objective of the finished trials, by number of the job."""
        from optuna.trial import TrialState

        trials = self.study.get_trials(deepcopy=False)
        ended = {number: trials[self.trials[number].number] for number in sorted(self.told)}
        return {number: one.value for number, one in ended.items() if one.state is TrialState.COMPLETE}


def _open(path: Path, direction: Literal["minimize", "maximize"], settings: SearchSettings) -> Any:
    """Return the study in a journal, which is made if there is none."""
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Held(JournalFileOpenLock):
        """The search's folder is locked. Optuna's own locks would outlive a killed process."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    class Whole(JournalFileBackend):
        """A journal without lines that an error, such as a full disk, has cut off."""

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            size = path.stat().st_size
            try:
                super().append_logs(logs)
            except OSError:
                os.truncate(path, size)
                raise

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    if path.exists():
        end = path.read_bytes().rfind(b"\n") + 1
        os.truncate(path, end)  # a line that a kill cut off
    storage = optuna.storages.JournalStorage(Whole(str(path), Held(str(path))))
    return optuna.create_study(
        study_name="search",
        storage=storage,
        direction=direction,
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(settings.prune_after_trials, settings.prune_after_epochs),
    )
