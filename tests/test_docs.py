"""Every command and every piece of Python in the README and in docs/ runs as it is written, and makes what it should.

Blocks marked `bash` run. Those marked `sh` need a camera, a pipe, a network or minutes and are only parsed, those
marked `shell` are neither. The `python` blocks of a page run one after another.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from blobs import draw, make_set
from tiny import tiny_model

import detect
import export
import hubconf
import train
import val
from models import common, yolo
from models.mobilevit import MobileViT, to_published
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tools import (
    classify,
    coco_parity,
    compare,
    convert,
    doctor,
    import_labels,
    kill_and_resume,
    proposal_study,
    rank,
    rank_study,
    serve,
    suspect_study,
    threshold_study,
)
from utils.config import parse_cli
from utils.files import REPO
from utils.images import imwrite

RUN = ("README.md", "docs/training.md", "docs/val.md", "docs/detect.md", "docs/weights.md", "docs/export.md")
RUN += ("docs/doctor.md", "docs/annotate.md", "docs/track.md")
PARSED = ("README.md", "docs/index.md", *(page for page in RUN if page != "docs/export.md"))  # its own: test_export.py
PARSED += ("docs/devices.md", "docs/rank.md")
PYTHON = ("README.md", "docs/index.md", "docs/python-api.md", "docs/weights.md")
SCRIPTS: dict[str, tuple[Callable[..., Any], type]] = {
    "train.py": (train.main, train.TrainConfig),
    "val.py": (val.main, val.ValConfig),
    "detect.py": (detect.main, detect.DetectConfig),
    "export.py": (export.main, export.ExportConfig),
    "tools/classify.py": (classify.main, classify.ClassifyConfig),
    "tools/coco_parity.py": (coco_parity.main, val.ValConfig),
    "tools/compare.py": (compare.main, compare.CompareConfig),
    "tools/serve.py": (serve.main, serve.ServeConfig),
    "tools/convert.py": (convert.main, convert.ConvertConfig),
    "tools/doctor.py": (doctor.diagnose, doctor.DoctorConfig),
    "tools/import_labels.py": (import_labels.main, import_labels.ImportConfig),
    "tools/proposal_study.py": (proposal_study.main, proposal_study.ProposalConfig),
    "tools/suspect_study.py": (suspect_study.main, suspect_study.SuspectStudyConfig),
    "tools/threshold_study.py": (threshold_study.main, threshold_study.ThresholdStudyConfig),
    "tools/rank.py": (rank.main, rank.RankConfig),
    "tools/rank_study.py": (rank_study.main, rank_study.RankStudyConfig),
    "tools/kill_and_resume.py": (kill_and_resume.main, kill_and_resume.KillConfig),
}
NAMES = ["wide", "high", "star"]
IMAGES = {".jpg", ".png"}
SIDE = 64  # of training and of exported files here
TRIALS = 2  # of a search
STUDY = (64, 128)


def read(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", read(page), re.M | re.S)


def commands(pages: tuple[str, ...], kind: str) -> list[str]:
    """Each command once, however many pages have it."""
    return list(dict.fromkeys(line for page in pages for block in blocks(page, kind) for line in block.splitlines()))


def table(page: str, column: str) -> list[str]:
    """The first column of the first table whose first heading is `column`."""
    rows = read(page).partition(f"\n| {column} |")[2].split("\n\n")[0].splitlines()[2:]
    return [row.split("|")[1].strip() for row in rows]


def split(line: str) -> list[str]:
    """The words of a Python command; a pipe before it is left out, torchrun and the package's command are as python."""
    words = shlex.split(line.rpartition(" | ")[2], comments=True)
    if words[0] == "torchrun":
        return ["python", *words[words.index("train.py") :]]
    if words[0] == "yolov5-mobilevit":
        return ["python", f"{words[1]}.py", *words[2:]]
    return words


