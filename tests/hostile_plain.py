"""Model files whose data are legal and absurd: lists that hold themselves, networks without end, names with escapes.

Each has the form of a file of this project or of YOLOv5; loading one must end soon, small and with one line.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hostile import archive, name, text, yolov5_like
from torch import Tensor

from models.yolo import DetectionModel

Content = dict[str, Any]
Change = Callable[[Content], object]
PLAIN: dict[str, tuple[str, Callable[[Path], object]]] = {}  # name -> (suffix, what writes the file)
ESCAPE = "\x1b[2J\x1b]0;owned\x07\r\n\u202e"
HEAD = [[[-1], 1, "Detect", ["nc", "anchors"]]]


def net(*rows: list, **keys: Any) -> Content:
    """A model mapping: a Conv, the rows given, and Detect."""
    return {
        "nc": 2,
        "anchors": [[8, 8]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], *rows],
        "head": deepcopy(HEAD),
    } | keys


@cache
def weights(rows: str) -> dict[str, Tensor]:
    """The state dict of a harmless network with these rows, as JSON."""
    return DetectionModel(net(*json.loads(rows))).state_dict()


def content(*rows: list, like: list | None = None) -> Content:
    """A checkpoint of `net(*rows)`, with the weights of the network of the rows `like`."""
    state = weights(json.dumps(rows if like is None else like)) if like is not None or not rows else {}
    return {"version": 1, "yaml": net(*rows), "names": {0: "a", 1: "b"}, "model": dict(state)}


def put(title: str, make: Callable[[], Content]) -> None:
    """Add a .pt file with what `make` returns."""
    assert title not in PLAIN
    PLAIN[title] = (".pt", lambda path: torch.save(make(), path))


def changed(title: str, change: Change) -> None:
    """Add a .pt file of a small checkpoint, changed."""

    def make() -> Content:
        made = content()
        change(made)
        return made

    put(title, make)


def network(title: str, *rows: list, like: list | None = None, **keys: Any) -> None:
    """Add a .pt file of a network of these rows."""

    def make() -> Content:
        made = content(*rows, like=like)
        made["yaml"] |= keys
        return made

    put(title, make)


def laughing(levels: int = 40, width: int = 10, seed: Any = "x") -> list:
    """Lists of the list before: width ** levels values in a few bytes."""
    made = [seed] * width
    for _ in range(levels):
        made = [made] * width
    return made


def own_list() -> list:
    """A list that holds itself."""
    made: list = []
    made.append(made)
    return made


def at(*keys: Any, value: Callable[[], Any]) -> Change:
    """The change that sets content[keys[0]][keys[1]]... to `value()`."""

    def change(made: Content) -> None:
        place: Any = made
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value()

    return change


def program(title: str, make: Callable[[], bytes]) -> None:
    """Add a .pt file with a pickle written by hand."""
    assert title not in PLAIN
    PLAIN[title] = (".pt", lambda path: archive(path, make()))


def json_file(title: str, make: Callable[[], str], tensors: dict[str, Tensor] | None = None) -> None:
    """Add a .safetensors file with this text as its metadata."""
    assert title not in PLAIN
    state = tensors if tensors is not None else {"a": torch.zeros(1)}
    PLAIN[title] = (
        ".safetensors",
        lambda path: path.write_bytes(safetensors.torch.save(state, {"checkpoint": make()})),
    )


def as_json(**more: Any) -> str:
    return json.dumps({"version": 1, "yaml": net(), "names": {"0": "a", "1": "b"}} | more)


def number(value: int) -> bytes:
    """The instruction of a whole number."""
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def flood(count: int) -> bytes:
    """A dict of integers whose hashes are all the same."""
    keys = b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, count))
    return b"\x80\x02}(" + keys + b"u."


def one_key(value: bytes, key: str = "yaml") -> bytes:
    """A checkpoint whose `key` has a value written by hand."""
    made = b"".join(text(k) + (value if k == key else b"}") for k in ("yaml", "names", "model"))
    return b"\x80\x02}(" + text("version") + b"K\x01" + made + b"u."


# --- those of the recorded list, by name ------------------------------------------------------------------------------

program("hash_flood_ints", lambda: flood(60_000))
program("hash_flood_ints_300k", lambda: flood(300_000))
network("own_activation_deep_minus", activation="nn.LeakyReLU(" + "-" * 100_000 + "1)")
network("own_activation_literal_bomb", activation="nn.LeakyReLU(" + "(" * 5_000 + ")" * 5_000 + ")")
network("own_activation_regex", activation="nn." + "a" * 100_000)
changed("own_anchors_million", at("yaml", "anchors", value=lambda: [[8.0] * 2_000_000]))
changed("own_backbone_text", at("yaml", "backbone", value=lambda: "x\n" * 1_000_000))
network("own_c3ghost_19000", [-1, 19_000, "C3Ghost", [8]])
network("own_c3tr_10k_layers_x2", [-1, 10_000, "C3TR", [16]], [-1, 10_000, "C3TR", [16]])
for channels in (1, 4):
    changed(f"own_ch_{channels}", at("yaml", "ch", value=lambda channels=channels: channels))


def concat_shared_from() -> Content:
    made, shared = content(), [-1] * 100_000
    made["yaml"]["backbone"] += [[shared, 1, "Concat", [1]] for _ in range(1_000)]
    return made


put("own_concat_shared_from", concat_shared_from)
network("own_conv_kernel_0", [-1, 1, "Conv", [8, 0]])
network("own_conv_padding_1e4", [-1, 1, "Conv", [8, 3, 1, 10_000]], like=[[-1, 1, "Conv", [8, 3, 1, 1]]])
program("own_deep_dicts_in_row", lambda: one_key(b"}" + (text("a") + b"}") * 50_000 + b"s" * 50_000))
program("own_deep_lists", lambda: one_key(b"]" * 100_000 + b"a" * 99_999))
changed("own_laughing_activation", at("yaml", "activation", value=laughing))
changed("own_laughing_anchors", at("yaml", "anchors", value=laughing))
changed("own_laughing_backbone", at("yaml", "backbone", value=laughing))
changed("own_laughing_backbone_dict", at("yaml", "backbone", value=lambda: {"a": laughing()}))
changed("own_laughing_block_name", at("yaml", "backbone", 0, 2, value=laughing))
changed("own_laughing_from", at("yaml", "backbone", 0, 0, value=laughing))
changed("own_laughing_name_of_model", at("yaml", "name", value=laughing))
changed("own_laughing_names", at("names", value=laughing))
changed("own_laughing_repeats", at("yaml", "backbone", 0, 1, value=laughing))
changed("own_laughing_row", at("yaml", "backbone", 0, value=laughing))
changed("own_laughing_version", at("version", value=laughing))
changed("own_laughing_width", at("yaml", "width_multiple", value=laughing))
network("own_mobilevit_depth_keyword", [-1, 1, "MobileViTBlock", [8, 16, {"depth": 10**6}]])
VIT = [[-1, 1, "MobileViTBlock", [8, 16, 1, 3, 2]]]
network("own_mobilevit_patch_1000", [-1, 1, "MobileViTBlock", [8, 16, 1, 3, 1000]], like=VIT)
network("own_mobilevit_patch_4096", [-1, 1, "MobileViTBlock", [8, 16, 1, 3, 4096]], like=VIT)
changed("own_names_mixed_keys", at("names", value=lambda: {0: "a", "b": "b"}))
changed("own_names_none_key", at("names", value=lambda: {0: "a", None: "b"}))
changed("own_names_values_dict", at("names", value=lambda: {0: "a", 1: {"b": 1}}))
changed("own_names_values_list", at("names", value=lambda: {0: "a", 1: ["b"]}))
changed("own_nc_tensor", at("yaml", "nc", value=lambda: torch.ones(2)))
changed("own_repeats_2_1023", at("yaml", "backbone", 0, 1, value=lambda: 2**1023))
changed("own_row_giant_repr", at("yaml", "backbone", 0, value=lambda: ["y" * 5_000_000]))
network("own_spp_list_of_900k_pools", [-1, 1, "SPP", [8, [3] * 900_000]])


def spp_shared_list() -> Content:
    made, pools = content(), [3] * 5_000
    made["yaml"]["backbone"] += [[-1, 1, "SPP", [8, pools]] for _ in range(300)]
    return made


put("own_spp_shared_list_many_rows", spp_shared_list)
changed("own_state_int_keys", lambda made: made["model"].update({5: torch.zeros(1)}))
changed("own_state_int_keys_only", at("model", value=lambda: {i: torch.zeros(1) for i in range(5)}))
changed("own_state_none_key", lambda made: made["model"].update({None: torch.zeros(1)}))
changed("own_stride_buffer_inf", at("model", "model.1.stride", value=lambda: torch.tensor([float("inf")])))
changed("own_terminal_escapes_in_tensor_name", lambda made: made["model"].update({ESCAPE: torch.zeros(1)}))
changed(
    "own_terminal_escapes_in_yaml_name",
    lambda made: made["yaml"].update({"name": f"{ESCAPE}second line", "backbone": [["bad"]]}),
)
network(
    "own_upsample_64",
    [-1, 1, "nn.Upsample", [None, 64, "nearest"]],
    like=[[-1, 1, "nn.Upsample", [None, 2, "nearest"]]],
)
changed("own_version_tensor", at("version", value=lambda: torch.ones(2)))
changed("own_width_multiple_1e300", at("yaml", "width_multiple", value=lambda: 1e300))
changed("own_width_tensor", at("yaml", "width_multiple", value=lambda: torch.rand(100, 100)))
network("own_zeropad_1e5", [-1, 1, "nn.ZeroPad2d", [100_000]], like=[[-1, 1, "nn.ZeroPad2d", [1]]])


def record(dotted: str, state: bytes) -> bytes:
    """The instructions of an object of a class with these attributes."""
    module, _, cls = dotted.rpartition(".")
    return name(module, cls) + b")\x81" + state + b"b"


def escape_in_a_foreign_model() -> bytes:
    """A YOLOv5 model whose head has a tensor with escapes in its name."""
    buffers = b"}" + text(ESCAPE) + text("no tensor") + b"s"
    head = record("models.yolo.Detect", b"}" + text("_modules") + b"}s" + text("_buffers") + buffers + b"s")
    layers = record("torch.nn.modules.container.Sequential", b"}" + text("_modules") + b"}" + text("0") + head + b"ss")
    return yolov5_like(record("models.yolo.Model", b"}" + text("_modules") + b"}" + text("model") + layers + b"ss"))


program("real_stride_renamed_to_escape", escape_in_a_foreign_model)
json_file("st_metadata_int_4000_digits", lambda: as_json(yaml=net(width_multiple=0)).replace("0}", "9" * 4000 + "}"))
json_file("st_metadata_names_flood", lambda: as_json(names={str(i): "x" * 8 for i in range(1_500_000)}))
json_file("st_mobilevit_depth", lambda: as_json(yaml=net([-1, 1, "MobileViTBlock", [8, 16, 10**5]])))


def wide_model() -> Content:
    """Rows of 2**20 weights each, all tensors views of one number."""
    rows = [[-1, 1, "Conv", [1024, 1]] for _ in range(300)]
    made = content(*rows)
    made["yaml"]["backbone"] = rows
    one = torch.zeros(1)
    state = {f"model.{i}.conv.weight": one.expand(1024, 1024 if i else 3, 1, 1) for i in range(300)}
    made["model"] = state
    return made


put("two_readers_stride0_model", wide_model)
RECORDED = len(PLAIN)
