"""Exported files as backends: one class per runtime, each runtime imported only where it is used."""

from __future__ import annotations

import importlib
import logging
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.export.graph import decode, decoder, rows_of_final
from models.export.metadata import MEMBER, Metadata, appended_metadata

LOGGER = logging.getLogger(__name__)
GREY = 114 / 255  # what fills an input larger than the picture, as in the letterbox


def need(module: str, requirements: str = "requirements-export.txt") -> ModuleType:
    """The module, imported.

    Raises:
        ImportError: it is not installed; says what to type.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != module.split(".")[0]:
            raise  # the package is there and lacks something itself
        name = module.split(".")[0].replace("_", "-")
        raise ImportError(f"the package {name} is missing: pip install -r {requirements}") from error


def need_openvino() -> ModuleType:
    """OpenVINO without its reporting: the converter and nncf send usage data to Intel unless that package is absent."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it now fails
    return need("openvino")


class ExportedBackend:
    """What all exported files share: batches cut to the file's, pictures padded to its size, any form decoded.

    A subclass gives `run`. The precision is in the file, so `half` is refused.

    Raises:
        ValueError: half, or a file without metadata.
    """

    def __init__(self, path: Path, meta: Metadata, half: bool):
        if half:
            raise ValueError(f"{path}: --half is for .pt weights; an exported file has the precision it was made with")
        self.path, self.meta = path, meta
        self.names, self.nc, self.stride, self.grid = meta.names, len(meta.names), meta.stride, meta.grid
        if meta.dynamic != "size" and meta.imgsz[0] == meta.imgsz[1]:
            self.grid = meta.imgsz[0]  # the only square it takes; every path that chooses a size asks the grid
        self.detect = decoder(meta) if meta.form == "raw" else None

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        """float32 (B, 3, H, W) -> the outputs of the file, in the order of Metadata.form."""
        raise NotImplementedError

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc) float32, on the device of `images`.

        A file of a fixed size takes smaller pictures, too: they lie at its top left, so that boxes keep their frame.

        Raises:
            ValueError: a picture larger than the file's fixed size.
        """
        size = self.meta.batch if self.meta.dynamic == "none" else len(images)
        parts = [self.rows(chunk, size) for chunk in self.fit(images.float().cpu()).split(size)]
        return torch.cat(parts).to(images.device)

    def fit(self, images: Tensor) -> Tensor:
        """Pad to the size of the file, where that is fixed."""
        if self.meta.dynamic == "size":
            return images
        h, w = self.meta.imgsz
        below, right = h - images.shape[2], w - images.shape[3]
        if below < 0 or right < 0:
            raise ValueError(
                f"{self.path} was exported for {h}x{w}, got a picture of {images.shape[2]}x{images.shape[3]}; "
                f"use --imgsz {max(h, w)}, or export with --dynamic size"
            )
        return F.pad(images, (0, right, 0, below), value=GREY)

    def rows(self, images: Tensor, size: int) -> Tensor:
        """Decoded rows of at most `size` images, which the file takes at once."""
        count = len(images)
        filled = F.pad(images, (0, 0, 0, 0, 0, 0, 0, size - count))
        out = [torch.from_numpy(np.array(a, copy=True)) for a in self.run(filled.contiguous().numpy())]
        if self.detect is not None:
            rows = decode(self.detect, [level.float() for level in out])
        elif self.meta.form == "nms":
            rows = rows_of_final(out[0].float(), out[1].float(), out[2], self.nc)
        else:
            rows = out[0].float()
        return rows[:count]


class TorchScriptBackend(ExportedBackend):
    """A traced .torchscript file, on the device it is asked for."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        extra = {MEMBER: ""}
        try:
            self.module = torch.jit.load(path, map_location=device, _extra_files=extra)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a TorchScript file ({str(error).splitlines()[0]})") from error
        super().__init__(path, Metadata.from_json(extra[MEMBER], path), half)
        self.device = device

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return arrays(self.module(torch.from_numpy(images).to(self.device)))


class ExportedProgramBackend(ExportedBackend):
    """A .pt2 archive of torch.export, run by PyTorch on the CPU."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        extra = {MEMBER: ""}
        try:
            program = torch.export.load(path, extra_files=extra)
        except (RuntimeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: not an archive of torch.export ({str(error).splitlines()[0]})") from error
        super().__init__(path, Metadata.from_json(extra[MEMBER], path), half)
        self.module = program.module(check_guards=False)  # one of them refuses batches that give right results

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return arrays(self.module(torch.from_numpy(images)))


class OnnxBackend(ExportedBackend):
    """ONNX Runtime: CUDA where the device asks for it and the package has it, else the CPU."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        ort = need("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        wanted = (
            ["CUDAExecutionProvider", "CPUExecutionProvider"] if device.type == "cuda" else ["CPUExecutionProvider"]
        )
        providers = [name for name in wanted if name in ort.get_available_providers()]
        kinds = vars(need("onnxruntime.capi.onnxruntime_pybind11_state")).values()  # its exceptions share no base
        self.errors = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
        try:
            self.session = ort.InferenceSession(str(path), options, providers=providers)
        except self.errors as error:
            raise ValueError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from error
        super().__init__(path, Metadata.from_strings(self.session.get_modelmeta().custom_metadata_map, path), half)
        if len(providers) < len(wanted):
            LOGGER.warning("this onnxruntime has no CUDA; the file runs on the CPU (pip install onnxruntime-gpu)")
        self.input = self.session.get_inputs()[0].name

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        try:
            return self.session.run(None, {self.input: images})
        except self.errors as error:
            raise ValueError(f"{self.path}: ONNX Runtime stopped ({str(error).splitlines()[0]})") from error


