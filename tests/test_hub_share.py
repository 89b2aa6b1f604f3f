"""tools/hub.py against a server on this machine that speaks the hub's protocol: what is sent, and what comes back."""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import NAMES, tiny_model

from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from tools import hub
from tools.hub import HubConfig, model_card
from utils.config import parse_cli
from utils.files import REPO

huggingface_hub = pytest.importorskip("huggingface_hub", reason="no huggingface_hub here (requirements-hub.txt)")
OWN = {"precision": 0.5, "recall": 0.25, "map50": 0.75, "map50_95": 0.4321, "images": 12, "instances": 30}
RUN: dict[str, Any] = {
    "epoch": 3,
    "metrics": OWN | {"per_class": {"cat": OWN, "dog": OWN | {"map50": 1.0}}},
    "opt": {"data": "/home/somebody/secret project/pets/data.yaml", "imgsz": 128},
}


class Stand(BaseHTTPRequestHandler):
    """The requests that creating a repository, a commit and a download make; others are refused with 404."""

    files: dict[str, bytes]
    requests: list[str]
    created: list[dict[str, Any]]

    def answer(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.requests.append(f"POST {self.path}")
        answer: dict[str, Any] = {"errors": [], "warnings": []}
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            answer = {"url": f"http://{self.headers['Host']}/me/pets", "id": "me/pets"}
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "success": True,
                "commitUrl": f"http://{self.headers['Host']}/me/pets/commit/1",
                "commitOid": "1" * 40,
            }
        self.answer(json.dumps(answer).encode(), Content_Type="application/json")

    def do_GET(self) -> None:
        self.requests.append(f"{self.command} {self.path}")
        content = self.files.get(self.path.rpartition("/")[2])
        if content is None or not self.path.startswith("/me/pets/resolve/main/"):
            self.answer(b"", 404, X_Error_Code="RepoNotFound")
            return
        self.answer(content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit="1" * 40)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """No lines on the terminal."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stand]]:
    """The class of the handler of a running server, whose files and requests are empty."""
    handler = type("Own", (Stand,), {"files": {}, "requests": [], "created": []})
    service = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{service.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.chdir(tmp_path)
    yield handler
    service.shutdown()
    service.server_close()


@pytest.fixture(scope="module")
def bare() -> Checkpoint:
    """Weights, rows and names only."""
    return Checkpoint.of(tiny_model())


@pytest.fixture
def checkpoint(bare: Checkpoint, tmp_path: Path) -> Checkpoint:
    """Of a run; written as last.pt, with a state of training."""
    checkpoint = replace(bare, **RUN)
    trained = {name: tensor + 1 for name, tensor in checkpoint.model.items()}
    save_checkpoint(
        tmp_path / "last.pt", replace(checkpoint, model=trained, ema=checkpoint.model, training={"optimizer": [1.0]})
    )
    return checkpoint


def test_a_round_trip(server: type[Stand], checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The averaged weights come back to the bit; no path of the machine and no optimizer is sent."""
    hub.main(parse_cli(HubConfig, ["push", "me/pets", "--weights", "last.pt", "--license", "cc-by-4.0"]))
    assert set(server.files) == {"README.md", hub.FILE} and server.created[0]["name"] == "pets"
    assert server.created[0].get("private") is True or server.created[0].get("visibility") == "private"
    sent = b"".join(server.files.values())
    assert b"somebody" not in sent and b"secret" not in sent and b"optimizer" not in server.files[hub.FILE]
    path = hub.main(parse_cli(HubConfig, ["pull", "me/pets"]))
    assert path == Path("pets.safetensors")
    back = load_checkpoint(path)
    assert back.names == NAMES and back.metrics == checkpoint.metrics and back.training is None
    assert all(torch.equal(tensor, build_model(back).state_dict()[name]) for name, tensor in checkpoint.model.items())
    with pytest.raises(FileExistsError, match=r"^pets\.safetensors: exists, expected another --out$"):
        hub.pull(HubConfig("pull", "me/pets"))


