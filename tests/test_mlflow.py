"""MLflow logs hold what was logged, in a local database; nothing goes to a server that was not named."""

from __future__ import annotations

import importlib.util
import math
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from blobs import make_set
from tiny import write_tiny

import train
from utils.train.mlflow_log import MlflowLog

FLAGS = {"imgsz": 320, "freeze": (0,), "evolve_storage": "mysql://me:secret@host"}
METRICS = {"map50": 0.75, "map50_95": 0.5, "precision": 1.0, "recall": 0.25, "images": 3}
INSTALLED = importlib.util.find_spec("mlflow") is not None
needs_mlflow = pytest.mark.skipif(not INSTALLED, reason="no mlflow here (requirements-mlflow.txt)")


class Refused(Exception):
    """The stand-in's MlflowException."""


@dataclass
class StandIn:
    """A tracking server in memory, with the methods of MlflowClient that are used."""

    uris: list[str] = field(default_factory=list)
    experiments: dict[str, str | None] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    broken: bool = False

    def client(self, uri: str) -> StandIn:
        self.uris.append(uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name: str, artifacts: str | None) -> str:
        self.experiments[name] = artifacts
        return name

    def create_run(self, experiment: str, run_name: str) -> Any:
        if self.broken:
            raise Refused("no connection\nand more")
        run_id = f"id{len(self.runs)}"
        self.runs[run_id] = {"name": run_name, "params": {}, "metrics": [], "files": [], "status": "RUNNING"}
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id))

    def update_run(self, run_id: str, status: str) -> None:
        if run_id not in self.runs:
            raise Refused(f"no run {run_id}")
        self.runs[run_id]["status"] = status

    set_terminated = update_run

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        if self.broken:
            raise Refused("no connection\nand more")
        self.runs[run_id]["metrics"] += [(name, value, step) for name, value, _, step in metrics]
        self.runs[run_id]["params"] |= dict(params)

    def log_artifact(self, run_id: str, path: str) -> None:
        self.runs[run_id]["files"].append(Path(path).name)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in in place of the package; no variable of MLflow is set."""
    server, package = StandIn(), ModuleType("mlflow")
    entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
    parts = {
        "MlflowClient": server.client,
        "entities": entities,
        "exceptions": SimpleNamespace(MlflowException=Refused),
    }
    for name, part in parts.items():
        setattr(package, name, part)
    monkeypatch.setitem(sys.modules, "mlflow", package)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    return server


def make_folder(root: Path) -> Path:
    (root / "runs" / "exp" / "weights").mkdir(parents=True)
    (root / "runs" / "exp" / "weights" / "best.pt").write_bytes(b"weights")
    (root / "runs" / "exp" / "report.html").write_text("report")
    return root / "runs" / "exp"


def test_a_run_in_the_stand_in(server: StandIn, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    log = MlflowLog(folder, FLAGS, {"lr0": 0.01})
    log.scalars({"epoch": 0, "train/box_loss": 0.5, "metrics/mAP_0.5:0.95": math.nan})
    log.scalars({"epoch": 1, "train/box_loss": 0.25, "metrics/mAP_0.5:0.95": 0.125})
    log.finish(METRICS)
    (run,) = server.runs.values()
    assert run["params"] == {"imgsz": "320", "freeze": "(0,)", "hyp/lr0": "0.01"}  # no password
    each = [("train/box_loss", 0.5, 0), ("train/box_loss", 0.25, 1), ("metrics/mAP_0.5-0.95", 0.125, 1)]
    best = [(f"best/{name}", METRICS[name], 0) for name in ("map50", "map50_95", "precision", "recall")]
    assert run["metrics"] == each + best
    assert (run["name"], run["status"], run["files"]) == ("exp", "FINISHED", ["best.pt", "report.html"])
    assert server.uris == [f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db"]
    assert server.experiments == {"yolov5-mobilevit": (tmp_path.resolve() / "runs" / "mlartifacts").as_uri()}
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_a_resumed_run_goes_on_in_its_own(server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_folder(tmp_path)
    MlflowLog(folder, FLAGS, {}).stop()
    assert server.runs["id0"]["status"] == "KILLED"
    MlflowLog(folder, {"imgsz": 640}, {}, start=3).scalars({"epoch": 3, "x": 1.0})
    assert server.runs["id0"]["status"] == "RUNNING" and server.runs["id0"]["metrics"] == [("x", 1.0, 3)]
    assert server.runs["id0"]["params"]["imgsz"] == "320" and len(server.runs) == 1
    server.runs["id1"] = server.runs.pop("id0")  # the earlier one was deleted there
    MlflowLog(folder, FLAGS, {}, start=3)
    assert len(server.runs) == 1 and "a new MLflow run instead of this one: no run id0" in caplog.text


def test_the_server_that_a_variable_names(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken one is an error at the start, later a warning; its address, which may hold a password, is not shown."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "cells")
    caplog.set_level("INFO")
    folder = make_folder(tmp_path)
    log = MlflowLog(folder, FLAGS, {})
    assert server.uris == ["http://me:secret@127.0.0.1:1"] and server.experiments == {"cells": None}
    server.broken = True
    log.scalars({"epoch": 0, "x": 1.0})
    log.scalars({"epoch": 1, "x": 1.0})
    log.finish(METRICS)
    assert caplog.text.count("MLflow logs end here, training goes on: no connection") == 1
    with pytest.raises(ValueError, match=r"^--logger mlflow: the server in MLFLOW.*: no connection and more$"):
        MlflowLog(folder, FLAGS, {})
    assert "secret" not in caplog.text


def test_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is imported or written."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    log = MlflowLog(None, FLAGS, {})
    log.scalars({"epoch": 0, "x": 1.0})
    log.finish(METRICS)
    log.stop()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ImportError, match=r"mlflow is missing: pip install -r requirements-mlflow\.txt"):
        MlflowLog(tmp_path, FLAGS, {})
    with pytest.raises(ValueError, match="--logger mlflow --evolve"):
        train.TrainConfig(logger="mlflow", evolve=2)


def small_run(folder: Path, **changes: Any) -> train.TrainConfig:
    data, weights = make_set(folder / "set", count=2), write_tiny(folder)
    place: dict[str, Any] = {"project": str(folder / "runs"), "data": str(data), "weights": str(weights)}
    size: dict[str, Any] = {"imgsz": 64, "batch_size": 2, "workers": 0, "device": "cpu", "noplots": True}
    return train.TrainConfig(logger="mlflow", **place, **size, **changes)


def test_training_logs_every_epoch(server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted after the first of two epochs, and resumed."""
    save, saved = train.save, []

    def interrupted(*values: Any) -> None:
        save(*values)
        saved.append(values)
        if len(saved) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "save", interrupted)
    cfg = small_run(tmp_path, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train.main(cfg)
    assert server.runs["id0"]["status"] == "KILLED"
    metrics = train.main(train.TrainConfig(resume=str(tmp_path / "runs" / "exp"), device="cpu", workers=0))
    (run,) = server.runs.values()
    assert metrics is not None and run["status"] == "FINISHED" and run["files"] == ["best.pt"]
    assert [step for name, _, step in run["metrics"] if name == "train/box_loss"] == [0, 1]
    assert ("best/map50", metrics.map50, 0) in run["metrics"] and run["params"]["imgsz"] == "64"


@needs_mlflow
def test_with_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything comes back from the local database; not one connection is made."""
    import mlflow

    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    folder = make_folder(tmp_path)
    log = MlflowLog(folder, FLAGS, {"lr0": 0.01})
    log.scalars({"epoch": 0, "train/box_loss": 0.5, "metrics/mAP_0.5:0.95": math.nan})
    log.stop()
    log = MlflowLog(folder, FLAGS, {"lr0": 0.01}, start=1)
    log.scalars({"epoch": 1, "train/box_loss": 0.25, "metrics/mAP_0.5:0.95": 0.125})
    log.finish(METRICS)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path.resolve()}/runs/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("yolov5-mobilevit").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "exp"
    assert run.data.params == {"imgsz": "320", "freeze": "(0,)", "hyp/lr0": "0.01"}
    history = client.get_metric_history(run.info.run_id, "train/box_loss")
    assert [(m.step, m.value) for m in history] == [(0, 0.5), (1, 0.25)]
    assert run.data.metrics["metrics/mAP_0.5-0.95"] == 0.125 and run.data.metrics["best/map50"] == 0.75
    stored = sorted(path.name for path in (tmp_path / "runs" / "mlartifacts").rglob("*") if path.is_file())
    assert stored == ["best.pt", "report.html"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]  # nothing in the working folder
