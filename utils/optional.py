"""Optional packages: imported where they are used; a missing one is an error that says how to install it."""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType


def import_optional(module: str, requirements: str = "requirements-export.txt") -> ModuleType:
    """The module, imported.

    Raises:
        ImportError: it is not installed; the message has the commands that install it, in a clone and as a package.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # the package is installed and lacks something itself
        name = module.split(".")[0].replace("_", "-")
        extra = requirements.removeprefix("requirements-").removesuffix(".txt")
        commands = f'pip install -r {requirements}, or pip install "yolov5-mobilevit[{extra}]"'
        raise ImportError(f"the package {name} is missing: {commands}") from error


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry: the converter and nncf send usage data to Intel unless that package is absent."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it now fails
    return import_optional("openvino")


def import_mlflow() -> ModuleType:
    """MLflow without its reports of use to its makers, which are off unless MLFLOW_DISABLE_TELEMETRY is set."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when the package is imported
    return import_optional("mlflow", "requirements-mlflow.txt")
