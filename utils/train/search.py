"""Hyperparameter search with Optuna: a study that several processes can share and that can be resumed.

This module needs Optuna, so train.py imports it only for a search.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

try:
    import optuna
    from optuna.trial import FrozenTrial, TrialState
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError
except ImportError as error:
    raise ImportError("--evolve needs the package optuna, expected after: pip install optuna") from error

from utils.drawing import save_figure
from utils.files import read_yaml, write_atomic
from utils.hyp import Hyp
from utils.train.flags import TrainConfig

LOGGER = logging.getLogger(__name__)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
RANDOM_TRIALS = 5  # before the sampler uses the results of earlier trials
PLOT_COLUMNS = 5  # of evolve.png
HEARTBEAT, GRACE_PERIOD = 30, 120  # seconds: of a running trial, and without which it counts as lost and is repeated
WORKER_FLAGS = {  # may differ between the workers of a search; --hyp is compared by its values
    *("resume", "evolve", "evolve_space", "evolve_storage", "project", "name", "exist_ok", "device", "workers"),
    *("cache", "hyp", "seed", "nosave", "noplots", "save_period", "verbose"),
}

Report = Callable[[int, float], bool]
"""(epoch index, fitness) -> whether the trial should be stopped."""
TrainTrial = Callable[[Hyp, Report], float]
"""Trains once with the given hyperparameters, reports every epoch, returns the fitness."""


@dataclass(frozen=True)
class Range:
    """The values of a hyperparameter in a search: `low` to `high`, on a log scale if `log`; or one of `choices`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[float, ...] = ()

    def nearest(self, value: float) -> float:
        """The value of the range that is nearest to `value`."""
        if self.choices:
            return min(self.choices, key=lambda choice: abs(choice - value))
        return min(max(value, self.low), self.high)

    def suggest(self, trial: optuna.Trial, key: str, whole: bool) -> float:
        """The value for `trial`; an int if `whole`."""
        if self.choices:
            return trial.suggest_categorical(key, self.choices)
        if whole:
            return trial.suggest_int(key, math.ceil(self.low), math.floor(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


def read_space(path: str | Path) -> dict[str, Range]:
    """Hyperparameter -> range from a space YAML.

    Raises:
        ValueError: an unknown key, or not a range; names the file and the key.
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
        raise ValueError(f"{path}: empty, expected at least one hyperparameter with low and high, or choices")
    return space


def _read_range(value: Any, where: str) -> Range:
    """A Range from {low, high, log} or {choices}; raises ValueError starting with `where`."""
    message = (
        f"{where} is {value!r}, expected {{low: number, high: number, log: true or false}} or {{choices: [numbers]}}"
    )
    if not isinstance(value, dict) or set(value) not in ({"low", "high"}, {"low", "high", "log"}, {"choices"}):
        raise ValueError(message)
    choices = value.get("choices", [])
    numbers = [*choices] if isinstance(choices, list) else [None]
    numbers += [value[k] for k in ("low", "high") if k in value]
    if not numbers or not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise ValueError(message)
    found = Range(value.get("low", 0), value.get("high", 0), value.get("log", False), tuple(choices))
    if not choices and (found.low >= found.high or (found.log and found.low <= 0)):
        raise ValueError(f"{where} is {value!r}, expected low below high, and above 0 where log is true")
    return found


class NumberedTPE(optuna.samplers.BaseSampler):
    """TPE that depends only on the seed, the number of the trial and the earlier trials.

    A resumed search thus equals one without interruption, and workers never sample the same values.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.tpe = optuna.samplers.TPESampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        seed = int(np.random.SeedSequence((self.seed, trial.number)).generate_state(1)[0])
        self.tpe = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict:
        return self.tpe.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict) -> dict:
        return self.tpe.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self.tpe.sample_independent(study, trial, param_name, param_distribution)


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Attributes:
        trials: number of trials. epochs: of one trial, which is not stopped in the first quarter of them.
        storage: database URL; empty: evolve.db in the run folder.
        shared: other settings that must be the same in all trials, such as the data set; plain values.
    """

    trials: int
    epochs: int
    storage: str = ""
    seed: int = 0
    shared: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, cfg: TrainConfig) -> SearchSettings:
        """The settings that the flags ask for; those that may differ between workers are not shared."""
        shared = {name: value for name, value in asdict(cfg).items() if name not in WORKER_FLAGS}
        epochs = cfg.total_epochs
        return cls(cfg.evolve, epochs, cfg.evolve_storage, cfg.seed, shared | {"epochs": epochs})


def search(
    train_trial: TrainTrial, base: Hyp, space: Mapping[str, Range], folder: Path, settings: SearchSettings
) -> Hyp:
    """The best hyperparameters of all trials, of which the first has those of `base`; also in hyp_evolved.yaml.

    Every trial is saved in the study, so that the same call resumes a search, and several processes with the same study
    share the trials (together they may start a few more than asked for). evolve.csv and hyp_evolved.yaml are written
    into `folder` after each trial, evolve.png at the end. A trial is stopped if its fitness is below the median of the
    others at that epoch, or if its loss is not finite.

    Args:
        train_trial: see TrainTrial; a FloatingPointError means that the loss was not finite.
        folder: its name is the name of the study.

    Raises:
        ValueError: the storage cannot be used, or the study has other settings.
        FloatingPointError: no trial had a finite loss.
    """
    trials = settings.trials
    study = open_study(folder, settings)
    check_shared(study, {"hyp": base.as_dict(), "space": {k: asdict(v) for k, v in space.items()}, **settings.shared})
    start = {key: span.nearest(getattr(base, key)) for key, span in space.items()}
    for key, value in start.items():
        if value != getattr(base, key):
            LOGGER.warning(f"{key} {getattr(base, key)} is outside of the search space; the first trial has {value}")
    if not any(t.state != TrialState.FAIL for t in study.trials):
        study.enqueue_trial(start)
    count = len(finished_trials(study))
    if count:
        LOGGER.info(f"study '{study.study_name}' has {count} of {trials} trials; resuming")
    try:
        while len(finished_trials(study)) < trials:
            study.optimize(lambda trial: run_trial(trial, train_trial, base, space), n_trials=1)
            write_tables(study, base, space, folder)
            LOGGER.info(trial_line(finished_trials(study)[-1], study, trials))
    finally:  # with the trials of other processes, and after an interruption
        write_tables(study, base, space, folder)
        plot_trials(study, folder / "evolve.png")
    best = best_trial(study)
    if best is None:
        raise FloatingPointError(f"none of {trials} trials has a fitness, see {folder / 'evolve.csv'}")
    LOGGER.info(f"best is trial {best.number} with a fitness of {best.value:.5g}: {folder / 'hyp_evolved.yaml'}")
    return replace(base, **best.params)


def open_study(folder: Path, settings: SearchSettings) -> optuna.Study:
    """The study with the name of `folder` in the database, created if it does not exist.

    Raises:
        ValueError, ImportError: the URL cannot be used; the driver of the database is not installed.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # `search` logs the trials
    url = settings.storage or f"sqlite:///{(folder / 'evolve.db').resolve().as_posix()}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            database = optuna.storages.RDBStorage(
                url,
                heartbeat_interval=HEARTBEAT,
                grace_period=GRACE_PERIOD,
                heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
            )
        return optuna.create_study(
            study_name=folder.resolve().name,
            storage=database,
            direction="maximize",
            sampler=NumberedTPE(settings.seed),
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=RANDOM_TRIALS, n_warmup_steps=math.ceil(settings.epochs / 4)
            ),
            load_if_exists=True,
        )
    except ImportError as error:
        raise ImportError(
            f"--evolve-storage {url}: the driver of this database is not installed: {error.__cause__}"
        ) from error
    except ArgumentError as error:
        raise ValueError(f"--evolve-storage {url}: not a database URL such as postgresql://user@host/name") from error
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise ValueError(f"--evolve-storage {url}: {' '.join(str(error).split())[:200]}") from error


