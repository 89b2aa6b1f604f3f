"""Convert a checkpoint for release: `python tools/convert.py best.pt --format safetensors`.

The new file has the averaged weights, the model's rows, names and metrics, without optimizer, schedule and paths of the
run. YOLOv5's checkpoints are converted, too.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class ConvertConfig(Config):
    """Convert a checkpoint for release: only what detection needs, as .pt or .safetensors.

    Example: runs/train/exp/weights/best.pt --format safetensors
    """

    weights: str = argument("checkpoint of this project or of YOLOv5")
    format: str = flag("pt", "format of the new file", choices=("pt", "safetensors"))
    half: bool = flag(False, "store weights in half precision: half the size, nearly the same detections")
    out: str = flag("", "new file; empty: beside the checkpoint, NAME-stripped.pt or NAME.safetensors")


if __name__ == "__main__":
    check_cli(ConvertConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
from dataclasses import replace

import torch

from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint, save_safetensors

LOGGER = logging.getLogger(__name__)


def main(cfg: ConvertConfig) -> Path:
    """Write the new checkpoint; returns its path.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint; an --out that does not end in the format.
    """
    source = Path(cfg.weights)
    checkpoint = load_checkpoint(source)
    default = f"{source.stem}-stripped.pt" if cfg.format == "pt" else f"{source.stem}.safetensors"
    out = Path(cfg.out) if cfg.out else source.with_name(default)
    if out.suffix != f".{cfg.format}":
        raise ValueError(f"--out {out}: expected a name that ends in .{cfg.format}")
    model = build_model(checkpoint)
    stripped = replace(
        Checkpoint.of(model),
        epoch=checkpoint.epoch,
        fitness=checkpoint.fitness,
        metrics=checkpoint.metrics,
        hyp=checkpoint.hyp,
        thresholds=checkpoint.thresholds,
    )
    if cfg.half:
        parameters = {name for name, _ in model.named_parameters()}  # statistics and anchors stay in single precision
        halved = {k: t.half() if k in parameters else t for k, t in stripped.model.items()}
        stripped = replace(stripped, model=halved)
    out.parent.mkdir(parents=True, exist_ok=True)
    (save_checkpoint if cfg.format == "pt" else save_safetensors)(out, stripped)
    count = sum(t.numel() for t in stripped.model.values() if t.dtype != torch.int64)
    sizes = [f"{path.stat().st_size / 1e6:.2f} MB" for path in (source, out)]
    LOGGER.info(f"{source} ({sizes[0]}) -> {out} ({sizes[1]}), {count:,} numbers, {len(model.names)} classes")
    return out


if __name__ == "__main__":
    run_script(main, ConvertConfig)
