"""int8 for ONNX, OpenVINO, LiteRT and Core ML.

What is computed in int8:

* "weights": nothing; weights are stored in int8 and multiplied in float. The smallest loss, the same size.
* "conv": convolutions; attention is computed in float from weights stored in int8.
* "all": the matrix products of attention, too.

The box decoding is never quantized: pixels up to the image's side and probabilities in 0..1 cannot share one scale.
Neither are the head's convolutions in ONNX and OpenVINO, whose outputs it converts to pixels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from utils.optional import import_openvino, import_optional

INT8_OPS = ("weights", "conv", "all")
LITERT = "requirements-litert.txt"
SMALL = 1024  # numbers in a tensor; smaller weights stay in float


def calibration_images(calibration: Tensor | None) -> list[np.ndarray]:
    """The images (n, 3, H, W), each as (1, 3, H, W) float32.

    Raises:
        ValueError: there are none.
    """
    if calibration is None or not len(calibration):
        raise ValueError("--int8: no calibration images, expected --data with a data YAML")
    return [image[None].numpy() for image in calibration]


def quantize_onnx(graph: Any, ops: str, calibration: Tensor | None) -> Any:
    """An ONNX model -> one with QuantizeLinear/DequantizeLinear around what `ops` names.

    Activations are 8 bits unsigned and weights use 7 of theirs: processors with AVX2 and without VNNI add pairs of
    products in 16 bits, which the eighth bit overflows.
    """
    if ops == "weights":
        return store_weights(graph)
    onnx, quantization = import_optional("onnx"), import_optional("onnxruntime.quantization")
    kinds = quantization.QuantType
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save(onnx.shape_inference.infer_shapes(graph), source)
        quantization.quantize_static(
            source,
            target,
            calibration_reader(graph.graph.input[0].name, calibration_images(calibration)),
            quant_format=quantization.QuantFormat.QDQ,
            extra_options={"CalibMovingAverage": True},  # the mean of the images' ranges, against outliers
            op_types_to_quantize=["Conv"] if ops == "conv" else None,
            nodes_to_exclude=[name for names in decoding_and_head(graph) for name in names],
            per_channel=True,
            reduce_range=True,
            activation_type=kinds.QUInt8,
            weight_type=kinds.QInt8,
        )
        return store_weights(onnx.load(target))


def calibration_reader(name: str, images: list[np.ndarray]) -> Any:
    """An object from which ONNX Runtime reads the calibration images one after the other; `name` is the input's."""
    base = import_optional("onnxruntime.quantization").CalibrationDataReader

    class Images(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.remaining: Iterator[np.ndarray] = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.remaining, None)
            return None if image is None else {name: image}

    return Images()


def decoding_and_head(graph: Any) -> tuple[list[str], list[str]]:
    """Names of nodes of an ONNX model: (decoding, and NMS after it; convolutions of the head)."""
    producer = {output: node for node in graph.graph.node for output in node.output}
    decoding: dict[str, None] = {}  # a set in order
    head: dict[str, None] = {}
    waiting = [out.name for out in graph.graph.output]
    while waiting:
        node = producer.get(waiting.pop())
        if node is None or node.name in decoding:
            continue
        if node.op_type == "Conv":
            head[node.name] = None
        else:
            decoding[node.name] = None
            waiting += node.input
    return list(decoding), list(head)


