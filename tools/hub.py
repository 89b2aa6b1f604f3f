"""Share a checkpoint on the Hugging Face Hub: `python tools/hub.py push me/cells --weights best.pt`.

Only `push` sends anything, and only `pull` downloads. A pushed file has the averaged weights, rows, names and metrics,
no optimizer and no paths of your machine. Needs huggingface_hub, its login (`hf auth login` or HF_TOKEN) for a push.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class HubConfig(Config):
    """Share a checkpoint on the Hugging Face Hub: push it with a model card, or pull and check one.

    Example: pull me/cells --out cells.safetensors
    """

    action: str = argument("push or pull")
    repo: str = argument("repository on the hub: OWNER/NAME")
    weights: str = flag("", "push: the checkpoint")
    license: str = flag("unknown", "push: license of the weights, in the hub's spelling, such as apache-2.0")
    data_name: str = flag("", "push: name of the data set, for the card; empty: that of the data YAML of the run")
    public: bool = flag(False, "push: a new repository is public; without this flag it is private")
    revision: str = flag("main", "pull: branch, tag or commit")
    out: str = flag("", "pull: the file to write; empty: NAME.safetensors")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action not in ("push", "pull"):
            raise ValueError(f"{self.action}: expected push or pull")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repo):
            raise ValueError(f"{self.repo}: not a repository on the hub, expected OWNER/NAME")
        if self.action == "push" and not self.weights:
            raise ValueError("push: expected --weights with the checkpoint to upload")
        if self.out and Path(self.out).suffix != ".safetensors":
            raise ValueError(f"--out {self.out}: expected a name that ends in .safetensors")


if __name__ == "__main__":
    check_cli(HubConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import os
import tempfile
from typing import Any

import yaml

from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint
from tools.convert import ConvertConfig
from tools.convert import main as convert
from utils.files import write_atomic
from utils.optional import import_optional

LOGGER = logging.getLogger(__name__)
FILE = "model.safetensors"  # in a repository
METRICS = {"map50_95": "mAP50-95", "map50": "mAP50", "precision": "precision", "recall": "recall"}
PROJECT = "yolov5-mobilevit"


def push(cfg: HubConfig) -> str:
    """Upload the weights as safetensors, and the card as README.md, in one commit; returns the repository's address.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint. ConnectionError: the hub refuses or does not answer.
    """
    hub = import_optional("huggingface_hub", "requirements-hub.txt")
    checkpoint = load_checkpoint(cfg.weights)
    card = model_card(checkpoint, cfg.repo, cfg.license, cfg.data_name)
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name=PROJECT)
    with tempfile.TemporaryDirectory() as folder:
        file = convert(ConvertConfig(cfg.weights, format="safetensors", out=str(Path(folder, FILE))))
        added = [hub.CommitOperationAdd(FILE, str(file)), hub.CommitOperationAdd("README.md", card.encode())]
        try:
            url = str(api.create_repo(cfg.repo, private=not cfg.public, exist_ok=True))
            api.create_commit(cfg.repo, added, commit_message="Upload a detector")
        except (hub.errors.HTTPError, OSError) as error:
            raise ConnectionError(f"{cfg.repo}: not uploaded: {one_line(error)}") from error
    LOGGER.info(f"{cfg.weights} -> {url}; license: {cfg.license}")
    return url


def pull(cfg: HubConfig) -> Path:
    """Download the weights of a repository and write them if they are a checkpoint; returns the path.

    Only safetensors are read, which cannot hold code: nothing is unpickled.

    Raises:
        FileExistsError: the file exists. ConnectionError: no such repository or file, or no answer.
        ValueError: it is not a checkpoint of this project.
    """
    hub = import_optional("huggingface_hub", "requirements-hub.txt")
    out = Path(cfg.out or f"{cfg.repo.rpartition('/')[2]}.safetensors")
    if out.exists():
        raise FileExistsError(f"{out}: exists, expected another --out")
    api = hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT"), library_name=PROJECT)
    with tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(api.hf_hub_download(cfg.repo, FILE, revision=cfg.revision, local_dir=folder))
        except (hub.errors.HTTPError, OSError) as error:
            raise ConnectionError(f"{cfg.repo}: {FILE} not downloaded: {one_line(error)}") from error
        try:
            checkpoint = load_checkpoint(file)
            build_model(checkpoint)
        except ValueError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise ValueError(f"{cfg.repo}: its {FILE} is not used: {reason}") from error
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, file.read_bytes())
    LOGGER.info(f"{cfg.repo} -> {out}: {len(checkpoint.names)} classes: {', '.join(checkpoint.names.values())}")
    return out


def one_line(error: BaseException) -> str:
    """What an error says, at most 250 characters, without line breaks."""
    return " ".join(str(error).split())[:250]


def model_card(checkpoint: Checkpoint, repo: str, license: str, data_name: str = "") -> str:
    """The README.md of a repository: YAML for the hub, then classes, metrics, data, license, and how to use it.

    Args:
        data_name: of the data set; empty: from the path of the run's data YAML, of which no more is shown.
    """
    name, data = repo.rpartition("/")[2], data_name or data_of(checkpoint)
    imgsz = checkpoint.opt.get("imgsz", 640)
    count = sum(tensor.numel() for key, tensor in checkpoint.weights.items() if "num_batches" not in key)
    parts = [
        f"---\n{yaml.safe_dump(front_matter(checkpoint, name, license, data), sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"An object detector of {len(checkpoint.names)} classes, {count:,} numbers, in the format of {PROJECT}.",
        f"## Classes\n\n{class_table(checkpoint)}",
        f"## Metrics\n\n{metrics_text(checkpoint, data)}",
        f"## Data\n\nTrained on {text(data) or 'data that its author did not name'}, images of {imgsz} pixels.",
        f"## License\n\nOf these weights: {text(license)}. The code of {PROJECT} is under Apache-2.0.",
        USAGE.format(repo=repo, name=name, imgsz=imgsz).strip(),
    ]
    return "\n\n".join(parts) + "\n"


USAGE = """
## How to use

