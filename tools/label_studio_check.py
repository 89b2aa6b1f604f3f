"""Round trip through a real Label Studio: `python tools/label_studio_check.py venv/bin/label-studio`.

It starts the server on this machine with an empty database, imports tasks written as by `detect.py --annotate
labelstudio`, loads every image through it, submits each prediction as a person would (skipping one, moving a box),
exports in every form that `import_labels.py` reads, and compares the boxes. `pip install label-studio` goes into an
environment of its own.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class CheckConfig(Config):
    """Compare boxes before and after a real Label Studio.

    Example: ../label-studio/bin/label-studio
    """

    program: str = argument("the program label-studio, in its own environment")
    port: int = flag(8093, "port of the server on this machine", bounds=AT_LEAST_1, group="server")
    wait: int = flag(600, "seconds to wait for its start", bounds=AT_LEAST_1)


if __name__ == "__main__":
    check_cli(CheckConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import json
import os
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

import numpy as np

from tools.import_labels import ImportConfig
from tools.import_labels import main as import_labels
from utils.annotate.proposals import PreAnnotations
from utils.boxes import Boxes, xywhn2xyxy
from utils.data.data_yaml import read_data_yaml
from utils.images import imwrite
from utils.runs import OutputFiles

NAMES = {0: "cat", 1: 'Bär & "dog" <a>', 2: "two words"}
STEMS = ("plain", "a b", "größe", "quo'te", "x&y;z", "comma, 50%25", "skipped")
TOKEN = "0123456789abcdef0123456789abcdef01234567"  # of an account in a database that is deleted at the end
FORMS = ("JSON", "JSON_MIN", "COCO", "VOC", "YOLO")


class Server:
    """A running Label Studio; `call` sends a request to its API."""

    def __init__(self, cfg: CheckConfig, folder: Path, root: Path):
        self.url = f"http://127.0.0.1:{cfg.port}"
        settings = {
            "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
            "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
            "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(root),
            "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
            "COLLECT_ANALYTICS": "false",
        }
        words = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(cfg.port)]
        account = ["--username", "check@localhost.local", "--password", "not-a-secret-1", "--user-token", TOKEN]
        with (folder / "server.log").open("wb") as log:
            self.process = subprocess.Popen(
                [cfg.program, *words, *account], env=os.environ | settings, stdout=log, stderr=subprocess.STDOUT
            )
        self.log = folder / "server.log"

    def started(self, seconds: float) -> None:
        """Wait until it answers.

        Raises:
            ValueError: it ended, or did not start in time; with the end of its log.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.call("/api/version")
                return
            except OSError:
                time.sleep(2)
        raise ValueError(f"Label Studio did not start: {' '.join(self.log.read_text().split())[-300:]}")

    def call(self, path: str, content: Any = None) -> bytes:
        """The answer to a GET, or with content to a POST of JSON.

        Raises:
            ValueError: it refused; OSError: it does not answer.
        """
        data = None if content is None else json.dumps(content).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise ValueError(f"{path}: {error.code} {error.read()[:300]!r}") from error