def store_weights(graph: Any) -> Any:
    """`graph` with large float weights of convolutions and products in int8, a scale per output channel; in place."""
    onnx = import_optional("onnx")
    weights = {w.name: w for w in graph.graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
    added, replaced = [], {}
    for node in graph.graph.node:
        if node.op_type not in ("Conv", "MatMul", "Gemm") or node.input[1] not in weights:
            continue
        name = node.input[1]
        if name not in replaced:
            values = onnx.numpy_helper.to_array(weights[name])
            if values.size < SMALL:
                continue
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            axis = 0 if node.op_type == "Conv" or transposed else values.ndim - 1
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(np.abs(values).max(axis=others, keepdims=True) / 127, 1e-12).astype(np.float32)
            small = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
            parts = {"_int8": small, "_scale": scale.ravel(), "_zero": np.zeros(scale.size, np.int8)}
            added += [onnx.numpy_helper.from_array(array, name + end) for end, array in parts.items()]
            replaced[name] = onnx.helper.make_node(
                "DequantizeLinear",
                [name + end for end in parts],
                [name + "_float"],
                name=name + "_dequantize",
                axis=axis,
            )
        node.input[1] = name + "_float"
    kept = [w for w in graph.graph.initializer if w.name not in replaced]
    nodes = [*replaced.values(), *graph.graph.node]
    del graph.graph.initializer[:], graph.graph.node[:]
    graph.graph.initializer.extend(kept + added)
    graph.graph.node.extend(nodes)
    return graph


def quantize_openvino(model: Any, ops: str, calibration: Tensor | None) -> Any:
    """An OpenVINO model -> its int8 form by nncf, which itself avoids overflows on processors without VNNI."""
    import_openvino()
    nncf = import_optional("nncf")
    if ops == "weights":
        return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_ASYM)
    images = calibration_images(calibration)
    float_types = ["MatMul"] if ops == "conv" else []
    scope = nncf.IgnoredScope(names=openvino_head(model), types=float_types, validate=False)
    done = nncf.quantize(
        model,
        nncf.Dataset(images),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        ignored_scope=scope,
    )
    return nncf.compress_weights(done, mode=nncf.CompressWeightsMode.INT8_ASYM) if ops == "conv" else done


def openvino_head(model: Any) -> list[str]:
    """Names of the head's convolutions of an OpenVINO model: the last ones before its outputs."""
    head, seen = [], set()
    waiting = [result.input_value(0).get_node() for result in model.get_results()]
    while waiting:
        node = waiting.pop()
        name = node.get_friendly_name()
        if name in seen:
            continue
        seen.add(name)
        if node.get_type_name() == "Convolution":
            head.append(name)
        else:
            waiting += [value.get_node() for value in node.input_values()]
    return head


def quantize_litert(path: Path, ops: str, calibration: Tensor | None) -> None:
    """Rewrite a LiteRT file: "half" stores weights in float16, other `ops` are those of INT8_OPS."""
    quantizer = import_optional("ai_edge_quantizer.quantizer", LITERT)
    recipe, types = (
        import_optional("ai_edge_quantizer.recipe", LITERT),
        import_optional("ai_edge_quantizer.qtyping", LITERT),
    )
    work = quantizer.Quantizer(str(path))
    operations = types.TFLOperationName
    calibrated = None
    if ops == "half":
        weights = types.TensorQuantizationConfig(num_bits=16, dtype=types.TensorDataType.FLOAT)
        config = types.OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=types.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        for operation in (operations.CONV_2D, operations.DEPTHWISE_CONV_2D, operations.FULLY_CONNECTED):
            work.update_quantization_recipe(".*", operation, config, recipe.AlgorithmName.FLOAT_CASTING)
    elif ops == "weights":
        work.load_quantization_recipe(recipe.weight_only_wi8_afp32())
    else:
        if ops == "all":
            work.load_quantization_recipe(recipe.static_wi8_ai8())
        else:
            work.add_weight_only_config(".*", operations.FULLY_CONNECTED, num_bits=8)
            for operation in (operations.CONV_2D, operations.DEPTHWISE_CONV_2D):
                work.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
        calibrated = work.calibrate(litert_samples(path, calibration_images(calibration)), num_threads=1)
    path.write_bytes(work.quantize(calibrated, enable_progress_report=False).quantized_model)


def litert_samples(path: Path, images: list[np.ndarray]) -> dict[str, list[dict[str, np.ndarray]]]:
    """Calibration images under the names in the file's signature."""
    model = import_optional("ai_edge_litert.interpreter", LITERT).Interpreter(str(path))
    signature, parts = next(iter(model.get_signature_list().items()))
    return {signature: [{parts["inputs"][0]: image.transpose(0, 2, 3, 1)} for image in images]}


def quantize_coreml(model: Any) -> Any:
    """A Core ML program with its weights stored in int8; calibrating activations would need a Mac."""
    optimize = import_optional("coremltools.optimize.coreml")
    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALL)
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=config))
