"""A pickle interpreter that runs no code: torch.save's files as tensors, containers and records of objects.

A pickle is a program. This interpreter only builds lists, dicts, tuples, numbers, strings and views of the archive's
bytes. It never imports a name and never calls anything; an object becomes a `Record` of its class's name and
attributes. Names, nesting, sizes and the number of instructions are limited, so that a hostile file costs a second and
an error line.
"""

from __future__ import annotations

import math
import pickletools
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

MAX_PICKLE = 32 * 2**20  # bytes; that of yolov5x has 0.2 MB
MAX_STEPS = 1_000_000  # instructions, some seconds; a model of yolov5x has 84,000, a checkpoint may hold two
MAX_BITS = 1024  # of an integer: arithmetic on one of a million digits takes minutes
MAX_DIMENSIONS = 8
MAX_WORD = 2**20  # bytes of a word or an integer's digits; the source of a class, in older files, has 20,000
MAX_INDEX = 2**31  # of the memo, and of numbers as keys: larger ones can be chosen so that their hashes are equal
MAX_OTHER_KEYS = 10_000  # keys of dicts that are no words; 2,000 parameters in an optimizer
MAX_VIEWS = 3  # bytes of all tensors, for each byte of the file: a model and its average may share theirs
MAX_EXPANDED = 2**22  # elements of all tensors that repeat their bytes; YOLOv5's grids at 1280 pixels have 403,200