def main(cfg: CheckConfig) -> float:
    """Print the largest difference of a box in each form; returns the largest of all, in pixels.

    Raises:
        ValueError: a box, a class or an image came back other than it was submitted.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="label-studio-check-") as name:
        root = Path(name)
        (root / "server").mkdir()
        found = images(root / "photos", rng)
        (root / "run").mkdir()
        with PreAnnotations("labelstudio", OutputFiles(root / "run"), NAMES) as annotations:
            for path, (image, boxes) in found.items():
                annotations.add(path, image, boxes, path.stem, is_frame=False)
        server = Server(cfg, root / "server", root)
        try:
            server.started(cfg.wait)
            project = imported(server, root)
            wanted = submitted(server, project, root, {path: boxes for path, (_, boxes) in found.items()})
            exports = {form: exported(server, project, form, root) for form in FORMS}
        finally:
            server.process.terminate()
            server.process.wait(30)
        return max(compare(form, path, root, wanted) for form, path in exports.items())


def images(folder: Path, rng: np.random.Generator) -> dict[Path, tuple[np.ndarray, Boxes]]:
    """Images with random boxes, the third without any."""
    folder.mkdir()
    found = {}
    for k, stem in enumerate(STEMS):
        h, w = rng.integers(40, 400, 2).tolist()
        image, n = rng.integers(0, 255, (h, w, 3), dtype=np.uint8), 0 if k == 2 else 4
        low = rng.uniform(0, 0.6, (n, 2))
        xyxy = np.concatenate([low, low + rng.uniform(0.05, 0.4, (n, 2))], axis=1) * [w, h, w, h]
        found[folder / f"{stem}.png"] = image, Boxes(xyxy, np.arange(n) % 3, np.linspace(0.9, 0.4, n))
        imwrite(folder / f"{stem}.png", image)
    return found


def imported(server: Server, root: Path) -> int:
    """The id of a project with our labeling interface, tasks and images."""
    folder = root / "run" / "annotations"
    about = {"title": "check", "label_config": (folder / "interface.xml").read_text(encoding="utf-8")}
    project = int(json.loads(server.call("/api/projects", about))["id"])
    storage = {"project": project, "path": str(root / "photos"), "use_blob_urls": True, "title": "photos"}
    server.call("/api/storages/localfiles", storage)
    tasks = json.loads((folder / "tasks.json").read_text())
    answer = json.loads(server.call(f"/api/projects/{project}/import?return_task_ids=true", tasks))
    print(f"imported: {answer['task_count']} tasks, {answer['prediction_count']} predictions")
    if (answer["task_count"], answer["prediction_count"]) != (len(STEMS), len(STEMS)):
        raise ValueError(f"expected {len(STEMS)} tasks and predictions")
    return project


def submitted(server: Server, project: int, root: Path, found: dict[Path, Boxes]) -> dict[str, Boxes]:
    """Submit each task's prediction as its annotation; returns the boxes by the name of the image.

    Raises:
        ValueError: an image that the server sends is not the file.
    """
    wanted = {}
    for task in json.loads(server.call(f"/api/tasks?project={project}&fields=all&page_size=100"))["tasks"]:
        full = json.loads(server.call(f"/api/tasks/{task['id']}"))
        sent = server.call(full["data"]["image"])
        path = next(path for path in found if path.read_bytes() == sent)
        results = full["predictions"][0]["result"]
        for result in results:
            result.pop("score", None)  # as the editor does
        boxes = found[path]
        if path.stem == "plain":
            results[0]["value"]["x"] += 1
            w = results[0]["original_width"]
            xyxy = boxes.xyxy + np.array([[w / 100, 0, w / 100, 0]]) * (np.arange(len(boxes)) == 0)[:, None]
            boxes = boxes.at(xyxy)
        skipped = path.stem == "skipped"
        server.call(f"/api/tasks/{task['id']}/annotations/", {"result": results, "was_cancelled": skipped})
        if not skipped:
            wanted[path.name] = boxes
    if len(wanted) != len(found) - 1:
        raise ValueError(f"{len(wanted)} images came through the server, expected {len(found) - 1}")
    print(f"{len(found)} images loaded through the server, each equal to its file")
    return wanted


def exported(server: Server, project: int, form: str, root: Path) -> Path:
    """The file that an export in this form gives."""
    data = server.call(f"/api/projects/{project}/export?exportType={form}")
    path = root / f"export-{form}{'.zip' if data.startswith(b'PK') else '.json'}"
    path.write_bytes(data)
    return path


def compare(form: str, export: Path, root: Path, wanted: dict[str, Boxes]) -> float:
    """The largest difference of a corner, in pixels, once the export is a data set.

    Raises:
        ValueError: other images, classes or numbers of boxes.
    """
    out = root / f"set-{form}"
    import_labels(ImportConfig(str(export), str(root / "photos"), out=str(out)))
    data, largest, names = read_data_yaml(out / "data.yaml"), 0.0, list[str]()
    for split in ("train", "val"):
        scan = data.scan(split)
        for i, path in enumerate(scan.paths.tolist()):
            own, rows = wanted[Path(path).name], slice(scan.offsets[i], scan.offsets[i + 1])
            names.append(Path(path).name)
            found = [data.names[k] for k in scan.label[rows].tolist()]
            if found != [NAMES[k] for k in own.label.tolist()]:
                raise ValueError(f"{form}: {path}: {found}")
            xyxy = xywhn2xyxy(scan.xywhn[rows].astype(np.float64), scan.size(i))
            largest = max(largest, float(np.abs(xyxy - own.xyxy).max(initial=0)))
    missing = [name for name in wanted if name not in names and (form != "VOC" or len(wanted[name]))]
    if missing or len(names) != len(set(names)):  # as VOC it leaves out images without boxes
        raise ValueError(f"{form}: {sorted(names)}, expected {sorted(wanted)}")
    print(f"{form}: {len(names)} images, largest difference {largest:.2g} pixels")
    return largest


if __name__ == "__main__":
    run_script(main, CheckConfig)