def parse(line: str) -> tuple[str, Callable[..., Any], Any]:
    """The script of a command, the function that runs it, and its config."""
    words = split(line)
    assert words[0] == "python", line
    main, config = SCRIPTS[words[1]]
    return words[1], main, parse_cli(config, words[2:])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: weights, images, a clip, a list and a data set."""
    root = tmp_path_factory.mktemp("docs")
    model = tiny_model()  # it detects something in nearly every cell
    model.names = dict(enumerate(NAMES))
    (root / "runs" / "train" / "exp" / "weights").mkdir(parents=True)
    for name in ("best.pt", "last.pt", "yolov5n.pt", "runs/train/exp/weights/best.pt"):
        save_checkpoint(root / name, Checkpoint.of(model))
    torch.save(to_published(MobileViT("xxs").state_dict(), "cvnets"), root / "mobilevit_xxs.pt")
    make_set(root / "set", count=2)
    (root / "my.yaml").write_text(f"path: set\ntrain: images\nval: images\ntest: images\nnames: [{', '.join(NAMES)}]\n")
    image = draw((96, 128), [[20, 20, 60, 40]])
    (root / "images").mkdir()
    for name in ("image.jpg", "images/a.jpg", "images/b.jpg"):
        imwrite(root / name, image)
    imwrite(root / "large.jpg", draw((700, 900), [[20, 20, 60, 40]]))
    (root / "list.txt").write_text("images/a.jpg\nimages/b.jpg\n")
    writer = cv2.VideoWriter(str(root / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (128, 96))
    for _ in range(4):
        writer.write(np.ascontiguousarray(image))
    writer.release()
    return root


def smaller(cfg: Any, out: Path) -> Any:
    """The same command in seconds, with its results in `out`; the built-in data set gives way to the fixture's."""
    if isinstance(cfg, train.TrainConfig):
        changes = {"imgsz": SIDE, "epochs": 1, "workers": 0, "noplots": True, "evolve": min(cfg.evolve, TRIALS)}
    elif isinstance(cfg, val.ValConfig):
        changes = {"imgsz": tuple(min(side, 192) for side in cfg.imgsz), "workers": 0}
    elif isinstance(cfg, detect.DetectConfig):
        return replace(cfg, imgsz=tuple(min(side, 192) for side in cfg.imgsz), project=str(out))
    elif isinstance(cfg, export.ExportConfig):
        return replace(cfg, imgsz=(SIDE,), threads=1, out=str(out))
    elif isinstance(cfg, doctor.DoctorConfig):
        written = {name: str(out / path) for name in ("html", "fix") if (path := getattr(cfg, name))}
        return replace(cfg, data="my.yaml", imgsz=SIDE, **written)
    elif isinstance(cfg, convert.ConvertConfig):
        return replace(cfg, out=str(out / f"converted.{cfg.format}"))
    else:
        return cfg
    return replace(cfg, data="my.yaml", project=str(out), **changes)


def check_train(cfg: Any, result: Any, run: Path) -> None:
    if cfg.evolve:
        assert len((run / "evolve.csv").read_text().splitlines()) == TRIALS + 1
        assert "lr0" in yaml.safe_load((run / "hyp_evolved.yaml").read_text())
        return
    assert json.loads((run / "metrics.json").read_text())["map50_95"] == result.map50_95 >= 0
    best = load_checkpoint(run / "weights" / "best.pt")
    assert list(best.names.values()) == NAMES and (run / "weights" / "last.pt").is_file()
    assert len((run / "results.csv").read_text().splitlines()) == 2
    opt = yaml.safe_load((run / "opt.yaml").read_text())
    asked = {name: value for name, value in asdict(cfg).items() if value != getattr(train.TrainConfig(), name)}
    asked["data"] = str(Path(cfg.data).resolve())  # so that the run can be resumed from any folder
    assert {name: opt[name] for name in asked} == asked
    network = DetectionModel(cfg.cfg, nc=len(NAMES)) if cfg.cfg else tiny_model()  # that of --weights
    assert build_model(best).state_dict().keys() == network.state_dict().keys()


def check_val(cfg: Any, result: Any, run: Path) -> None:
    if cfg.task == "study":
        rows = list(csv.DictReader((run / "study_my_best.csv").open()))
        assert [int(row["imgsz"]) for row in rows] == list(STUDY) and (run / "study.png").is_file()
        return
    numbers = json.loads((run / "metrics.json").read_text())
    assert numbers["map50_95"] == result.map50_95 and numbers["images"] == result.images == 2
    assert bool(list(run.glob("val_batch*.jpg"))) == (cfg.plots and cfg.task != "speed")
    assert len(list(run.glob("labels/*.txt"))) == (3 if cfg.save_txt or cfg.save_hybrid else 0)
    if cfg.save_json:
        assert {"image_id", "category_id", "bbox", "score", "path"} == set(
            json.loads((run / "predictions.json").read_text())[0]
        )