def check_shared(study: optuna.Study, shared: Mapping[str, Any]) -> None:
    """Save the shared settings in a new study; raise ValueError if an existing one has others."""
    own = json.loads(json.dumps(shared))  # as it comes back from the database
    saved = study.user_attrs.get("setting")
    if saved is None:
        study.set_user_attr("setting", own)
    elif saved != own:
        different = [key for key in {**saved, **own} if saved.get(key) != own.get(key)]
        raise ValueError(
            f"study '{study.study_name}' was started with another {', '.join(different)}; "
            "expected the same, or a new --name"
        )


def run_trial(trial: optuna.Trial, train_trial: TrainTrial, base: Hyp, space: Mapping[str, Range]) -> float:
    """The fitness of one training; raises TrialPruned if it was stopped or has none."""
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


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were completed or stopped early, in the order in which they ended."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return sorted(trials, key=lambda trial: trial.datetime_complete.timestamp() if trial.datetime_complete else 0.0)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """The completed trial with the best fitness, the first of equal ones; None if there is none."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return max(complete, key=lambda trial: (trial.value or 0.0, -trial.number), default=None)


def last_fitness(trial: FrozenTrial) -> float:
    """The fitness of a trial at its end; NaN if it has none."""
    if trial.state == TrialState.COMPLETE and trial.value is not None:
        return trial.value
    reported = trial.intermediate_values
    return reported[max(reported)] if reported else math.nan