In a clone of yolov5-mobilevit:

```shell
python tools/hub.py pull {repo}
python detect.py --weights {name}.safetensors --source images/ --imgsz {imgsz}
```

```python
from hubconf import load

results = load("{name}.safetensors")("image.jpg", size={imgsz})
print(results.pandas().xyxy[0])
```

The file holds numbers and text only; loading it runs no code.
"""


def front_matter(checkpoint: Checkpoint, name: str, license: str, data: str) -> dict[str, Any]:
    """The part of the card that the hub reads: license, task, tags, and the metrics as a model index."""
    head: dict[str, Any] = {
        "license": license,
        "library_name": PROJECT,
        "pipeline_tag": "object-detection",
        "tags": ["object-detection", "yolov5", "mobilevit"],
    }
    numbers = {key: checkpoint.metrics[key] for key in METRICS if key in checkpoint.metrics}
    if numbers and data:
        metrics = [{"type": key, "name": METRICS[key], "value": round(value, 4)} for key, value in numbers.items()]
        task, dataset = {"type": "object-detection"}, {"type": data, "name": data}
        head["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
    return head


def class_table(checkpoint: Checkpoint) -> str:
    """Index, name and, where they were measured, the class's metrics."""
    per_class = checkpoint.metrics.get("per_class", {})
    rows = ["| index | class | mAP50-95 | mAP50 |", "|---|---|---|---|"]
    for index, name in checkpoint.names.items():
        own = per_class.get(name, {})
        shown = [f"{own[key]:.3f}" if key in own else "" for key in ("map50_95", "map50")]
        rows.append(f"| {index} | {text(name)} | {shown[0]} | {shown[1]} |")
    return "\n".join(rows)


def metrics_text(checkpoint: Checkpoint, data: str) -> str:
    """One line: the metrics of the best epoch and on how many images of what; or that there are none."""
    metrics = checkpoint.metrics
    numbers = [f"{label} {metrics[key]:.3f}" for key, label in METRICS.items() if key in metrics]
    if not numbers:
        return "The checkpoint holds none."
    where = f"the validation images of {text(data)}" if data else "its validation images"
    count = f" ({metrics['images']} images)" if "images" in metrics else ""
    return f"{', '.join(numbers)} on {where}{count}, which also chose the epoch."


def data_of(checkpoint: Checkpoint) -> str:
    """The name of the data set a run was trained on: of its YAML, or of the folder if that is called data.yaml."""
    path = Path(str(checkpoint.opt.get("data", "")).replace("\\", "/"))
    return path.parent.name if path.stem in ("data", "dataset") else path.stem


def text(name: str) -> str:
    """A name as plain text in a Markdown table."""
    return re.sub(r"([\\`*_|\[\]<>&#~])", r"\\\1", " ".join(name.split()))


def main(cfg: HubConfig) -> str | Path:
    """Push or pull, see there."""
    return push(cfg) if cfg.action == "push" else pull(cfg)


if __name__ == "__main__":
    run_script(main, HubConfig)