def check_detect(cfg: Any, result: Any, run: Path) -> None:
    assert result == run
    inputs = {"images": 2, "images/": 2, "images/*.jpg": 2, "list.txt": 2, "data/images": 2}.get(cfg.source, 1)
    shown = [path for path in run.iterdir() if path.suffix in {*IMAGES, ".mp4"}]
    assert len(shown) == (0 if cfg.nosave else inputs)
    labels = [path for path in run.glob("labels/*") if path.name != "classes.txt"]
    frames = 4 if cfg.source == "clip.mp4" else inputs
    assert len(labels) == (frames if cfg.save_txt else 0)
    if cfg.save_txt == "yolo":
        assert {len(row.split()) for row in labels[0].read_text().splitlines()} == {5 + cfg.save_conf + cfg.track}
    if cfg.save_txt == "voc":
        assert "<bndbox>" in labels[0].read_text() and labels[0].suffix == ".xml"
    assert (run / "predictions.csv").is_file() == cfg.save_csv
    if cfg.save_csv:
        rows = list(csv.reader((run / "predictions.csv").open()))
        found = json.loads((run / "predictions.json").read_text())
        assert len(rows) - 1 == len(found) > inputs
        assert len(list(run.glob("crops/*/*.jpg"))) == (len(found) if cfg.save_crop else 0)
    names = {path.name.partition("_")[2] for path in run.glob("visualize/image/*.png")}
    assert ({"MobileViTBlock_attention.png", "MobileViTBlock_features.png"} <= names) == cfg.visualize


def check_export(cfg: Any, result: Any, out: Path) -> None:
    assert [row.format for row in result] == list(cfg.include)
    assert all(row.path.parent == out and row.path.stem == "best" and row.path.exists() for row in result)
    assert all(row.parity.same == row.parity.total > 0 for row in result)


def check_convert(cfg: Any, result: Any, out: Path) -> None:
    ours = build_model(load_checkpoint(result)).state_dict()
    for name, tensor in build_model(load_checkpoint(cfg.weights)).state_dict().items():
        assert torch.allclose(ours[name], tensor, atol=1e-6 * cfg.half, rtol=1e-3 * cfg.half), name
    assert result.parent == out and result.suffix == f".{cfg.format}"


def check_doctor(cfg: Any, result: Any, out: Path) -> None:
    assert [len(split.usable) for split in result.survey.values()] == [2, 2, 2] and not result.healthy  # one folder
    written = [Path(path).name for path in (cfg.html, cfg.fix) if path]
    assert sorted(path.name for path in out.iterdir()) == sorted(written)


def check_classify(cfg: Any, result: Any, out: Path) -> None:
    scores = [probability for _, probability in result]
    assert len(result) == 5 and scores == sorted(scores, reverse=True) and 0 < sum(scores) <= 1


