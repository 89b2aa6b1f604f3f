"""Checkpoints for release: `python tools/convert.py best.pt --format safetensors`.

Keeps the averaged weights, the model's mapping, names and metrics; leaves out optimizer, schedule and the paths of the
run. Takes YOLOv5's checkpoints as well.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.weights.checkpoint import build_model, load_checkpoint, model_state, save_checkpoint, save_safetensors
from utils.config import argument, flag, run_script

LOGGER = logging.getLogger(__name__)
KEPT = ("epoch", "fitness", "metrics", "hyp")  # of what a training checkpoint holds besides the model


@dataclass(frozen=True)
class ConvertConfig:
    """Strip a checkpoint to what detection needs, as .pt or .safetensors."""

    weights: str = argument("checkpoint of this project or of YOLOv5")
    format: str = flag("pt", "of the file to write", choices=("pt", "safetensors"))
    half: bool = flag(False, "write the weights in half precision: half the size, about the same boxes")
    out: str = flag("", "file to write; empty: beside the checkpoint, NAME-stripped.pt or NAME.safetensors")


def main(cfg: ConvertConfig) -> Path:
    """Write the stripped checkpoint and return its path.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint; a name that does not go with the format.
    """
    source = Path(cfg.weights)
    checkpoint = load_checkpoint(source)
    default = f"{source.stem}-stripped.pt" if cfg.format == "pt" else f"{source.stem}.safetensors"
    out = Path(cfg.out) if cfg.out else source.with_name(default)
    if out.suffix != f".{cfg.format}":
        raise ValueError(f"--out {out}: expected a name that ends in .{cfg.format}")
    model = build_model(checkpoint)
    stripped = model_state(model) | {key: checkpoint[key] for key in KEPT if key in checkpoint}
    if cfg.half:
        parameters = {name for name, _ in model.named_parameters()}  # statistics and anchors stay exact
        stripped["model"] = {k: t.half() if k in parameters else t for k, t in stripped["model"].items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    (save_checkpoint if cfg.format == "pt" else save_safetensors)(out, stripped)
    count = sum(t.numel() for t in stripped["model"].values() if t.dtype != torch.int64)
    sizes = [f"{path.stat().st_size / 1e6:.2f} MB" for path in (source, out)]
    LOGGER.info(f"{source} ({sizes[0]}) -> {out} ({sizes[1]}), {count:,} numbers, {len(model.names)} classes")
    return out


if __name__ == "__main__":
    run_script(main, ConvertConfig)
