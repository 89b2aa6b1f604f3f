"""What the scripts and the report say to do next: commands that can be typed as they are."""

from __future__ import annotations

import shlex
import ssl
import threading
from pathlib import Path
from urllib.request import urlopen

import pytest

import detect
import export
import train
import val
from tools.serve import ServeConfig, lan_address, make_server
from utils.config import parse_cli
from utils.next_steps import Steps, after_export, after_training, after_validation, step_lines, threshold
from utils.thresholds import Thresholds

CONFIGS = {
    "train.py": train.TrainConfig,
    "val.py": val.ValConfig,
    "detect.py": detect.DetectConfig,
    "export.py": export.ExportConfig,
}


def parsed(steps: Steps) -> dict[str, object]:
    """Script -> the config that its command makes."""
    lines = [shlex.split(line) for _, line in steps if line.startswith("python ") and ".py" in line]
    return {words[1]: parse_cli(CONFIGS[words[1]], words[2:]) for words in lines if words[1] in CONFIGS}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder below the working folder, whose path has a space."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my runs" / "exp"
    (folder / "weights").mkdir(parents=True)
    for name in ("best.pt", "last.pt"):
        (folder / "weights" / name).touch()
    return folder


def test_after_training_come_detect_val_and_export_with_the_paths_of_the_run(run: Path) -> None:
    found = parsed(after_training(run, "my.yaml", "set/images"))
    assert set(found) == set(CONFIGS)
    best = "my runs/exp/weights/best.pt"
    assert all(cfg.weights in (best, (best,)) for cfg in found.values())  # type: ignore[attr-defined]
    assert found["val.py"].data == "my.yaml" and found["detect.py"].source == "set/images"  # type: ignore[attr-defined]
    assert "--resume" not in step_lines(after_training(run, "my.yaml"))
    (cfg,) = [c for c in parsed(after_training(run, "my.yaml", finished=False)).values() if getattr(c, "resume", "")]
    assert cfg.resume == "my runs/exp/weights/last.pt"  # type: ignore[attr-defined]
    (run / "weights" / "best.pt").unlink()
    assert after_training(run, "my.yaml") == []


def test_after_a_validation_come_its_images_and_the_threshold_of_the_best_f1(run: Path) -> None:
    assert after_validation(run, "best.pt", None) == []
    (run / "confusion_matrix.png").touch()
    (about, path), (_, line) = after_validation(run, "best.pt", Thresholds(0.374))
    assert about == "which classes it confuses" and path == "my runs/exp/confusion_matrix.png"
    assert parse_cli(detect.DetectConfig, shlex.split(line)[2:]).conf_thres == 0.374
    auto = after_validation(run, "best.pt", Thresholds(0.374), stored=True)[-1][1]
    assert parse_cli(detect.DetectConfig, shlex.split(auto)[2:]).conf_thres == "auto"
    assert "--source set/val/ " in after_validation(run, "best.pt", Thresholds(0.374), "set/val/")[-1][1]


@pytest.mark.parametrize(("confidence", "lower"), [(0.25, 0.025), (0.005, 0.001), (0.001, None)])
def test_after_no_boxes_comes_a_lower_threshold_and_nothing_to_write(confidence: float, lower: float | None) -> None:
    steps = detect.next_commands(detect.DetectConfig(weights="best.pt", conf_thres=confidence), found=False)
    found = [parse_cli(detect.DetectConfig, shlex.split(line)[2:]) for _, line in steps if "detect.py" in line]
    assert [cfg.conf_thres for cfg in found] == ([] if lower is None else [lower])
    assert "--save-txt" not in step_lines(steps)


@pytest.mark.parametrize(("confidence", "text"), [(0.374, "0.37"), (0.1, "0.10"), (0.00213, "0.0021"), (1.0, "1.00")])
def test_a_threshold_has_two_digits_that_count(confidence: float, text: str) -> None:
    assert threshold(confidence) == text


def test_after_an_export_comes_how_to_run_each_file(run: Path) -> None:
    paths = {"onnx": run / "best.onnx", "openvino": run / "best_openvino_model", "web": run / "best_web"}
    text = step_lines(after_export(paths, "my.yaml"))
    assert "python detect.py --weights 'my runs/exp/best.onnx' --source images/" in text
    assert "python val.py --weights 'my runs/exp/best.onnx' --data my.yaml" in text
    assert "python -m http.server -d" in text and "best_web' 8000" in text and "http://localhost:8000" in text
    assert "--https" in text and text.count("python detect.py") == 1
    assert after_export({"coreml": run / "best.mlpackage"})[0][0] == "open it in Xcode on a Mac"


@pytest.mark.parametrize("https", [False, True])
def test_a_page_is_served_with_the_headers_that_threads_need(https: bool, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>hello")
    if https and not __import__("shutil").which("openssl"):
        pytest.skip("no openssl here")
    with make_server(ServeConfig(str(tmp_path), https, port=0)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            context = ssl._create_unverified_context() if https else None
            host = lan_address() if https else "127.0.0.1"
            with urlopen(f"http{'s' * https}://{host}:{server.server_address[1]}/", context=context) as reply:
                assert reply.read() == b"<p>hello"
                assert reply.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        finally:
            server.shutdown()
            thread.join()


def test_a_folder_without_a_page_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no index\.html, expected the folder of a page"):
        make_server(ServeConfig(str(tmp_path)))
