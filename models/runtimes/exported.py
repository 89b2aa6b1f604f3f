"""Exported files as backends: one class per runtime, each runtime imported only where it is used."""

from __future__ import annotations

import logging
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.export.metadata import MEMBER, Metadata, appended_metadata
from models.heads import HEADS, Head
from utils.backend import ModelLimits
from utils.images import PAD
from utils.optional import import_openvino, import_optional
from utils.plain_data import limit
from utils.text import clean, counted

LOGGER = logging.getLogger(__name__)


class ExportedBackend:
    """An exported file: batches are split into the file's, images padded to its size, outputs of any form decoded.

    Subclasses define `run`, which several threads may call at once. The precision is that of the file, so `half` is
    refused.

    Raises:
        ValueError: half, or a file without metadata.
    """

    def __init__(self, path: Path, meta: Metadata, half: bool):
        if half:
            raise ValueError(f"{path}: --half is for .pt weights; an exported file has the precision it was made with")
        self.path, self.meta = path, meta
        self.names, self.nc, self.stride, self.grid = meta.names, len(meta.names), meta.stride, meta.grid
        self.letterbox = meta.letterbox
        self.limits = ModelLimits(path.name, meta.imgsz, meta.dynamic != "size", meta.nms, meta.thresholds)
        self.detect = decoder(meta) if meta.form == "raw" else None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 (B, 3, H, W) -> the outputs of the file, in the order of Metadata.form."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc) float32, on the device of `images`.

        Smaller images than the file's fixed size are padded at the right and bottom, so that boxes keep their frame.

        Raises:
            ValueError: an image larger than the file's fixed size.
        """
        return torch.cat([self.decode(out)[:count] for out, count in self.run_batches(images)]).to(images.device)

    @torch.inference_mode()
    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """See SparseBackend; all rows of a file that decodes by itself."""
        if self.detect is None:
            return list(self(images))
        parts = [
            self.detect.decode_above([level[:count].float() for level in out], least)
            for out, count in self.run_batches(images)
        ]
        return [rows.to(images.device) for part in parts for rows in part]

    def run_batches(self, images: Tensor) -> Iterator[tuple[list[Tensor], int]]:
        """The outputs of the file for so many images as it takes at once, and how many of these are of `images`."""
        size = self.meta.batch if self.meta.dynamic == "none" else len(images)
        for chunk in self.pad(images.float().cpu()).split(size):
            batch = F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, size - len(chunk)))
            yield [torch.from_numpy(np.array(a, copy=True)) for a in self.run(batch.contiguous().numpy())], len(chunk)

    def pad(self, images: Tensor) -> Tensor:
        """The images, padded to the size of the file where that is fixed."""
        if self.meta.dynamic == "size":
            return images
        h, w = self.meta.imgsz
        below, right = h - images.shape[2], w - images.shape[3]
        if below < 0 or right < 0:
            raise ValueError(
                f"{self.path} was exported for {h}x{w}, got an image of {images.shape[2]}x{images.shape[3]}; "
                f"use --imgsz {h} {w}, or export with --dynamic size"
            )
        return F.pad(images, (0, right, 0, below), value=PAD / 255)

    def decode(self, out: list[Tensor]) -> Tensor:
        """Outputs of the file -> decoded rows."""
        if self.detect is not None:
            return self.detect.decode_all([level.float() for level in out])
        if self.meta.form == "nms":
            return final_to_decoded(out[0].float(), out[1].float(), out[2], self.nc)
        return out[0].float()


class TorchScriptBackend(ExportedBackend):
    """A traced .torchscript file, run by PyTorch on `device`."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        extra = {MEMBER: ""}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of torch, about a successor of TorchScript
                self.module = torch.jit.load(path, map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a TorchScript file ({first_line(error)})") from error
        super().__init__(path, Metadata.from_json(extra[MEMBER], path), half)
        self.device = device
        move_devices(self.module.graph, device)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return arrays(self.module(torch.from_numpy(images).to(self.device)))


class ExportedProgramBackend(ExportedBackend):
    """A .pt2 archive of torch.export, run by PyTorch on the CPU."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        extra = {MEMBER: ""}
        try:
            program = torch.export.load(path, extra_files=extra)
        except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not an archive of torch.export ({first_line(error)})") from error
        super().__init__(path, Metadata.from_json(extra[MEMBER], path), half)
        self.module = program.module(check_guards=False)  # one of its guards refuses batches whose results are right

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return arrays(self.module(torch.from_numpy(images)))


class OnnxBackend(ExportedBackend):
    """ONNX Runtime: on a GPU if `device` is one and the package supports CUDA, else on the CPU."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        ort = import_optional("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = (
            ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
        )
        providers = [name for name in wanted if name in ort.get_available_providers()]
        members = vars(import_optional("onnxruntime.capi.onnxruntime_pybind11_state")).values()
        self.errors = tuple(m for m in members if isinstance(m, type) and issubclass(m, Exception))  # no common base
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except self.errors as error:
            raise ValueError(f"{path}: ONNX Runtime cannot load it ({first_line(error)})") from error
        super().__init__(path, Metadata.from_strings(self.session.get_modelmeta().custom_metadata_map, path), half)
        if len(providers) < len(wanted):
            LOGGER.warning("this onnxruntime has no CUDA; the file runs on the CPU (pip install onnxruntime-gpu)")
        self.input = self.session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            return self.session.run(None, {self.input: images})
        except self.errors as error:
            raise ValueError(f"{self.path}: ONNX Runtime failed ({first_line(error)})") from error


class OpenVinoBackend(ExportedBackend):
    """OpenVINO on the CPU in single precision: the .xml file, or its folder."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        ov = import_openvino()
        xml = path if path.is_file() else only_file(path, "*.xml")
        core = ov.Core()
        try:
            model = core.read_model(xml)
        except RuntimeError as error:
            raise ValueError(
                f"{xml}: OpenVINO cannot load it ({clean(str(error).strip().rpartition(chr(10))[2])})"
            ) from error
        place = ["model_info", MEMBER.removesuffix(".json")]
        text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else ""
        super().__init__(path, Metadata.from_json(text, path), half)
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self.compiled = core.compile_model(model, "CPU", options)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        results = self.compiled.create_infer_request().infer(images)  # its own: a shared one mixes up threads' boxes
        return [results[i] for i in range(len(self.compiled.outputs))]


class NcnnBackend(ExportedBackend):
    """ncnn on the CPU: a folder with model.ncnn.param, model.ncnn.bin and the metadata; one image at a time."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        folder = path if path.is_dir() else path.parent
        super().__init__(path, Metadata.from_json(read_bounded(only_file(folder, MEMBER)), folder), half)
        self.ncnn = import_optional("ncnn")
        self.net = self.ncnn.Net()
        if threads:
            self.net.opt.num_threads = threads
        if self.meta.precision == "float32":  # else it computes in 16 bits where the processor can
            for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
                setattr(self.net.opt, option, False)
        for load, pattern in ((self.net.load_param, "*.param"), (self.net.load_model, "*.bin")):
            file = only_file(folder, pattern)
            if load(str(file)) != 0:
                raise ValueError(f"{file}: ncnn cannot load it, this version does not know a layer in it")

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        with self.net.create_extractor() as extractor:
            extractor.input(self.net.input_names()[0], self.ncnn.Mat(images[0]).clone())
            outputs = [extractor.extract(name) for name in self.net.output_names()]
            if any(code for code, _ in outputs):
                raise ValueError(f"{self.path}: ncnn failed with codes {[code for code, _ in outputs]}")
            return [np.array(mat)[None] for _, mat in outputs]


class LiteRtBackend(ExportedBackend):
    """LiteRT (TensorFlow Lite) on the CPU; its input is (B, H, W, 3), quantized or float."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        interpreter = import_optional("ai_edge_litert.interpreter")
        super().__init__(path, appended_metadata(path), half)
        try:
            self.model = interpreter.Interpreter(str(path), num_threads=threads or None)
        except ValueError as error:
            raise ValueError(f"{path}: LiteRT cannot load it ({first_line(error)})") from error
        self.model.allocate_tensors()
        self.input = self.model.get_input_details()[0]
        self.outputs = sorted(self.model.get_output_details(), key=lambda d: d["name"])
        self.lock = threading.Lock()  # an interpreter holds one input and its outputs

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        values = quantize(images.transpose(0, 2, 3, 1), self.input)
        with self.lock:
            self.model.set_tensor(self.input["index"], values)
            self.model.invoke()
            return [dequantize(self.model.get_tensor(out["index"]), out) for out in self.outputs]


class ExecuTorchBackend(ExportedBackend):
    """ExecuTorch with XNNPACK on the CPU; its thread count is the process's own."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        super().__init__(path, appended_metadata(path), half)
        runtime = import_optional("executorch.runtime", "requirements-executorch.txt")
        try:
            self.program = runtime.Runtime.get().load_program(path)
        except RuntimeError as error:
            raise ValueError(f"{path}: ExecuTorch cannot load it ({first_line(error)})") from error
        self.method = self.program.load_method("forward")
        self.lock = threading.Lock()  # a method holds its outputs

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        with self.lock:
            return [array.copy() for array in arrays(tuple(self.method.execute([torch.from_numpy(images)])))]


def move_devices(graph: Any, device: torch.device) -> None:
    """Let a TorchScript graph make tensors on `device`, not where it was traced; `map_location` moves the others."""
    for node in graph.findAllNodes("prim::Constant", recurse=True):
        if node.output().type().kind() == "DeviceObjType":
            node.s_("value", str(device))


def refuse_coreml(path: Path, device: torch.device, half: bool, threads: int) -> NoReturn:
    """Raise ValueError: Core ML files run on Apple devices only."""
    raise ValueError(f"{path}: Core ML files are not run here, only on Apple devices; see docs/export.md")


def read_bounded(path: Path) -> bytes:
    """The content of a file of metadata; of a longer one so much that it is refused."""
    with path.open("rb") as file:
        return file.read(limit("json") + 1)


def first_line(error: Exception) -> str:
    """The first line of a runtime's error, for a message."""
    return clean(str(error).strip().partition("\n")[0])


def arrays(output: Tensor | tuple[Tensor, ...]) -> list[np.ndarray]:
    """One or several tensors as arrays."""
    return [t.detach().cpu().numpy() for t in (output if isinstance(output, tuple | list) else (output,))]


def only_file(folder: Path, pattern: str) -> Path:
    """The only file of that pattern in `folder`.

    Raises:
        ValueError: none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder}: {counted(len(found), 'file')} {pattern} in it, expected one")
    return found[0]


def quantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Floats in the type and scale of a tensor of a LiteRT model."""
    scale, zero = tensor["quantization"]
    if not scale:
        return np.ascontiguousarray(values, dtype=tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def dequantize(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Values of a tensor of a LiteRT model as floats."""
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values


def decoder(meta: Metadata) -> Head:
    """A head to decode the raw maps of the file that `meta` describes; its convolutions are not used."""
    settings = dict(meta.head_settings)
    if meta.anchors:
        settings["anchors"] = [[side for anchor in level for side in anchor] for level in meta.anchors]
    make: Callable[..., Head] = HEADS[meta.head]
    try:
        head = make(nc=len(meta.names), ch=[1] * len(meta.strides), **settings).eval()
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"its metadata does not describe a {meta.head} ({clean(error)})") from error
    head.stride.copy_(torch.tensor(meta.strides))
    return head


def final_to_decoded(boxes: Tensor, scores: Tensor, classes: Tensor, nc: int) -> Tensor:
    """The "nms" form as decoded rows (B, D, 5+nc): objectness is the score, the class has probability 1.

    NMS with the same thresholds keeps these boxes.
    """
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    probabilities = torch.nn.functional.one_hot(classes.long(), nc).to(boxes.dtype)
    return torch.cat([center, size, scores[..., None], probabilities], dim=-1)