class OpenVinoBackend(ExportedBackend):
    """OpenVINO on the CPU in single precision; the .xml, or the folder it lies in."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        ov = need_openvino()
        xml = path if path.is_file() else one_inside(path, "*.xml")
        core = ov.Core()
        try:
            model = core.read_model(xml)
        except RuntimeError as error:
            raise ValueError(f"{xml}: OpenVINO cannot load it ({str(error).strip().splitlines()[-1]})") from error
        place = ["model_info", MEMBER.removesuffix(".json")]
        text = model.get_rt_info(place).astype(str) if model.has_rt_info(place) else ""
        super().__init__(path, Metadata.from_json(text, path), half)
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads:
            options["INFERENCE_NUM_THREADS"] = threads
        self.compiled = core.compile_model(model, "CPU", options)

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        results = self.compiled(images)
        return [results[i] for i in range(len(self.compiled.outputs))]


class NcnnBackend(ExportedBackend):
    """ncnn on the CPU: a folder with model.ncnn.param, model.ncnn.bin and the metadata; one picture at a time."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        folder = path if path.is_dir() else path.parent
        super().__init__(path, Metadata.from_json(one_inside(folder, MEMBER).read_bytes(), folder), half)
        self.ncnn = need("ncnn")
        self.net = self.ncnn.Net()
        if threads:
            self.net.opt.num_threads = threads
        if self.meta.precision == "float32":  # else it computes in 16 bits where the processor can
            for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
                setattr(self.net.opt, option, False)
        parts = (self.net.load_param, "*.param"), (self.net.load_model, "*.bin")
        for load, pattern in parts:
            file = one_inside(folder, pattern)
            if load(str(file)) != 0:
                raise ValueError(f"{file}: ncnn cannot load it, a layer in it is unknown to this version")

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        with self.net.create_extractor() as extractor:
            extractor.input(self.net.input_names()[0], self.ncnn.Mat(images[0]).clone())
            outputs = [extractor.extract(name) for name in self.net.output_names()]
            if any(code for code, _ in outputs):
                raise ValueError(f"{self.path}: ncnn stopped with {[code for code, _ in outputs]}")
            return [np.array(mat)[None] for _, mat in outputs]


class LiteRtBackend(ExportedBackend):
    """LiteRT (TensorFlow Lite) on the CPU; its input is (B, H, W, 3), quantized or float."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        interpreter = need("ai_edge_litert.interpreter")
        super().__init__(path, appended_metadata(path), half)
        try:
            self.model = interpreter.Interpreter(str(path), num_threads=threads or None)
        except ValueError as error:
            raise ValueError(f"{path}: LiteRT cannot load it ({str(error).splitlines()[0]})") from error
        self.model.allocate_tensors()
        self.input = self.model.get_input_details()[0]
        self.outputs = sorted(self.model.get_output_details(), key=lambda d: d["name"])

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        self.model.set_tensor(self.input["index"], to_stored(images.transpose(0, 2, 3, 1), self.input))
        self.model.invoke()
        return [from_stored(self.model.get_tensor(out["index"]), out) for out in self.outputs]


class ExecuTorchBackend(ExportedBackend):
    """ExecuTorch with XNNPACK on the CPU; its thread count is the process's own."""

    def __init__(self, path: Path, device: torch.device, half: bool, threads: int):
        super().__init__(path, appended_metadata(path), half)
        runtime = need("executorch.runtime", "requirements-executorch.txt")
        try:
            self.program = runtime.Runtime.get().load_program(path)
        except RuntimeError as error:
            raise ValueError(f"{path}: ExecuTorch cannot load it ({str(error).splitlines()[0]})") from error
        self.method = self.program.load_method("forward")

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        return arrays(tuple(self.method.execute([torch.from_numpy(images)])))


def no_coreml(path: Path, device: torch.device, half: bool, threads: int) -> NoReturn:
    """Core ML files can be checked here, not run.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"{path}: Core ML runs on Apple devices only (this is {sys.platform}); see docs/export.md")


def arrays(output: Tensor | tuple[Tensor, ...]) -> list[np.ndarray]:
    return [t.detach().cpu().numpy() for t in (output if isinstance(output, tuple | list) else (output,))]


def one_inside(folder: Path, pattern: str) -> Path:
    """The only file of that pattern in `folder`.

    Raises:
        ValueError: none, or several.
    """
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise ValueError(f"{folder}: {len(found)} files {pattern} in it, expected one")
    return found[0]


def to_stored(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """Floats as the tensor of a LiteRT model stores them."""
    scale, zero = tensor["quantization"]
    if not scale:
        return np.ascontiguousarray(values, dtype=tensor["dtype"])
    limits = np.iinfo(tensor["dtype"])
    return np.clip(np.round(values / scale) + zero, limits.min, limits.max).astype(tensor["dtype"])


def from_stored(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """The floats that a tensor of a LiteRT model stands for."""
    scale, zero = tensor["quantization"]
    return (values.astype(np.float32) - zero) * scale if scale else values
