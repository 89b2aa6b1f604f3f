"""A run that --resume continues: its last.pt, its settings with those of the command line, and whether it goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from utils.config import known_fields, spelling
from utils.data.data_yaml import find_data_yaml, read_data_yaml
from utils.hyp import Hyp
from utils.runs import newest_to_resume
from utils.text import counted
from utils.train.flags import TrainConfig

LOGGER = logging.getLogger(__name__)
FROM_COMMAND = {"resume", "epochs", "device", "workers", "project", "data", "verbose"}  # other flags are the run's own


def last_checkpoint(resume: str, project: str) -> Path:
    """The last.pt that --resume means: a file, that of a run's folder, or for 'newest' the newest below `project`.

    Raises:
        FileNotFoundError: no run below `project`.
    """
    path = newest_to_resume(Path(project)) if resume == "newest" else Path(resume)
    return path / "weights" / "last.pt" if path.is_dir() else path


def run_settings(last: Path, opt: Mapping[str, Any], hyp: Mapping[str, Any]) -> tuple[TrainConfig, Hyp]:
    """The flags and hyperparameters that a checkpoint names.

    Raises:
        ValueError: a value out of range.
    """
    try:
        return TrainConfig(**known_fields(TrainConfig, opt)), Hyp(**known_fields(Hyp, hyp))
    except ValueError as error:
        raise ValueError(f"{last}: {error}") from error


def resumed_flags(cfg: TrainConfig, old: TrainConfig, last: Path) -> TrainConfig:
    """The flags to go on with: the run's `old` ones, those of FROM_COMMAND from `cfg`, and the folder of `last`.

    Other flags of `cfg` are named in a warning.

    Raises:
        FileNotFoundError: see resumed_data.
    """
    ignored = [f.name for f in fields(cfg) if f.name not in FROM_COMMAND and getattr(cfg, f.name) != f.default]
    if ignored:
        LOGGER.warning(f"--resume keeps the settings of the run, ignored: {' '.join(map(spelling, ignored))}")
    folder = run_folder(last)
    return replace(
        old,
        project=str(folder.parent),
        name=folder.name,
        exist_ok=True,
        resume=str(last),
        device=cfg.device,
        workers=cfg.workers if cfg.workers != TrainConfig.workers else old.workers,
        epochs=cfg.epochs or old.epochs,
        verbose=cfg.verbose,
        data=resumed_data(cfg.data, old.data, last),
    )


def run_folder(last: Path) -> Path:
    """The folder of the run that wrote `last`."""
    return last.resolve().parent.parent


def resumed_data(given: str, old: str, last: Path) -> str:
    """The data YAML to resume a run with: `given` where --data names one, else the `old` one.

    Raises:
        FileNotFoundError: the old one or its images are gone.
    """
    if given:
        if Path(given).resolve() != Path(old):
            LOGGER.info(f"{last}: --data {given} instead of {old}")
        return given
    try:
        read_data_yaml(find_data_yaml(old))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{last}: its data {old} are gone, expected --data with a YAML of the same classes ({error!s:.160})"
        ) from error
    return old


def resumed_state(
    training: Mapping[str, Any], done: int, cfg: TrainConfig, old: TrainConfig, last: Path
) -> dict[str, Any] | None:
    """The state to go on with, which a line announces; None if the run is finished.

    With more epochs than before, patience and time, which may have ended the run, start anew.

    Args:
        training: the saved state, which stays as it is. done: the number of epochs that are done.
    """
    folder, more = run_folder(last), cfg.total_epochs > old.total_epochs
    written_last = folder / ("metrics.json" if old.noplots else "report.html")
    if training["finished"] and not more and written_last.exists():
        LOGGER.info(f"{folder}: this run is finished after {counted(done, 'epoch')}; a larger --epochs continues it")
        return None
    LOGGER.info(f"{folder}: resuming after epoch {done}, with the settings of the run")
    if not more:
        return dict(training)
    stopper = {**training["stopper"], "best_epoch": done - 1}
    return {**training, "finished": False, "seconds": 0.0, "stopper": stopper}
