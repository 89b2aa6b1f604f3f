"""Search for better hyperparameters with Optuna, in a study that several processes may share and that can go on later.

Importing this module needs Optuna, so scripts import it where a search is asked for.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError
except ImportError as error:
    raise ImportError("--evolve needs the package optuna, expected after: pip install optuna") from error

from utils.config import Hyp, read_yaml
from utils.runs import write_atomic
from utils.train.plots import save_figure

LOGGER = logging.getLogger(__name__)
DONE = (TrialState.COMPLETE, TrialState.PRUNED)
RANDOM_TRIALS = 5  # before the sampler starts to model what is good
HEARTBEAT, SILENCE = 30, 120  # seconds between signs of life of a trial; without one for so long it is tried again

Report = Callable[[int, float], bool]
"""(epoch from 0, fitness) -> whether the trial is hopeless and should stop."""
TrainTrial = Callable[[Hyp, Report], float]
"""Trains once with the given hyps, reports every validated epoch, returns the fitness."""


@dataclass(frozen=True)
class Range:
    """The values a search may give a key: from `low` to `high`, or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[float, ...] = ()

    def nearest(self, value: float) -> float:
        """The allowed value that is nearest to `value`."""
        if self.choices:
            return min(self.choices, key=lambda choice: abs(choice - value))
        return min(max(value, self.low), self.high)

    def suggest(self, trial: optuna.Trial, key: str, whole: bool) -> float:
        """The value that the search wants to try; an int if `whole`."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        if whole:
            return trial.suggest_int(key, math.ceil(self.low), math.floor(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


def read_space(path: str | Path) -> dict[str, Range]:
    """The ranges in a space YAML by hyp key.

    Raises:
        ValueError: an unknown key, or something that is not a range; names the file and the key.
    """
    known = {f.name for f in fields(Hyp)}
    space = {}
    for key, value in read_yaml(path).items():
        if key not in known:
            raise ValueError(f"{path}: unknown key {key}, expected: {', '.join(sorted(known))}")
        space[key] = span = _read_range(value, f"{path}: {key}")
        for end in span.choices or (span.low, span.high):
            trial: dict[str, Any] = {key: end}
            try:
                replace(Hyp(), **trial)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
    if not space:
        raise ValueError(f"{path}: nothing to search, expected at least one hyp key with low and high, or choices")
    return space


def _read_range(value: Any, where: str) -> Range:
    """A Range from {low, high, log} or {choices}; raises ValueError starting with `where`."""
    wrong = (
        f"{where} is {value!r}, expected {{low: number, high: number, log: true or false}} or {{choices: [numbers]}}"
    )
    if not isinstance(value, dict) or set(value) not in ({"low", "high"}, {"low", "high", "log"}, {"choices"}):
        raise ValueError(wrong)
    choices = value.get("choices", [])
    numbers = [*choices] if isinstance(choices, list) else [None]
    numbers += [value[k] for k in ("low", "high") if k in value]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(wrong)
    found = Range(value.get("low", 0), value.get("high", 0), value.get("log", False), tuple(choices))
    if not choices and (found.low >= found.high or (found.log and found.low <= 0)):
        raise ValueError(f"{where} is {value!r}, expected low below high, and above 0 where log is true")
    return found


class NumberedTPE(optuna.samplers.BaseSampler):
    """TPE whose choices for a trial follow from the seed, the trial's number and the trials before it.

    A search that was interrupted thus goes on as if it had not been, and workers never draw the same values.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.tpe = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        number = int(np.random.SeedSequence((self.seed, trial.number)).generate_state(1)[0])
        self.tpe = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


