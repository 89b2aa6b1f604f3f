"""The flags of train.py; without imports that take seconds, so that --help and mistakes are answered at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from utils.config import AT_LEAST_0, AT_LEAST_1, Bounds, Config, flag

BATCH, CLIP = Bounds(low=1, also=(-1,)), Bounds(low=0, also=(-1,))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Train a detector on a data set in YOLO format.

    Example: --data my.yaml --weights yolov5n.pt --imgsz 320 --epochs 50
    """

    script: ClassVar[str] = "train"

    data: str = flag(
        "",
        "data YAML, or the folder it is in; empty: the built-in set, drawn on first use, or that of --resume",
        group="data",
    )
    imgsz: int = flag(640, "image size for training and validation, pixels", "--img", "--img-size", bounds=AT_LEAST_1)
    single_cls: bool = flag(False, "treat all classes as one")
    fraction: float = flag(1.0, "fraction of the training images to use, 0..1", bounds=Bounds(above=0, high=1))
    image_weights: bool = flag(False, "sample images more often if their classes have a low mAP")
    rect: bool = flag(False, "rectangular batches; off for models whose grid is coarser than their stride")
    tile_train: int = flag(
        0,
        "train on random parts of this many pixels of images that are larger, and validate with --tile; 0: off",
        bounds=Bounds(low=32, also=(0,)),
    )
    cache: str = flag(
        "", "cache decoded images: ram, or disk (a file beside the labels)", bare="ram", choices=("", "ram", "disk")
    )
    cfg: str = flag("", "model YAML; empty: that of --weights, else yolov5-mobilevit.yaml", group="model")
    weights: str = flag("", "checkpoint to start from, this project's or YOLOv5's; empty: train from scratch")
    backbone_weights: str = flag("", "ImageNet weights of a MobileViT: a CVNets or timm file; timm:NAME downloads one")
    partial: bool = flag(False, "with --backbone-weights: load the tensors that fit, skip the others")
    freeze: tuple[int, ...] = flag((0,), "layers to freeze: the number of first layers, or a list of layers", shown="")
    noautoanchor: bool = flag(False, "keep the model's anchors even if they do not fit the data")
    epochs: int | None = flag(None, "number of epochs", bounds=AT_LEAST_1, group="training", shown="100")
    batch_size: int = flag(16, "images per batch over all processes; -1: as many as fit", "--batch", bounds=BATCH)
    time: float = flag(0.0, "hours after which training ends", bounds=AT_LEAST_0, shown="no limit")
    patience: int = flag(100, "early stopping: epochs without improvement; 0: never", bounds=AT_LEAST_0)
    resume: str = flag("", "resume an interrupted run: its last.pt; without a path the newest", bare="newest")
    optimizer: str = flag(
        "", "optimizer", choices=("", "SGD", "Adam", "AdamW"), shown="fitted to the data; with --hyp SGD"
    )
    hyp: str = flag("", "hyperparameter YAML, such as hyp.scratch-low.yaml; empty: fitted to the data (docs/recipe.md)")
    cos_lr: bool = flag(False, "cosine learning rate schedule instead of linear")
    label_smoothing: float = flag(0.0, "label smoothing, 0..1", bounds=Bounds(low=0, below=1))
    clip_grad: float = flag(-1.0, "gradient norm limit; 0: none", bounds=CLIP, shown="fitted; with --hyp 10")
    seed: int = flag(0, "random seed", bounds=AT_LEAST_0)
    noval: bool = flag(False, "validate only the final epoch")
    close_mosaic: int = flag(
        -1,
        "disable mosaic for the last N epochs",
        bounds=Bounds(low=-1),
        group="augmentation (more: --hyp)",
        shown="fitted; with --hyp 0",
    )
    multi_scale: bool = flag(False, "vary the image size of each batch by +/- 50 %%, in steps of the grid")
    quad: bool = flag(False, "combine every four images into one of twice the side")
    evolve: int = flag(
        0,
        "search hyperparameters in this many trials; without a number 300",
        bare=300,
        bounds=AT_LEAST_0,
        group="search",
        shown="no search",
    )
    evolve_space: str = flag("space.yaml", "YAML of the ranges that --evolve searches")
    evolve_storage: str = flag("", "database URL of the search, for several workers; empty: a file in the run folder")
    project: str = flag("runs/train", "folder of the runs", group="output")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")
    exist_ok: bool = flag(False, "write into an existing run folder")
    nosave: bool = flag(False, "save only the final checkpoint")
    save_period: int = flag(-1, "save a checkpoint every N epochs", shown="never")
    noplots: bool = flag(False, "write no plots and no report")
    logger: str = flag(
        "", "also log to MLflow: locally, or to the server in MLFLOW_TRACKING_URI", choices=("", "mlflow"), shown="none"
    )
    verbose: bool = flag(False, "print every tensor that was not transferred, and the whole recipe")
    device: str = flag(
        "", "cpu, mps, a GPU number, or 0,1 under torchrun; empty: the first GPU, else the CPU", group="hardware"
    )
    workers: int = flag(2, "data loader processes per training process, at most one per CPU", bounds=AT_LEAST_0)
    amp: str = flag(
        "auto",
        "mixed precision; auto (the default) is fp16 on CUDA, else off",
        choices=("auto", "fp16", "bf16", "off"),
        shown="",
    )
    sync_bn: bool = flag(False, "batch norm over the batches of all processes (SyncBatchNorm)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rect and self.image_weights:
            raise ValueError("--rect --image-weights: sampled images cannot be batched by shape, expected one of them")
        if self.rect and self.tile_train:
            raise ValueError(f"--rect --tile-train {self.tile_train}: tiles are square, expected one of them")
        if self.logger and self.evolve:
            raise ValueError(f"--logger {self.logger} --evolve: a search's trials are not logged, expected one of them")

    @property
    def total_epochs(self) -> int:
        """The number of epochs."""
        return 100 if self.epochs is None else self.epochs