def trial_line(trial: FrozenTrial, study: optuna.Study, trials: int) -> str:
    """The log line of a finished trial."""
    best = best_trial(study)
    stopped = "" if trial.state == TrialState.COMPLETE else f", stopped after {len(trial.intermediate_values)} epochs"
    best_text = f"; best {best.value:.5g} of trial {best.number}" if best else ""
    count = len(finished_trials(study))
    return f"trial {trial.number} ({count}/{trials}): fitness {last_fitness(trial):.5g}{stopped}{best_text}"


def write_tables(study: optuna.Study, base: Hyp, space: Mapping[str, Range], folder: Path) -> None:
    """Write evolve.csv and hyp_evolved.yaml."""
    finished = sorted(finished_trials(study), key=lambda trial: trial.number)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "fitness", "epochs", "seconds", *space])
    for trial in finished:
        seconds = trial.duration.total_seconds() if trial.duration else math.nan
        row = [trial.number, trial.state.name.lower(), f"{last_fitness(trial):.6g}", len(trial.intermediate_values)]
        writer.writerow([*row, f"{seconds:.1f}", *(trial.params[key] for key in space)])
    write_atomic(folder / "evolve.csv", text.getvalue())
    best = best_trial(study)
    if best is not None:
        first = next((f", trial 0 had {last_fitness(trial):.5g}" for trial in finished if trial.number == 0), "")
        head = f"# Trial {best.number}, the best of {len(finished)}: fitness {best.value:.5g}{first}.\n"
        values = replace(base, **best.params).as_dict()
        write_atomic(folder / "hyp_evolved.yaml", head + yaml.safe_dump(values, sort_keys=False))


def plot_trials(study: optuna.Study, path: Path) -> None:
    """Draw the fitness of the completed trials over each hyperparameter; nothing if there is none."""
    trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if not trials:
        return
    names = list(trials[0].params)
    columns = min(len(names), PLOT_COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(3 * columns + 1, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
    for panel in panels.flat[len(names) :]:
        panel.remove()
    for panel, name in zip(panels.flat, names, strict=False):
        values, fitness = [trial.params[name] for trial in trials], [trial.value for trial in trials]
        points = panel.scatter(values, fitness, c=[trial.number for trial in trials], cmap="Blues", edgecolors="gray")
        panel.set_xlabel(name)
        panel.grid(alpha=0.3)
        if getattr(trials[0].distributions[name], "log", False):
            panel.set_xscale("log")
            panel.xaxis.set_minor_formatter(NullFormatter())
    figure.supylabel("fitness")
    figure.colorbar(points, ax=figure.axes, label="trial", aspect=40, ticks=MaxNLocator(8, integer=True))
    save_figure(figure, path)