def search(
    train_trial: TrainTrial,
    base: Hyp,
    space: Mapping[str, Range],
    trials: int,
    folder: Path,
    *,
    epochs: int,
    storage: str = "",
    seed: int = 0,
    setting: Mapping[str, Any] | None = None,
) -> Hyp:
    """The best hyperparameters after `trials` trainings, the first of them with `base`; also in hyp_evolved.yaml.

    Every trial is kept in the study at once, so the same call goes on where an earlier one ended, however it ended, and
    several processes with the same study share the work (together they may begin a few trials more than asked for).
    In `folder`, evolve.csv and hyp_evolved.yaml are written after each trial, evolve.png at the end. A trial is stopped
    when its fitness is below the median of the others at that epoch; one whose loss is not finite counts as a bad one.

    Args:
        train_trial: see TrainTrial; a FloatingPointError means that the loss was not finite.
        folder: its name is that of the study. epochs: of one trial; the first quarter is never cut off.
        storage: database URL; empty is evolve.db in `folder`.
        setting: what else must be the same in all trials, such as data set and epochs; plain values.

    Raises:
        ValueError: the storage cannot be used, or its study was begun with other settings.
        FloatingPointError: no trial had a finite loss.
    """
    study = open_study(folder, storage, seed, epochs)
    agree(study, {"hyp": base.as_dict(), "space": {k: asdict(v) for k, v in space.items()}, **(setting or {})})
    start = {key: span.nearest(getattr(base, key)) for key, span in space.items()}
    for key, value in start.items():
        if value != getattr(base, key):
            LOGGER.warning(f"{key} {getattr(base, key)} lies outside of the search space; the first trial has {value}")
    if not any(t.state != TrialState.FAIL for t in study.trials):
        study.enqueue_trial(start)
    begun = len(finished(study))
    if begun:
        LOGGER.info(f"study '{study.study_name}' has {begun} of {trials} trials; going on")
    try:
        while len(finished(study)) < trials:
            study.optimize(lambda trial: run_trial(trial, train_trial, base, space), n_trials=1)
            write_outcome(study, base, space, folder)
            LOGGER.info(trial_line(finished(study)[-1], study, trials))
    finally:  # what others have added counts, and an interrupted search has its tables too
        write_outcome(study, base, space, folder)
        save_figure(draw(finished(study), space), folder / "evolve.png")
    best = best_trial(study)
    if best is None:
        raise FloatingPointError(f"none of {trials} trials came to a fitness, see {folder / 'evolve.csv'}")
    LOGGER.info(f"best is trial {best.number} with a fitness of {best.value:.5g}: {folder / 'hyp_evolved.yaml'}")
    return replace(base, **best.params)