def test_a_public_one_only_on_request(server: type[Stand], checkpoint: Checkpoint) -> None:
    hub.push(HubConfig("push", "me/pets", weights="last.pt", public=True))
    assert server.created[0].get("private") is False or server.created[0].get("visibility") == "public"


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path("trapped").touch, ()


@pytest.mark.parametrize("content", [pickle.dumps(Trap()), b"", b"<html>", b"\xff" * 100])
def test_another_file_is_refused_and_nothing_in_it_runs(server: type[Stand], content: bytes, tmp_path: Path) -> None:
    server.files[hub.FILE] = content
    with pytest.raises(ValueError, match=r"^me/pets: its model.safetensors is not used: .*not a checkpoint"):
        hub.pull(HubConfig("pull", "me/pets"))
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_fit_their_rows_are_refused(
    server: type[Stand], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    hub.push(HubConfig("push", "me/pets", weights="last.pt"))
    wrong = server.files[hub.FILE].replace(b"MV2Block", b"Conv    ", 1)
    assert wrong != server.files[hub.FILE]
    server.files[hub.FILE] = wrong
    with pytest.raises(ValueError, match=r"^me/pets: its model.safetensors is not used: "):
        hub.pull(HubConfig("pull", "me/pets"))
    assert not (tmp_path / "pets.safetensors").exists()


def test_errors_are_one_line_and_come_before_anything_is_sent(
    server: type[Stand], checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConnectionError, match=r"^me/other: model.safetensors not downloaded: ") as caught:
        hub.pull(HubConfig("pull", "me/other"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    server.requests.clear()
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        hub.push(HubConfig("push", "me/pets", weights="none.pt"))
    for words in (["fetch", "me/pets"], ["pull", "pets"], ["push", "me/pets"], ["pull", "me/pets", "--out", "a.pt"]):
        with pytest.raises(ValueError, match="expected"):
            parse_cli(HubConfig, words)
    assert server.requests == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    with pytest.raises(ConnectionError, match=r"^me/pets: not uploaded: "):
        hub.push(HubConfig("push", "me/pets", weights="last.pt"))


def test_the_card_is_what_the_hub_reads(checkpoint: Checkpoint) -> None:
    """Read by the hub's own library: license, task, metrics and data set; by a person: classes and how to use it."""
    card = huggingface_hub.ModelCard(model_card(checkpoint, "me/pets", "apache-2.0"))
    assert (card.data.license, card.data.pipeline_tag, card.data.model_name) == (
        "apache-2.0",
        "object-detection",
        "pets",
    )
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert found == {"map50_95": 0.4321, "map50": 0.75, "precision": 0.5, "recall": 0.25}
    assert {result.dataset_name for result in card.data.eval_results} == {"pets"}
    assert "| 0 | cat | 0.432 | 0.750 |\n| 1 | Bär |  |  |\n| 2 | dog | 0.432 | 1.000 |" in card.text
    assert "--weights pets.safetensors --source images/ --imgsz 128" in card.text and "pull me/pets" in card.text
    assert "mAP50-95 0.432, mAP50 0.750" in card.text and "(12 images)" in card.text


def test_the_card_of_a_bare_checkpoint(bare: Checkpoint) -> None:
    """Nothing is claimed that is not known; names cannot break the table."""
    bare = replace(bare, names={0: "a|b", 1: "<b>\n", 2: "*"})
    text = model_card(bare, "me/x", "unknown")
    front = yaml.safe_load(text.split("---\n")[1])
    assert "model-index" not in front and front["license"] == "unknown"
    assert "The checkpoint holds none." in text and "data that its author did not name" in text
    assert "| 0 | a\\|b |" in text and "| 1 | \\<b\\> |" in text
    named = model_card(replace(bare, opt={"data": "C:\\sets\\cells.yaml"}), "me/x", "unknown")
    assert "Trained on cells" in named and "sets" not in named
    assert "Trained on My set" in model_card(bare, "me/x", "unknown", "My set")


def test_the_commands_of_the_page_are_understood() -> None:
    page = (REPO / "docs" / "weights.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python tools/hub\.py (.+)$", page, re.M)
    actions = [parse_cli(HubConfig, shlex.split(line)).action for line in lines]
    assert actions == ["push", "pull"]