@pytest.mark.parametrize("line", commands(RUN, "bash"))
def test_commands_run(
    line: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setattr(val, "STUDY_SIZES", STUDY)
    monkeypatch.setattr(val, "write_plots", lambda *_: None)  # see test_training_writes_what_its_page_lists
    caplog.set_level(logging.INFO)
    script, main, cfg = parse(line)
    if "onnx" in getattr(cfg, "include", ()):
        pytest.importorskip("onnxscript", reason="no ONNX exporter here")
    if getattr(cfg, "evolve", 0):
        pytest.importorskip("optuna", reason="no optuna here")
    cfg = smaller(cfg, tmp_path)
    result = main(cfg)
    if script == "tools/coco_parity.py":
        assert "2 images, largest difference" in caplog.text
        return
    checks = {"train.py": check_train, "val.py": check_val, "detect.py": check_detect}
    if script in checks:
        assert [folder.name for folder in tmp_path.iterdir()] == [cfg.name]
        checks[script](cfg, result, tmp_path / cfg.name)
    else:
        others = {"export": check_export, "tools/convert": check_convert, "tools/classify": check_classify}
        others["tools/doctor"] = check_doctor
        others[script.removesuffix(".py")](cfg, result, tmp_path)


def test_commands_and_pages_have_been_found() -> None:
    run = {split(line)[1] for line in commands(RUN, "bash")}
    tested_elsewhere = (
        "kill_and_resume",
        "compare",
        "serve",
        "import_labels",
        "proposal_study",
        "threshold_study",
        "suspect_study",
    )
    tested_elsewhere += ("rank", "rank_study", "suspect_study")
    own = {f"tools/{name}.py" for name in tested_elsewhere}
    assert run == set(SCRIPTS) - own
    assert len(commands(RUN, "bash")) > 35 and len(commands(PARSED, "sh")) > 15
    for config, name in ((train.TrainConfig, "train"), (val.ValConfig, "val"), (detect.DetectConfig, "detect")):
        assert (config().project, config().name) == (f"runs/{name}", "exp")  # as the pages say


def values(cfg: Any) -> list[Any]:
    """All values in a config, those in tuples one by one."""
    flat: list[Any] = []
    for value in (getattr(cfg, field.name) for field in fields(cfg)):
        flat += value if isinstance(value, tuple) else [value]
    return flat


def number(word: str) -> Any:
    return float(word) if re.fullmatch(r"\d+(\.\d+)?", word) else word


@pytest.mark.parametrize("line", commands(PARSED, "sh"))
def test_commands_that_need_more_are_understood(line: str) -> None:
    words = split(line)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", read("Makefile"), re.M)
        return
    if words[0] == "pip":
        assert words[1] == "install" and (REPO / words[-1]).exists()
        return
    _, _, cfg = parse(line)
    for word in words[2:]:  # every flag is one of the script, every value has arrived
        name = word.lstrip("-").replace("-", "_")
        known = hasattr(cfg, name) if word.startswith("--") else {word, number(word)} & set(values(cfg))
        assert known, word
    for value in (v for v in values(cfg) if isinstance(v, str) and v.startswith("yolov5") and v.endswith(".yaml")):
        assert (REPO / "models" / value).is_file()


@pytest.mark.parametrize("page", sorted(["README.md", *(f"docs/{p.name}" for p in (REPO / "docs").glob("*.md"))]))
def test_commands_inside_sentences_are_understood(page: str) -> None:
    prose = re.sub(r"^ *```.*?^ *```", "", read(page), flags=re.M | re.S)
    for line in re.findall(r"`((?:python|torchrun|pip|make) [^`|]+)`", prose):
        words = line.split()
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", read("Makefile"), re.M), line
        elif words[:3] == ["pip", "install", "-r"]:
            assert (REPO / words[3]).is_file(), line
        elif "..." in words or "--help" in words:
            assert any((REPO / word).is_file() for word in words), line
        elif words[0] == "torchrun" or words[1] in SCRIPTS:
            parse(line)
        elif words[0] == "python" and words[1] != "-m":
            assert (REPO / words[1]).is_file(), line


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yolov5_mobilevit", hubconf)  # whose `load` is the installed package's
    monkeypatch.chdir(place)
    space: dict[str, Any] = {}
    for block in blocks(page, "python"):
        exec(block.replace("path/to/yolov5-mobilevit", str(REPO)), space)
    if page == "docs/python-api.md":
        assert len(space["results"]) == 5 and space["metrics"].images == 2
        assert (place / "runs" / "detect" / "api" / "image.jpg").is_file()
        assert len(space["boxes"]) == len(space["table"]) > 0
    elif page == "docs/weights.md":
        published = torch.load(place / "mobilevit_xxs.pt")
        assert len(space["state_dict"]) == len(published) > 100
    else:
        assert len(space["results"]) == 1


def test_the_block_of_the_contributing_guide_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class, its name in BLOCKS and the row, as CONTRIBUTING.md has them, make a model."""
    space = dict(vars(common))
    exec(blocks("CONTRIBUTING.md", "python")[0], space)
    (row,) = yaml.safe_load(blocks("CONTRIBUTING.md", "yaml")[0])
    monkeypatch.setitem(yolo.BLOCKS, row[2], space[row[2]])
    head = [[-1, 1, "Detect", ["nc", "anchors"]]]
    model = DetectionModel({"nc": 2, "anchors": [[9, 9]], "backbone": [[-1, 1, "Conv", [16, 3, 8]], row], "head": head})
    decoded, _ = model.eval()(torch.zeros(1, 3, 64, 64))
    assert type(model.model[1]).__name__ == row[2] and decoded.shape == (1, 64, 7)


def test_training_writes_what_its_page_lists(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the table, and no other."""
    monkeypatch.chdir(place)
    cfg = smaller(train.TrainConfig(weights="best.pt", name="run"), tmp_path)
    train.main(replace(cfg, noplots=False))
    listed = re.findall(r"`([^`]+)`", " ".join(table("docs/training.md", "file")))
    patterns = [p for name in listed for p in ([name.replace("{labels,pred}", end) for end in ("labels", "pred")])]
    found = {pattern: list((tmp_path / "run").glob(pattern)) for pattern in patterns}
    logs = "events.out.tfevents*"
    assert [pattern for pattern, paths in found.items() if not paths and pattern != logs] == []
    extra = {path for path in (tmp_path / "run").rglob("*") if path.is_file()} - {
        p for ps in found.values() for p in ps
    }
    assert extra == set()


@pytest.mark.parametrize("cls", [detect.DetectConfig, val.ValConfig])
def test_every_flag_is_explained(cls: type) -> None:
    """In its page, or it is one that every script has."""
    text = "".join(read(f"docs/{page}.md") for page in ("val", "detect", "python-api")).replace("--no-", "--")
    usual = {"device", "data", "project", "name", "exist_ok"}
    missing = [f.name for f in fields(cls) if f.name not in usual and "--" + f.name.replace("_", "-") not in text]
    assert missing == []
