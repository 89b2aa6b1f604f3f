"""MLflow logs of a run: flags, metrics of every epoch, best.pt and the report; needs the package mlflow."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils.files import read_yaml, write_atomic
from utils.optional import import_mlflow
from utils.text import clean

LOGGER = logging.getLogger(__name__)
EXPERIMENT = "yolov5-mobilevit"  # unless MLFLOW_EXPERIMENT_NAME is set
RUN_FILE = "mlflow.yaml"  # in the run folder: the id of its run there, so that a resumed run continues it
ARTIFACTS = ("weights/best.pt", "report.html")
SECRET = ("evolve_storage",)  # may contain a password
FINAL = ("map50", "map50_95", "precision", "recall")


class MlflowLog:
    """Logs a run to the server in MLFLOW_TRACKING_URI; without it to mlflow.db and mlartifacts/ beside the run folder.

    A server that fails during training is a warning, and training goes on without it.

    Args:
        folder: of the run; None: all methods do nothing. flags, hyp: of the run.
        start: the epoch at which a resumed run continues; it goes on in its earlier MLflow run.

    Raises:
        ImportError: the package is not installed.
        ValueError: the server does not answer or refuses.
    """

    def __init__(self, folder: Path | None, flags: Mapping[str, Any], hyp: Mapping[str, float], start: int = 0):
        self.folder = folder
        if folder is None:
            return
        self.package = import_mlflow()
        logging.getLogger("alembic").setLevel(logging.WARNING)  # which announces every table of a new database
        given = os.environ.get("MLFLOW_TRACKING_URI", "")
        place = folder.resolve().parent
        uri = given or f"sqlite:///{place.as_posix()}/mlflow.db"
        try:
            self.client = self.package.MlflowClient(uri)
            experiment = self.experiment("" if given else (place / "mlartifacts").as_uri())
            self.run_id = self.earlier_run(folder) if start else ""
            if not self.run_id:
                self.run_id = self.client.create_run(experiment, run_name=folder.name).info.run_id
                write_atomic(folder / RUN_FILE, f"run_id: {self.run_id}\n")
                self.log_flags(flags, hyp)
        except self.package.exceptions.MlflowException as error:
            where = "the server in MLFLOW_TRACKING_URI" if given else uri  # an address may contain a password
            raise ValueError(f"--logger mlflow: {where} cannot be used: {clean(error)}") from error
        shown = "the server in MLFLOW_TRACKING_URI" if given else f"mlflow ui --backend-store-uri {uri}"
        LOGGER.info(f"MLflow logs: {shown}")

    def experiment(self, artifacts: str) -> str:
        """The id of the experiment, which is made if there is none of its name; `artifacts` is where it keeps files."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        known = self.client.get_experiment_by_name(name)
        return known.experiment_id if known else self.client.create_experiment(name, artifacts or None)

    def earlier_run(self, folder: Path) -> str:
        """The id of the MLflow run in a run folder, which is marked as running again; empty if it is gone."""
        file = folder / RUN_FILE
        if not file.is_file():
            return ""
        run_id = str(read_yaml(file).get("run_id"))
        try:
            self.client.update_run(run_id, status="RUNNING")
        except self.package.exceptions.MlflowException as error:
            LOGGER.warning(f"{file}: a new MLflow run instead of this one: {clean(error)}")
            return ""
        return run_id

    def log_flags(self, flags: Mapping[str, Any], hyp: Mapping[str, float]) -> None:
        """Log flags under their names and hyperparameters as hyp/NAME; not those that may hold a password."""
        values = {name: value for name, value in flags.items() if name not in SECRET}
        values |= {f"hyp/{name}": value for name, value in hyp.items()}
        params = [self.package.entities.Param(name, str(value)) for name, value in values.items()]
        self.client.log_batch(self.run_id, params=params)

    def scalars(self, row: Mapping[str, float | int]) -> None:
        """Log the row of results.csv of an epoch; NaN (not measured) is left out."""
        if self.folder is not None:
            self.attempt(lambda: self.log_numbers(row, int(row["epoch"])))

    def finish(self, metrics: Mapping[str, Any]) -> None:
        """Log the metrics of best.pt as best/NAME, its file and the report, and mark the run as finished."""
        if self.folder is None:
            return
        folder, numbers = self.folder, {f"best/{name}": metrics[name] for name in FINAL}

        def log() -> None:
            self.log_numbers(numbers)
            for path in (folder / name for name in ARTIFACTS):
                if path.is_file():
                    self.client.log_artifact(self.run_id, str(path))
            self.client.set_terminated(self.run_id, "FINISHED")

        self.attempt(log)

    def stop(self) -> None:
        """Mark the run as interrupted."""
        if self.folder is not None:
            self.attempt(lambda: self.client.set_terminated(self.run_id, "KILLED"))

    def log_numbers(self, values: Mapping[str, float | int], step: int = 0) -> None:
        """Log finite numbers at a step."""
        now = int(1000 * time.time())
        metric = self.package.entities.Metric
        finite = {name.replace(":", "-"): value for name, value in values.items() if math.isfinite(value)}
        metrics = [metric(name, float(value), now, step) for name, value in finite.items() if name != "epoch"]
        self.client.log_batch(self.run_id, metrics=metrics)

    def attempt(self, log: Callable[[], None]) -> None:
        """Call `log`; if the server fails, warn and log no more: it is not worth the training."""
        try:
            log()
        except self.package.exceptions.MlflowException as error:
            LOGGER.warning(f"MLflow logs end here, training goes on: {clean(error)}")
            self.folder = None