def open_study(folder: Path, storage: str, seed: int, epochs: int) -> optuna.Study:
    """The study named as `folder` in a database, made if it is not there.

    Raises:
        ValueError, ImportError: a URL that cannot be used; a database driver that is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the trials are told by `search`
    url = storage or f"sqlite:///{(folder / 'evolve.db').resolve().as_posix()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            database = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT,
                grace_period=SILENCE,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
        return optuna.create_study(
            study_name=folder.resolve().name,
            storage=database,
            direction="maximize",
            sampler=NumberedTPE(seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=RANDOM_TRIALS, n_warmup_steps=math.ceil(epochs / 4)),
            load_if_exists=True,
        )
    except ImportError as error:
        raise ImportError(
            f"--evolve-storage {url}: the driver of this database is missing: {error.__cause__}"
        ) from error
    except ArgumentError as error:
        raise ValueError(f"--evolve-storage {url}: not a database URL such as postgresql://user@host/name") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ValueError(f"--evolve-storage {url}: {' '.join(str(error).split())[:200]}") from error


def agree(study: optuna.Study, setting: Mapping[str, Any]) -> None:
    """Note in a new study what its trials have in common; raises ValueError if an old one says something else."""
    mine = json.loads(json.dumps(setting))  # as it comes back from the database
    theirs = study.user_attrs.get("setting")
    if theirs is None:
        study.set_user_attr("setting", mine)
    elif theirs != mine:
        different = [key for key in {**theirs, **mine} if theirs.get(key) != mine.get(key)]
        raise ValueError(
            f"study '{study.study_name}' was begun with another {', '.join(different)}; "
            "expected the same, or a new --name"
        )


def run_trial(trial: optuna.Trial, train_trial: TrainTrial, base: Hyp, space: Mapping[str, Range]) -> float:
    """The fitness of one training; raises TrialPruned where it was stopped early or came to nothing."""
    chosen: dict[str, Any] = {
        key: span.suggest(trial, key, whole=isinstance(getattr(base, key), int)) for key, span in space.items()
    }
    hyp = replace(base, **chosen)
    stopped = False

    def report(epoch: int, fitness: float) -> bool:
        nonlocal stopped
        if math.isfinite(fitness):  # NaN is an epoch without validation
            trial.report(fitness, epoch)
            stopped = trial.should_prune()
        return stopped

    try:
        fitness = float(train_trial(hyp, report))
    except FloatingPointError as error:
        LOGGER.warning(f"trial {trial.number}: {error}")
        raise optuna.TrialPruned() from error
    if stopped or not math.isfinite(fitness):
        raise optuna.TrialPruned()
    return fitness


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ran to their end or were stopped for their fitness, in the order in which they ended."""
    done = study.get_trials(deepcopy=False, states=DONE)
    return sorted(done, key=lambda trial: trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The finished trial with the best fitness, the earliest of equal ones; None if all were stopped."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def reached(trial: FrozenTrial) -> float:
    """The fitness of a trial: at its end or where it was stopped; NaN if it never had one."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return trial.value
    reported = trial.intermediate_values
    return reported[max(reported)] if reported else math.nan


def trial_line(trial: FrozenTrial, study: optuna.Study, trials: int) -> str:
    """What a person reads after a trial."""
    best = best_trial(study)
    how = "" if trial.state == TrialState.COMPLETE else f", stopped after {len(trial.intermediate_values)} epochs"
    so_far = f"; best {best.value:.5g} of trial {best.number}" if best else ""
    return f"trial {trial.number} ({len(finished(study))}/{trials}): fitness {reached(trial):.5g}{how}{so_far}"


def write_outcome(study: optuna.Study, base: Hyp, space: Mapping[str, Range], folder: Path) -> None:
    """Write evolve.csv and hyp_evolved.yaml from the study."""
    done = sorted(finished(study), key=lambda trial: trial.number)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "fitness", "epochs", "seconds", *space])
    for trial in done:
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        row = [trial.number, trial.state.name.lower(), f"{reached(trial):.6g}", len(trial.intermediate_values)]
        writer.writerow([*row, f"{seconds:.1f}", *(trial.params[key] for key in space)])
    write_atomic(folder / "evolve.csv", text.getvalue())
    best = best_trial(study)
    if best is not None:
        first = next((f", trial 0 had {reached(trial):.5g}" for trial in done if trial.number == 0), "")
        head = f"# Trial {best.number}, the best of {len(done)}: fitness {best.value:.5g}{first}.\n"
        values = replace(base, **best.params).as_dict()
        write_atomic(folder / "hyp_evolved.yaml", head + yaml.safe_dump(values, sort_keys=False))


def draw(trials: list[FrozenTrial], space: Mapping[str, Range]) -> Figure:
    """The fitness of each trial, in the order of their numbers and over each hyperparameter; the best is marked."""
    trials = [trial for trial in trials if math.isfinite(reached(trial))]
    fitness = np.array([reached(trial) for trial in trials])
    whole = np.array([trial.state == TrialState.COMPLETE for trial in trials], dtype=bool)
    judged = np.where(whole, fitness, -np.inf)
    columns = math.ceil((len(space) + 1) ** 0.5)
    rows = math.ceil((len(space) + 1) / columns)
    figure = Figure(figsize=(3 * columns, 2.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    values = {"trial": np.array([trial.number for trial in trials])}
    values |= {key: np.array([trial.params[key] for trial in trials], dtype=float) for key in space}
    for axes, (key, x) in zip(panels.flat, values.items(), strict=False):
        axes.scatter(x[~whole], fitness[~whole], s=16, marker="x", color="#8a929b", label="stopped")
        axes.scatter(x[whole], fitness[whole], s=16, color="#1f6feb", label="finished")
        if whole.any():
            top = int(judged.argmax())
            axes.scatter(x[top], fitness[top], s=90, marker="*", color="#d1480b", label="best", zorder=3)
        if trials and key != "trial" and space[key].log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())  # its labels run into each other
        axes.set_title(key, fontsize=11)
        axes.grid(alpha=0.3)
    best_so_far = np.maximum.accumulate(judged)
    best_so_far[~np.isfinite(best_so_far)] = np.nan
    panels[0, 0].step(values["trial"], best_so_far, where="post", color="#d1480b", linewidth=1)
    panels[0, 0].legend(fontsize=8)
    for axes in panels.flat[len(values) :]:
        axes.set_axis_off()
    figure.supylabel("fitness", fontsize=11)
    return figure