STORAGES = {
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
    "torch.ShortStorage": torch.int16,
}
CONTAINERS = ("collections.OrderedDict", "builtins.set", "__builtin__.set")
REBUILDS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter")
# Classes that YOLOv5 and CVNets checkpoints mention; a Record stands in for their instances.
INERT = re.compile(
    r"((yolov5\.)?(models|utils)|ultralytics)(\.\w+)+"
    r"|torch\.nn\.modules\.\w+\.\w+|torch\.(device|Size|torch_version\.TorchVersion)"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|ndarray|float(16|32|64)|u?int(8|16|32|64)|bool_?)"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)?Path"
    r"|argparse\.Namespace|collections\.defaultdict|_codecs\.encode|datetime\.(datetime|date)"
)
KEYS = (str, int, bytes, type(None))  # of dicts: hashing a deeply nested tuple would crash the interpreter
# What interpreting a malformed program can raise. All values were built here, so no code of the file runs meanwhile.
PICKLE_ERRORS = (
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Name:
    """A dotted name that the pickle refers to; it is never looked up."""

    dotted: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A tensor's bytes in the archive."""

    dtype: torch.dtype
    key: str
    elements: int


@dataclass(slots=True, eq=False)
class Record:
    """An object as data: its class's dotted name, the arguments it was made with, its attributes."""

    name: str
    args: tuple = ()
    state: Any = field(default=None, repr=False)


class Machine:
    """Interprets one pickle: bytes, or a stream that is then positioned after it.

    `storage` returns a storage's bytes by key; with None there are no tensors. `size`: bytes of the file that holds
    them. `sizes`: bytes of each storage named.
    """

    def __init__(self, program: bytes | BytesIO, storage: Callable[[str], bytearray] | None, size: int = 0):
        if isinstance(program, bytes) and len(program) > MAX_PICKLE:
            raise ValueError(f"its pickle has {len(program):,} bytes, expected at most {MAX_PICKLE:,}")
        self.program, self.storage = program, storage
        self.sizes: dict[str, int] = {}
        self.size, self.expanded, self.viewed, self.other_keys = size, 0, 0, 0
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes.

        Raises:
            ValueError: an instruction or a name that a checkpoint does not need, or a malformed program.
        """
        step, at = 0, 0
        try:
            for step, (opcode, argument, position) in enumerate(pickletools.genops(self.program)):
                at = position or 0
                if opcode.name == "STOP":
                    return self.stack.pop()
                if step > MAX_STEPS:
                    raise ValueError(f"more than {MAX_STEPS:,} instructions")
                if opcode.name in LITERALS:
                    if type(argument) is int and argument.bit_length() > MAX_BITS:
                        raise ValueError(f"an integer of more than {MAX_BITS} bits")
                    if isinstance(argument, str | bytes) and len(argument) > MAX_WORD:
                        raise ValueError(f"a word of {len(argument):,} bytes, expected at most {MAX_WORD:,}")
                    self.stack.append(argument)
                elif opcode.name in STEPS:
                    STEPS[opcode.name](self, argument)
                else:
                    raise ValueError(f"instruction {opcode.name}, which no checkpoint needs")
        except PICKLE_ERRORS as error:
            raise ValueError(f"malformed at byte {at} of its pickle ({type(error).__name__})") from error
        raise ValueError("its pickle has no end")

    def slice(self) -> list[Any]:
        """Pop the items above the latest mark."""
        start = self.marks.pop()
        if start > len(self.stack):
            raise IndexError
        top = self.stack[start:]
        del self.stack[start:]
        return top

    def pair(self) -> tuple[Any, Any]:
        """Pop two: (below, top)."""
        top = self.stack.pop()
        return self.stack.pop(), top

    def name(self, module: Any, name: Any) -> None:
        dotted = f"{module}.{name}"
        if not (dotted in STORAGES or dotted in CONTAINERS or dotted in REBUILDS or INERT.fullmatch(dotted)):
            raise ValueError(f"it names {dotted[:80]!r}, which no checkpoint needs")
        self.stack.append(Name(dotted))

    def call(self) -> None:
        """A call becomes a Record of its name and arguments; only tensors and empty containers are built."""
        called, args = self.pair()
        if not isinstance(called, Name) or type(args) is not tuple:
            raise ValueError("it calls something that is not a name")
        if called.dotted == "torch._utils._rebuild_tensor_v2":
            if len(args) not in (6, 7):
                raise TypeError
            self.stack.append(self.tensor(*args[:4]) if self.storage else None)
        elif called.dotted == "torch._utils._rebuild_parameter":
            self.stack.append(args[0])
        elif called.dotted == "collections.OrderedDict" and not args:
            self.stack.append({})
        elif called.dotted in STORAGES:
            raise ValueError(f"it calls {called.dotted}")
        else:
            self.stack.append(Record(called.dotted, args))

    def build(self) -> None:
        target, state = self.pair()
        if isinstance(target, Record):
            target.state = state
        elif type(target) is not dict:  # attributes of an OrderedDict are not needed
            raise ValueError(f"it sets attributes of a {type(target).__name__}")
        self.stack.append(target)

    def load(self, number: int) -> None:
        self.stack.append(self.memo[number])

    def store(self, number: int) -> None:
        if not 0 <= number < MAX_INDEX * 2:
            raise ValueError("a number of its memo that is negative or too large")
        self.memo[number] = self.stack[-1]

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Record):  # a defaultdict, of some data sets and optimizers; its items are not needed
            return
        if type(target) is not dict or len(items) % 2 or not all(isinstance(key, KEYS) for key in items[::2]):
            raise TypeError
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.other_keys += 1
                if (isinstance(key, int) and not -MAX_INDEX < key < MAX_INDEX) or self.other_keys > MAX_OTHER_KEYS:
                    raise ValueError(
                        f"numbers as keys that are larger than {MAX_INDEX:,}, or more than {MAX_OTHER_KEYS:,}"
                    )
            target[key] = value

    def refer(self) -> None:
        """A reference out of the pickle: ('storage', type, key, device, elements), or a class with its source."""
        reference = self.stack.pop()
        if type(reference) is not tuple or len(reference) < 4:
            raise TypeError
        kind, named, *rest = reference
        if kind == "module" and type(named) is Name:  # in older files; the source is not read
            self.stack.append(named)
            return
        if kind != "storage" or type(named) is not Name or named.dotted not in STORAGES or len(rest) not in (3, 4):
            raise ValueError("a reference to something other than a tensor's bytes")
        key, _, elements, *view = rest
        if type(key) is not str or type(elements) is not int or elements < 0 or view not in ([], [None]):
            raise TypeError
        dtype = STORAGES[named.dotted]
        self.sizes[key] = elements * dtype.itemsize
        self.stack.append(Storage(dtype, key, elements))

    def tensor(self, reference: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        """A view of a storage, with more elements than it only along dimensions of stride 0, which repeat them.

        Models that were used before they were saved hold such grids.
        """
        assert self.storage is not None
        if type(reference) is not Storage or type(size) is not tuple or type(stride) is not tuple:
            raise TypeError
        if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
            raise ValueError(f"a tensor of {len(size)} dimensions and {len(stride)} strides")
        if any(type(n) is not int or not 0 <= n < 2**62 for n in (offset, *size, *stride)):
            raise ValueError("a tensor whose size, stride or offset is no number of elements")
        data, dtype, elements = self.storage(reference.key), reference.dtype, reference.elements
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        distinct = math.prod(n for n, step in zip(size, stride, strict=True) if step)
        if elements * dtype.itemsize != len(data) or distinct > elements or (count and last >= elements):
            raise ValueError(f"a tensor of size {list(size)} does not fit its storage of {len(data):,} bytes")
        self.expanded += count if count > elements else 0
        if self.expanded > MAX_EXPANDED:
            raise ValueError(f"its tensors repeat their bytes to more than {MAX_EXPANDED:,} elements")
        self.viewed += count * dtype.itemsize
        if self.viewed > MAX_VIEWS * self.size + MAX_EXPANDED * 8:
            raise ValueError(f"its tensors share their bytes, {self.viewed:,} in a file of {self.size:,}")
        if not count:
            return torch.empty(size, dtype=dtype)
        return torch.frombuffer(data, dtype=dtype).as_strided(size, stride, offset)


def skip(machine: Machine, argument: Any) -> None:
    """Do nothing: PROTO and FRAME only describe the stream."""


def pop_tuple(count: int) -> Callable[[Machine, Any], None]:
    """The instruction that replaces the top `count` items by a tuple of them."""

    def step(machine: Machine, argument: Any) -> None:
        stack = machine.stack
        if len(stack) < count:
            raise IndexError
        items = tuple(stack[len(stack) - count :])
        del stack[len(stack) - count :]
        stack.append(items)

    return step


# Instructions whose decoded argument is the value itself.
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "STRING", "BINSTRING", "SHORT_BINSTRING"),
}
STEPS: dict[str, Callable[[Machine, Any], object]] = {
    "PROTO": skip,
    "FRAME": skip,
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_SET": lambda m, _: m.stack.append([]),  # items of a set are not needed
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "TUPLE1": pop_tuple(1),
    "TUPLE2": pop_tuple(2),
    "TUPLE3": pop_tuple(3),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.slice())),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m.slice(),
    "APPEND": lambda m, _: m.extend([m.stack.pop()]),
    "APPENDS": lambda m, _: m.extend(m.slice()),
    "ADDITEMS": lambda m, _: m.extend(m.slice()),
    "SETITEM": lambda m, _: m.update(list(m.pair())),
    "SETITEMS": lambda m, _: m.update(m.slice()),
    "PUT": Machine.store,
    "BINPUT": Machine.store,
    "LONG_BINPUT": Machine.store,
    "MEMOIZE": lambda m, _: m.store(len(m.memo)),
    "GET": Machine.load,
    "BINGET": Machine.load,
    "LONG_BINGET": Machine.load,
    "GLOBAL": lambda m, name: m.name(*name.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pair()),
    "BINPERSID": lambda m, _: m.refer(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
}
