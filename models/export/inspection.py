"""What is in an exported file, for the promise that mobile formats hold no operator above rank 4 and none of their own.

A reader a format; `faults` says in one line what breaks the promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.export.coreml import operations
from models.runtimes.exported import need

MAX_RANK = 4
Step = tuple[str, int]  # operator, rank of its largest tensor


def onnx_steps(path: Path) -> Iterator[Step]:
    onnx = need("onnx")
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    values = [*model.graph.value_info, *model.graph.input, *model.graph.output]
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}
    ranks |= {w.name: len(w.dims) for w in model.graph.initializer}
    for node in model.graph.node:
        name = f"custom {node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type
        yield name, max((ranks.get(tensor, 0) for tensor in (*node.input, *node.output)), default=0)


def litert_steps(path: Path) -> Iterator[Step]:
    interpreter = need("ai_edge_litert.interpreter")
    plain = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # a delegate would hide what it takes
    model = interpreter.Interpreter(str(path), experimental_op_resolver_type=plain)
    ranks = {t["index"]: len(t["shape"]) for t in model.get_tensor_details()}
    for step in model._get_ops_details():
        name = step["op_name"]
        tensors = [i for i in (*step["inputs"], *step["outputs"]) if i >= 0]
        yield f"custom {name}" if name.startswith(("Flex", "CUSTOM")) else name, max(ranks.get(i, 0) for i in tensors)


def coreml_steps(path: Path) -> Iterator[Step]:
    ct = need("coremltools")
    for name, rank in operations(ct.utils.load_spec(str(path))):
        yield f"custom {name}" if "custom" in name else name, rank


def ncnn_steps(path: Path) -> Iterator[Step]:
    """ncnn's maps have at most four axes by construction; what pnnx could not convert keeps the name of its origin."""
    for line in (path / "model.ncnn.param").read_text().splitlines()[2:]:
        name = line.split()[0]
        yield f"custom {name}" if "." in name or "::" in name else name, 0


def executorch_steps(path: Path) -> Iterator[Step]:
    """Calls of kernels and of delegates with the ranks of what they are given; a delegate's inside is its own."""
    reader = need("executorch.exir._serialize._program", "requirements-executorch.txt")
    read = reader.deserialize_pte_binary(path.read_bytes())
    plan = getattr(read, "program", read).execution_plan[0]
    ranks = [len(getattr(value.val, "sizes", ())) for value in plan.values]
    for step in (instruction.instr_args for chain in plan.chains for instruction in chain.instructions):
        kernel, delegate = getattr(step, "op_index", None), getattr(step, "delegate_index", None)
        if kernel is not None:
            name = plan.operators[kernel].name
            name = name if name.split("::")[0] in EXECUTORCH_OWN else f"custom {name}"
        elif delegate is not None:
            name = plan.delegates[delegate].id
        else:
            continue  # moves and jumps compute nothing
        yield name, max((ranks[i] for i in step.args), default=0)


EXECUTORCH_OWN = ("aten", "dim_order_ops", "executorch_prim")
READERS = {
    ".onnx": onnx_steps,
    ".tflite": litert_steps,
    ".mlpackage": coreml_steps,
    ".pte": executorch_steps,
    "_ncnn_model": ncnn_steps,
}


def steps(path: Path) -> list[Step]:
    """Every operator of the file in order; empty for formats without a reader."""
    return next((list(read(path)) for end, read in READERS.items() if path.name.endswith(end)), [])


def faults(path: Path) -> str:
    """The first operator that is not the format's own or has a tensor above rank 4; empty if there is none."""
    for name, rank in steps(path):
        if name.startswith("custom "):
            return f"holds the operator {name.removeprefix('custom ')}, which is not of the format"
        if rank > MAX_RANK:
            return f"{name} works on a tensor of rank {rank}, at most {MAX_RANK} was expected"
    return ""
