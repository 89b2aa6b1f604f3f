"""Operators and tensor ranks of exported files: mobile runtimes refuse tensors above rank 4 and custom operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_RANK = 4
EXECUTORCH_KERNELS = ("aten", "dim_order_ops", "executorch_prim")


class Operator(NamedTuple):
    """One step of a file's graph; `rank` is that of its largest tensor, `custom`: not an operator of the format."""

    name: str
    rank: int
    custom: bool = False


def onnx_operators(path: Path) -> Iterator[Operator]:
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
    ranks |= {w.name: len(w.dims) for w in model.graph.initializer}
    for node in model.graph.node:
        rank = max((ranks.get(tensor, 0) for tensor in (*node.input, *node.output)), default=0)
        yield Operator(node.op_type, rank, node.domain not in ("", "ai.onnx"))


def litert_operators(path: Path) -> Iterator[Operator]:
    from ai_edge_litert import interpreter

    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate would hide the operators it runs
    model = interpreter.Interpreter(str(path), experimental_op_resolver_type=plain)
    ranks = {t["index"]: len(t["shape"]) for t in model.get_tensor_details()}
    for step in model._get_ops_details():
        tensors = [i for i in (*step["inputs"], *step["outputs"]) if i >= 0]
        yield Operator(
            step["op_name"], max(ranks.get(i, 0) for i in tensors), step["op_name"].startswith(("Flex", "CUSTOM"))
        )


def coreml_operators(path: Path) -> Iterator[Operator]:
    import coremltools

    return program_operators(coremltools.utils.load_spec(str(path)))


def program_operators(spec: Any) -> Iterator[Operator]:
    """The operators of a Core ML program, or of all programs in a pipeline; ranks are those of the outputs."""
    if spec.WhichOneof("Type") == "pipeline":
        for part in spec.pipeline.models:
            yield from program_operators(part)
        return
    if spec.WhichOneof("Type") != "mlProgram":
        return
    for function in spec.mlProgram.functions.values():
        for block in function.block_specializations.values():
            for step in block.operations:
                rank = max((out.type.tensorType.rank for out in step.outputs), default=0)
                yield Operator(step.type, rank, "custom" in step.type)


def ncnn_operators(path: Path) -> Iterator[Operator]:
    """ncnn's maps have at most four axes by construction; what pnnx could not convert keeps the name of its origin."""
    for line in (path / "model.ncnn.param").read_text().splitlines()[2:]:
        name = line.split()[0]
        yield Operator(name, 0, "." in name or "::" in name)


def executorch_operators(path: Path) -> Iterator[Operator]:
    """Calls of kernels and of delegates with the ranks of their arguments; not what a delegate does inside."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    read = deserialize_pte_binary(path.read_bytes())
    plan = getattr(read, "program", read).execution_plan[0]
    ranks = [len(getattr(value.val, "sizes", ())) for value in plan.values]
    for step in (instruction.instr_args for chain in plan.chains for instruction in chain.instructions):
        kernel, delegate = getattr(step, "op_index", None), getattr(step, "delegate_index", None)
        if kernel is None and delegate is None:
            continue  # moves and jumps compute nothing
        rank = max((ranks[i] for i in step.args), default=0)
        if kernel is None:
            yield Operator(plan.delegates[delegate].id, rank)
        else:
            name = plan.operators[kernel].name
            yield Operator(name, rank, name.split("::")[0] not in EXECUTORCH_KERNELS)


READERS = {
    ".onnx": onnx_operators,
    ".tflite": litert_operators,
    ".mlpackage": coreml_operators,
    ".pte": executorch_operators,
    "_ncnn_model": ncnn_operators,
}


def operators(path: Path) -> list[Operator]:
    """Every operator of the file, in order."""
    return next(list(read(path)) for end, read in READERS.items() if path.name.endswith(end))


def refused(path: Path) -> list[Operator]:
    """The operators that a mobile runtime would refuse."""
    return [operator for operator in operators(path) if operator.custom or operator.rank > MAX_RANK]
