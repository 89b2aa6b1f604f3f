"""Export formats, each with a writer: `write(job, path)` saves the network and its metadata as a file or folder."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from models.export import int8 as quantize
from models.export.coreml import AppleNmsInputs, with_nms
from models.export.graph import export_form
from models.export.merged import merge_blocks
from models.export.metadata import MEMBER, Metadata, append_metadata
from models.yolo import DetectionModel
from utils.nms import NmsSettings
from utils.optional import import_openvino, import_optional

LITERT, EXECUTORCH = "requirements-litert.txt", "requirements-executorch.txt"
OPSET = 18  # the least that torch's exporter writes correctly
MAX_SIDE = 64  # of a dynamic size, in multiples of the grid


@dataclass(frozen=True)
class Job:
    """What to write, for one or several formats.

    Attributes:
        example: (B, 3, H, W), an input of the sizes that are not dynamic.
        settings: of the NMS in the file.
        calibration: images (n, 3, H, W) in 0..1 for int8, else None. int8_ops: see models/export/int8.py.
    """

    model: DetectionModel
    meta: Metadata
    example: Tensor
    settings: NmsSettings | None = None
    half: bool = False
    opset: int = OPSET
    simplify: bool = True
    calibration: Tensor | None = None
    int8_ops: str = ""

    @cached_property
    def module(self) -> DetectionModel:
        return export_form(self.model, self.meta.form, self.settings)

    @cached_property
    def program(self) -> ExportedProgram:
        """The network captured by torch.export."""
        return exported_program(self.module, self.example, self.meta)


def exported_program(module: torch.nn.Module, example: Tensor, meta: Metadata) -> ExportedProgram:
    """`module` captured by torch.export; the sizes of `meta.dynamic` stay open."""
    if meta.dynamic == "none":
        return torch.export.export(module, (example,))
    axes: dict[int, Any] = {0: Dim("batch", min=1, max=1024)}
    image = example[:1]
    if meta.dynamic == "size":
        axes |= {2 + i: meta.grid * Dim(name, min=1, max=MAX_SIDE) for i, name in enumerate(("rows", "columns"))}
        # Unequal sides, or torch.export would take them for equal in every input.
        image = torch.nn.functional.pad(image, (0, meta.grid))
    return torch.export.export(module, (image.repeat(2, 1, 1, 1),), dynamic_shapes=({**axes},))


def output_names(meta: Metadata) -> list[str]:
    """Names of the outputs, in the order of Metadata.form."""
    if meta.form == "nms":
        return ["boxes", "scores", "classes", "count"]
    return [f"level{i}" for i in range(len(meta.strides))] if meta.form == "raw" else ["output"]


def write_torchscript(job: Job, path: Path) -> None:
    frozen = torch.jit.freeze(torch.jit.trace(job.module, job.example))
    torch.jit.save(frozen, path, _extra_files={MEMBER: job.meta.to_json()})


def write_torch_export(job: Job, path: Path) -> None:
    torch.export.save(job.program, path, extra_files={MEMBER: job.meta.to_json()})


def write_onnx(job: Job, path: Path) -> None:
    """ONNX by torch's exporter, simplified by onnxslim.

    Raises:
        ValueError: an opset that torch writes incorrectly, or another one than asked for in the file.
    """
    if job.opset < OPSET:
        raise ValueError(f"--opset {job.opset}: torch {torch.__version__} writes {OPSET} and above")
    onnx = import_optional("onnx")
    import_optional("onnxscript")
    names = output_names(job.meta)
    options: dict[str, Any] = {"opset_version": job.opset, "external_data": False, "verbose": False, "dynamo": True}
    torch.onnx.export(job.program, (), path, input_names=["images"], output_names=names, **options)
    graph = onnx.load(path)
    if job.simplify:
        graph = import_optional("onnxslim").slim(graph)
    written = max(entry.version for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))
    if written != job.opset:
        raise ValueError(f"{path.name}: opset {written} was written, --opset {job.opset} was asked for")
    if job.half:
        graph = halve_onnx(graph)
    if job.int8_ops:
        graph = quantize.quantize_onnx(graph, job.int8_ops, job.calibration)
    name_axes(graph, job.meta)
    onnx.helper.set_model_props(graph, job.meta.to_strings())
    try:
        onnx.checker.check_model(graph)
    except onnx.checker.ValidationError as error:
        raise ValueError(f"{path.name}: not a valid graph ({str(error).splitlines()[0]})") from error
    onnx.save(graph, path)


def halve_onnx(graph: Any) -> Any:
    """An ONNX model in float16 with inputs, outputs and decoding in float32: beyond 512 float16 has steps of 0.5."""
    float16 = import_optional("onnxruntime.transformers.float16")
    decoding, _ = quantize.decoding_and_head(graph)
    graph = float16.convert_float_to_float16(graph, keep_io_types=True, node_block_list=decoding)
    import_optional("onnxruntime.transformers.onnx_model").OnnxModel(graph).topological_sort()
    return graph


def name_axes(graph: Any, meta: Metadata) -> None:
    """Name the dynamic axes batch, height, width and rows, in place; the exporter writes formulas of its symbols."""
    if meta.dynamic == "none":
        return
    axes = ["batch", None, "height", "width"] if meta.dynamic == "size" else ["batch"]
    rows = ["batch", "rows"] if meta.dynamic == "size" else ["batch"]
    for value, names in [(graph.graph.input[0], axes), *((out, rows) for out in graph.graph.output)]:
        for dim, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            if name:
                dim.dim_param = name
    del graph.graph.value_info[:]  # with the old symbols; every runtime infers these shapes itself


def write_openvino(job: Job, path: Path) -> None:
    ov = import_openvino()
    model = ov.convert_model(job.program)
    if job.meta.dynamic == "none":
        model.reshape(tuple(job.example.shape))
    model.input(0).get_tensor().set_names({"images"})
    for output, name in zip(model.outputs, output_names(job.meta), strict=True):
        output.get_tensor().set_names({name})
    if job.int8_ops:
        model = quantize.quantize_openvino(model, job.int8_ops, job.calibration)
    model.set_rt_info(job.meta.to_json(), ["model_info", MEMBER.removesuffix(".json")])
    path.mkdir()
    ov.save_model(model, path / "model.xml", compress_to_fp16=job.half)


def write_ncnn(job: Job, path: Path) -> None:
    """ncnn by pnnx, which reports no error for a layer that it could not convert; loading the file then fails."""
    pnnx = import_optional("pnnx")
    import_optional("ncnn")
    work = path.with_name(path.name + ".work")
    work.mkdir()
    module = export_form(job.model, job.meta.form, job.settings)
    merge_blocks(module)
    torch.jit.save(torch.jit.trace(module, job.example), work / "model.pt")
    shape = "[" + ",".join(map(str, job.example.shape)) + "]f32"
    command = [pnnx.EXEC_PATH, "model.pt", f"inputshape={shape}", f"fp16={int(job.half)}"]
    result = subprocess.run(command, cwd=work, capture_output=True, text=True)
    if result.returncode or not (work / "model.ncnn.param").exists():
        raise ValueError(f"pnnx failed: {(result.stderr or result.stdout).strip().splitlines()[-1]}")
    path.mkdir()
    for name in ("model.ncnn.param", "model.ncnn.bin"):
        shutil.move(work / name, path / name)
    (path / MEMBER).write_text(job.meta.to_json(), encoding="utf-8")
    shutil.rmtree(work)


def write_tflite(job: Job, path: Path) -> None:
    """LiteRT with input (B, H, W, 3), the layout of camera images there."""
    litert = import_optional("litert_torch", LITERT)
    module = litert.to_channel_last_io(job.module, args=[0])
    litert.convert(module, (job.example.permute(0, 2, 3, 1).contiguous(),)).export(str(path))
    if job.int8_ops or job.half:
        quantize.quantize_litert(path, "half" if job.half else job.int8_ops, job.calibration)
    append_metadata(path, job.meta)


def write_executorch(job: Job, path: Path) -> None:
    """ExecuTorch with XNNPACK, attention as matmul and softmax: the fused form takes twice the time there."""
    exir = import_optional("executorch.exir", EXECUTORCH)
    xnnpack = import_optional("executorch.backends.xnnpack.partition.xnnpack_partitioner", EXECUTORCH)
    module = export_form(job.model, job.meta.form, job.settings, fused_attention=False)
    program = exported_program(module, job.example, job.meta)
    edge = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack.XnnpackPartitioner()])
    path.write_bytes(edge.to_executorch().buffer)
    append_metadata(path, job.meta)


def write_coreml(job: Job, path: Path) -> None:
    """A Core ML program that takes an RGB image; with the "nms" form a pipeline that ends in Apple's NMS layer."""
    ct = import_optional("coremltools")
    nms = job.meta.form == "nms"
    module = AppleNmsInputs(export_form(job.model), job.meta.imgsz) if nms else job.module
    program = torch.export.export(module, (job.example,)).run_decompositions({})
    image = ct.ImageType(name="image", shape=tuple(job.example.shape), scale=1 / 255, color_layout=ct.colorlayout.RGB)
    names = ["scores", "boxes"] if nms else output_names(job.meta)
    converted = ct.convert(
        program,
        inputs=[image],
        outputs=[ct.TensorType(name=name) for name in names],
        minimum_deployment_target=ct.target.iOS16,
        compute_precision=ct.precision.FLOAT16 if job.half else ct.precision.FLOAT32,
    )
    if job.int8_ops:
        converted = quantize.quantize_coreml(converted)
    if nms:
        converted = with_nms(converted, job.meta, job.settings or NmsSettings())
    converted.short_description = f"Object detector, classes: {', '.join(job.meta.names.values())}"[:500]
    converted.version, converted.license = job.meta.version, job.meta.license
    converted.user_defined_metadata.update(job.meta.to_strings() | {"names": json.dumps(job.meta.names)})
    converted.save(str(path))


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        ending: of the name, after the stem. options: those it has, of half, int8, nms, batch and size.
        packages: modules that write and run it.
    """

    ending: str
    write: Callable[[Job, Path], None]
    options: frozenset[str]
    packages: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """Those of its packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


ONNX = ("onnx", "onnxscript", "onnxslim", "onnxruntime")
FORMATS = {
    "torchscript": Format(".torchscript", write_torchscript, frozenset()),
    "onnx": Format(".onnx", write_onnx, frozenset({"half", "int8", "nms", "batch", "size"}), ONNX),
    "openvino": Format("_openvino_model", write_openvino, frozenset({"half", "int8", "batch", "size"}), ("openvino",)),
    "torch_export": Format(".pt2", write_torch_export, frozenset({"batch", "size"})),
    "coreml": Format(".mlpackage", write_coreml, frozenset({"half", "int8", "nms"}), ("coremltools",)),
    "tflite": Format(".tflite", write_tflite, frozenset({"half", "int8"}), ("litert_torch", "ai_edge_litert")),
    "ncnn": Format("_ncnn_model", write_ncnn, frozenset({"half"}), ("ncnn", "pnnx")),
    "executorch": Format(".pte", write_executorch, frozenset(), ("executorch",)),
}
