"""What to do next: the commands that follow a training run, a validation and an export, with their paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.commands import command, quoted, relative
from utils.files import REPO
from utils.thresholds import AUTO, Thresholds

Steps = list[tuple[str, str]]  # purpose, and a command or a file to look at
IMAGES = "images/"  # where the images to detect in are not known
PORT = 8000  # of python -m http.server


def after_training(folder: Path, data: str, images: str = IMAGES, finished: bool = True, tile: int = 0) -> Steps:
    """Commands for the checkpoints that a run folder has.

    Args:
        data: the data YAML of the run. images: to detect in. finished: False: the run can be resumed.
        tile: the side of the tiles that it was trained on, pixels; 0: whole images.
    """
    best, last = folder / "weights" / "best.pt", folder / "weights" / "last.pt"
    steps: Steps = []
    if (folder / "errors.html").is_file():
        steps.append(("see where it fails, and which labels to check", relative(folder / "errors.html")))
    if best.is_file():
        weights = ("--weights", relative(best))
        steps += [
            ("detect in images and videos", command("detect", *weights, "--source", images, *tile_words(tile))),
            ("measure it on a data set", command("val", *weights, "--data", data, *tile_words(tile))),
            ("export it for other runtimes", command("export", *weights, "--include", "onnx", "openvino")),
            ("export it as a web page", command("export", *weights, "--include", "web")),
            ("train it on other data", command("train", *weights, "--data", "my.yaml")),
        ]
    if last.is_file() and not finished:
        steps.append(("resume this run", command("train", "--resume", relative(last))))
    return steps


def tile_words(tile: int) -> tuple[str, ...]:
    """The flag --tile with its value; nothing for 0."""
    return ("--tile", str(tile)) if tile else ()


def after_validation(
    folder: Path,
    weights: str,
    thresholds: Thresholds | None,
    images: str = IMAGES,
    stored: bool = False,
    tile: int = 0,
) -> Steps:
    """The files of a validation that are worth a look, and the confidence threshold to detect in `images` with.

    Args:
        stored: the weights have the threshold in them. tile: the side of the tiles of the validation; 0: none.
    """
    files = {
        "errors.html": "where it fails: the worst images, what to correct first, suspected label errors",
        "val_batch0_pred.jpg": "what it finds, beside val_batch0_labels.jpg",
        "reliability.png": "how often detections of each confidence are right",
        "confusion_matrix.png": "which classes it confuses",
        "PR_curve.png": "precision over recall of each class",
    }
    steps = [(about, relative(folder / name)) for name, about in files.items() if (folder / name).is_file()]
    if thresholds is not None:
        number = AUTO if stored else f"{thresholds.confidence:g}"
        words = ("--weights", weights, "--source", images, "--conf-thres", number, *tile_words(tile))
        steps.append((f"detect at this threshold ({thresholds.rule})", command("detect", *words)))
    return steps


def threshold(confidence: float) -> str:
    """A confidence threshold with two digits that count: '0.43', '0.0021'."""
    return f"{confidence:.2f}" if confidence >= 0.1 else f"{confidence:.2g}"


def after_export(paths: Mapping[str, Path], data: str = "") -> Steps:
    """How to run the files that were written, by format."""
    steps: Steps = []
    runnable = [name for name in sorted(paths, key=lambda name: name != "onnx") if name not in ("web", "coreml")]
    if runnable:  # the same command runs all of them
        weights = ("--weights", relative(paths[runnable[0]]))
        steps.append(("detect with it", command("detect", *weights, "--source", IMAGES)))
        if data:
            steps.append(("measure it", command("val", *weights, "--data", data)))
    if "onnx" in paths:
        example = quoted(REPO / "examples" / "onnx_detect.py")
        steps.append(("run it without PyTorch", f"python {example} {quoted(paths['onnx'])} {IMAGES}"))
    if "coreml" in paths:
        steps.append(("open it in Xcode on a Mac", relative(paths["coreml"])))
    return steps + (web_steps(paths["web"]) if "web" in paths else [])


def web_steps(folder: Path) -> Steps:
    """How to open an exported page on this computer, and with its camera on a phone in the same network."""
    return [
        ("serve the page", f"python -m http.server -d {quoted(folder)} {PORT}"),
        ("open it here", f"http://localhost:{PORT}"),
        ("with a phone's camera", command("tools.serve", relative(folder), "--https")),
    ]


def step_lines(steps: Sequence[tuple[str, str]]) -> str:
    """The steps for the log: each purpose, and below it what to type or to open, which is never wrapped or cut."""
    return "\n".join(["next:", *(f"  {purpose}:\n    {line}" for purpose, line in steps)])
