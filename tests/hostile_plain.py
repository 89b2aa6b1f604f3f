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
json_file("st_metadata_names_flood", lambda: as_json(names={str(i): "x" * 8 for i in range(800_000)}))
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

# --- more of the kind: rows and their arguments -----------------------------------------------------------------------

UP = ["nearest"]
ROWS: dict[str, list[list]] = {
    "stride_0": [[-1, 1, "Conv", [8, 3, 0]]],
    "stride_negative": [[-1, 1, "Conv", [8, 3, -1]]],
    "stride_1e9": [[-1, 1, "Conv", [8, 3, 10**9]]],
    "kernel_1e9": [[-1, 1, "Conv", [8, 10**9]]],
    "kernel_of_three_sides": [[-1, 1, "Conv", [8, [3, 3, 3]]]],
    "kernel_in_lists": [[-1, 1, "Conv", [8, [[[[3]]]]]]],
    "kernel_is_a_mapping": [[-1, 1, "Conv", [8, {"a": 1}, 2]]],
    "groups_0": [[-1, 1, "Conv", [8, 3, 1, None, 0]]],
    "groups_that_do_not_divide": [[-1, 1, "Conv", [8, 3, 1, None, 3]]],
    "dilation_0": [[-1, 1, "Conv", [8, 3, 1, None, 1, 0]]],
    "dilation_1e6": [[-1, 1, "Conv", [8, 3, 1, None, 1, 10**6]]],
    "padding_not_a_number": [[-1, 1, "Conv", [8, 3, 1, float("nan")]]],
    "padding_infinite": [[-1, 1, "Conv", [8, 3, 1, float("inf")]]],
    "activation_of_a_conv": [[-1, 1, "Conv", [8, 3, {"act": ESCAPE}]]],
    "width_1e7": [[-1, 1, "Conv", [10**7]]],
    "no_channels": [[-1, 1, "C3", [8, {"e": 0.01}]]],
    "expansion_1e300": [[-1, 1, "C3", [8, {"e": 1e300}]]],
    "expansion_negative": [[-1, 1, "C3", [8, {"e": -1}]]],
    "expansion_not_a_number": [[-1, 1, "Bottleneck", [8, {"e": float("nan")}]]],
    "keyword_c1": [[-1, 1, "Conv", [8, {"c1": 64}]]],
    "keyword_c2_1e6": [[-1, 1, "Conv", [8, {"c2": 10**6}]]],
    "keyword_with_escapes": [[-1, 1, "Conv", [8, {ESCAPE: 1}]]],
    "keywords_10k": [[-1, 1, "Conv", [8, {f"a{i}": 1 for i in range(10_000)}]]],
    "arguments_10k": [[-1, 1, "Conv", [8] * 10_000]],
    "pool_kernel_0": [[-1, 1, "nn.MaxPool2d", [0]]],
    "pool_kernel_640": [[-1, 1, "nn.MaxPool2d", [640, 1, 320]]],
    "pool_padding_above_half": [[-1, 1, "nn.MaxPool2d", [3, 1, 3]]],
    "pools_of_129": [[-1, 1, "nn.MaxPool2d", [129, 1, 64]]] * 20,
    "pools_that_shrink_to_nothing": [[-1, 1, "nn.MaxPool2d", [32, 32]]] * 4,
    "upsample_to_1e5": [[-1, 1, "nn.Upsample", [100_000]]],
    "upsample_by_0": [[-1, 1, "nn.Upsample", [None, 0, *UP]]],
    "upsample_by_nan": [[-1, 1, "nn.Upsample", [None, float("nan"), *UP]]],
    "upsample_16_in_a_chain": [[-1, 1, "nn.Upsample", [None, 16, *UP]]] * 4,
    "upsample_by_two_numbers_and_a_size": [[-1, 1, "nn.Upsample", [8, 2, *UP]]],
    "upsample_mode_is_a_list": [[-1, 1, "nn.Upsample", [None, 2, ["nearest"]]]],
    "zeropad_in_a_chain": [[-1, 1, "nn.ZeroPad2d", [128]]] * 150,
    "zeropad_that_cuts_all": [[-1, 1, "nn.ZeroPad2d", [-128]]],
    "zeropad_of_a_word": [[-1, 1, "nn.ZeroPad2d", ["None"]]],
    "contract_by_0": [[-1, 1, "Contract", [0]]],
    "contract_16_in_a_chain": [[-1, 1, "Contract", [16]]] * 4,
    "expand_by_0": [[-1, 1, "Expand", [0]]],
    "expand_by_1e9": [[-1, 1, "Expand", [10**9]]],
    "expand_by_a_word": [[-1, 1, "Expand", ["nc", "anchors"]]],
    "concat_along_the_batch": [[[-1, 0], 1, "Concat", [0]]],
    "concat_along_7": [[[-1, 0], 1, "Concat", [7]]],
    "concat_along_a_word": [[[-1, 0], 1, "Concat", ["nearest"]]],
    "concat_doubled_20_times": [[[-1, -1], 1, "Concat", [1]] for _ in range(20)],
    "concat_of_unlike_maps": [[-1, 1, "Conv", [8, 3, 2]], [[-1, 0], 1, "Concat", [1]]],
    "focus_in_a_chain": [[-1, 1, "Focus", [8, 3]]] * 12,
    "grid_of_primes": [[-1, 1, "MobileViTBlock", [8, 8, 1, 3, p]] for p in (31, 29, 23)],
    "grid_of_31_at_stride_64": [*[[-1, 1, "Conv", [8, 3, 2]]] * 5, [-1, 1, "MobileViTBlock", [8, 8, 1, 3, 31]]],
    "heads_1e9": [[-1, 1, "MobileViTBlock", [8, 16, 1, {"heads": 10**9}]]],
    "heads_that_do_not_divide": [[-1, 1, "MobileViTBlock", [8, 16, 1, {"heads": 7, "head_dim": None}]]],
    "head_dim_1e9": [[-1, 1, "MobileViTBlock", [8, 16, 1, {"head_dim": 10**9}]]],
    "mlp_dim_1e9": [[-1, 1, "MobileViTBlock", [8, 16, 1, 3, 2, 10**9]]],
    "dim_1e9": [[-1, 1, "MobileViTBlock", [8, 10**9, 1]]],
    "depth_1e9": [[-1, 1, "MobileViTBlock", [8, 16, 10**9]]],
    "depth_64_in_many_rows": [[-1, 20, "MobileViTBlock", [8, 16, 64]]] * 4,
    "patch_pair_1_and_1e6": [[-1, 1, "MobileViTBlock", [8, 16, 1, 3, [1, 10**6]]]],
    "fusion_kernel_1e6": [[-1, 1, "MobileViTBlock", [8, 16, 1, {"fusion_kernel": 10**6}]]],
    "uib_start_1e4": [[-1, 1, "UIB", [8, 10**4, 3]]],
    "mv2_expansion_1e9": [[-1, 1, "MV2Block", [8, 1, 10**9]]],
    "mv3_hidden_1e9": [[-1, 1, "MV3Block", [8, 10**9]]],
    "spp_of_300_pools": [[-1, 1, "SPP", [8, [5] * 300]]],
    "spp_of_words": [[-1, 1, "SPP", [8, "nc"]]],
    "attention_over_every_pixel": [[0, 1, "nn.Upsample", [None, 4, *UP]], [-1, 8, "C3TR", [64]]],
    "a_large_map": [[-1, 1, "nn.Upsample", [None, 8, *UP]], [-1, 1, "Conv", [512, 1]]],
    "sixty_convs_at_full_size": [[-1, 1, "nn.Upsample", [None, 2, *UP]], *[[-1, 1, "Conv", [96, 3]]] * 60],
    "a_billion_parameters": [[-1, 1, "Conv", [16_000, 3]]] * 2,
    "layers_20_times_200": [[-1, 200, "C3", [8]]] * 20,
    "rows_10k": [[-1, 1, "Conv", [8]]] * 10_000,
    "a_head_in_the_middle": [[[-1], 1, "Detect", ["nc", "anchors"]]],
    "from_1e30": [[10**30, 1, "Conv", [8]]],
    "from_lists_of_lists": [[[[-1]], 1, "Conv", [8]]],
    "from_a_thousand_rows": [[[-1] * 1_000, 1, "Concat", [1]]],
    "from_the_next_row": [[2, 1, "Conv", [8]]],
    "repeats_true": [[-1, True, "Conv", [8]]],
    "repeats_of_a_point": [[-1, 1.5, "Conv", [8]]],
    "block_with_escapes": [[-1, 1, ESCAPE * 20, [8]]],
    "block_is_a_python_call": [[-1, 1, "__import__('os').system('true')", [8]]],
    "word_with_escapes": [[-1, 1, "Conv", [8, ESCAPE * 20]]],
    "row_of_5k_arguments_in_lists": [[-1, 1, "Conv", [[[1] * 70] * 70]]],
}
for title, rows in ROWS.items():
    network(f"rows_{title}", *rows)

KEYS: dict[str, dict[str, Any]] = {
    "depth_multiple_1e9": {"depth_multiple": 1e9},
    "depth_multiple_nan": {"depth_multiple": float("nan")},
    "width_multiple_negative": {"width_multiple": -1},
    "norm_eps_infinite": {"norm_eps": float("inf")},
    "activation_is_a_list": {"activation": ["nn.SiLU()"]},
    "activation_with_escapes": {"activation": f"nn.SiLU({ESCAPE})"},
    "activation_of_words": {"activation": "nn.GELU('a', 'b', 'c')"},
    "letterbox_is_a_list": {"letterbox": ["center"]},
    "letterbox_is_a_mapping": {"letterbox": {"center": 1}},
    "letterbox_with_escapes": {"letterbox": ESCAPE * 100},
    "anchors_nan": {"anchors": [[float("nan"), 8]]},
    "anchors_1e300": {"anchors": [[1e300, 8]]},
    "anchors_of_words": {"anchors": [[ESCAPE, 8]]},
    "anchors_of_10k_levels": {"anchors": [[8, 8]] * 10_000},
    "nc_1e9": {"nc": 10**9},
    "nc_1e30": {"nc": 10**30},
    "nc_of_a_point": {"nc": 2.0},
    "no_backbone": {"backbone": []},
    "no_head": {"head": []},
    "backbone_is_a_mapping": {"backbone": {"0": 1}},
    "head_v8_of_1e9_bins": {"head": [[[-1], 1, "DetectV8", ["nc", {"reg_max": 10**9}]]]},
    "head_v8_enlarge_nan": {"head": [[[-1], 1, "DetectV8", ["nc", {"enlarge": float("nan")}]]]},
    "head_decoupled_of_1e9": {"head": [[[-1], 1, "Decoupled", ["nc", {"width": 10**9}]]]},
    "head_of_1e9_classes": {"head": [[[-1], 1, "Detect", [10**9, "anchors"]]]},
    "key_of_100k_characters": {"a" * 100_000: 1},
    "words_of_5_million_characters": {str(i): "x" * 9_000 for i in range(600)},
    "keys_300k": {str(i): i for i in range(300_000)},
}
for title, keys in KEYS.items():
    network(f"keys_{title}", **keys)

# --- more of the kind: the other data of a checkpoint -----------------------------------------------------------------

DATA: dict[str, Change] = {
    "names_hold_themselves": at("names", value=own_list),
    "names_of_bytes": at("names", value=lambda: {0: b"a", 1: {2: 3}}),
    "names_of_50k_characters": at("names", value=lambda: {0: "a" * 50_000, 1: "b"}),
    "names_of_a_number_of_400_digits": at("names", value=lambda: {0: "a", "9" * 290: "b"}),
    "names_are_tensors": at("names", value=lambda: {0: torch.zeros(1), 1: "b"}),
    "names_negative": at("names", value=lambda: {0: "a", -1: "b"}),
    "names_a_million": at("names", value=lambda: [str(i) for i in range(300_000)]),
    "version_true": at("version", value=lambda: True),
    "version_2_900": at("version", value=lambda: 2**900),
    "version_nan": at("version", value=lambda: float("nan")),
    "model_is_a_list": at("model", value=own_list),
    "model_is_a_tensor": at("model", value=lambda: torch.zeros(5)),
    "model_of_lists": at("model", "model.0.conv.weight", value=own_list),
    "model_of_complex_numbers": at("model", "model.0.conv.weight", value=lambda: torch.zeros(8, 3, 3, 3) + 0j),
    "model_of_30k_tensors": at("model", value=lambda: {str(i): torch.zeros(()) for i in range(30_000)}),
    "model_of_views_of_one_storage": at("model", value=lambda: dict.fromkeys(map(str, range(900)), torch.ones(10**4))),
    "model_key_of_10k_characters": lambda made: made["model"].update({"a" * 10_000: torch.zeros(1)}),
    "model_without_a_head": lambda made: [made["model"].pop(key) for key in list(made["model"]) if ".1." in key],
    "stride_nan": at("model", "model.1.stride", value=lambda: torch.tensor([float("nan")])),
    "stride_negative": at("model", "model.1.stride", value=lambda: torch.tensor([-2.0])),
    "stride_of_two_dimensions": at("model", "model.1.stride", value=lambda: torch.ones(1, 1)),
    "ema_holds_itself": at("ema", value=own_list),
    "ema_of_words": at("ema", value=lambda: {"a": "b"}),
    "metrics_laughing": at("metrics", value=lambda: {"a": laughing()}),
    "metrics_wide": at("metrics", value=lambda: {"a": laughing(4, 20)}),
    "opt_holds_itself": at("opt", value=lambda: {"a": own_list()}),
    "hyp_of_tensors": at("hyp", value=lambda: {"lr0": torch.zeros(2)}),
    "training_laughing": at("training", value=lambda: {"a": laughing()}),
    "training_is_a_number": at("training", value=lambda: 5),
    "epoch_is_a_word": at("epoch", value=lambda: ESCAPE),
    "epoch_of_900_bits": at("epoch", value=lambda: 2**900),
    "fitness_complex": at("fitness", value=lambda: 1j),
    "grid_is_a_list": at("grid", value=lambda: [32]),
    "yaml_holds_itself": lambda made: made["yaml"].update({"a": made["yaml"]}),
    "yaml_with_a_tuple_as_key": lambda made: made["yaml"].update({(1, 2): 3}),
    "yaml_row_holds_itself": at("yaml", "backbone", 0, value=own_list),
    "yaml_of_words_200_deep": at("yaml", "backbone", 0, value=lambda: laughing(200, 1)),
}
for title, change in DATA.items():
    changed(f"data_{title}", change)

# --- more of the kind: pickles ----------------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[[], bytes]] = {
    "memo_of_equal_hashes": lambda: (
        b"\x80\x02" + b"".join(b"Np%d\n0" % (i * (2**61 - 1)) for i in range(1, 60_000)) + b"N."
    ),
    "memo_negative": lambda: b"\x80\x02Np-5\n.",
    "memo_that_is_not_there": lambda: b"\x80\x02h\x05.",
    "marks_300k": lambda: b"\x80\x02" + b"(" * 300_000 + b"N.",
    "tuples_doubled_400_times": lambda: b"\x80\x02Nq\x00" + b"h\x00h\x00\x86q\x00" * 400 + b".",
    "integer_of_a_million_digits": lambda: b"\x80\x02\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000 + b".",
    "integer_as_text": lambda: b"\x80\x02I" + b"9" * 4_000 + b"\n.",
    "word_of_20_megabytes": lambda: b"\x80\x02X" + struct.pack("<I", 20_000_000) + b"a" * 20_000_000 + b".",
    "tuple_as_key": lambda: b"\x80\x02})Ns.",
    "record_as_key": lambda: b"\x80\x02}" + name("models.yolo", "Model") + b")\x81Ns.",
    "float_keys": lambda: b"\x80\x02}G" + bytes(8) + b"Ns.",
    "record_that_is_its_own_state": lambda: b"\x80\x02" + name("models.yolo", "Model") + b")\x81q\x00h\x00b.",
    "mapping_in_itself": lambda: b"\x80\x02}q\x00" + text("yaml") + b"h\x00s.",
    "list_of_a_list_of_itself": lambda: one_key(b"}q\x00" + text("nc") + b"]q\x01h\x01as"),
    "nothing_but_pops": lambda: b"\x80\x02" + b"0" * 1_000 + b".",
    "a_second_end": lambda: b"\x80\x02}..",
    "protocol_255": lambda: b"\x80\xff}.",
    "frame_of_terabytes": lambda: b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"}.",
    "bytes_that_are_no_utf8": lambda: b"\x80\x02X\x02\x00\x00\x00\xff\xfe.",
    "name_with_escapes": lambda: b"\x80\x02cos\n\x1b[2Jsystem\n.",
    "name_of_a_megabyte": lambda: b"\x80\x02c" + b"a" * 1_000_000 + b"\nb\n.",
    "modules_named_by_numbers": lambda: yolov5_like(
        record("models.yolo.Model", b"}" + text("_modules") + b"}K\x01Nss")
    ),
    "module_name_of_50k_characters": lambda: yolov5_like(
        record("models.yolo.Model", b"}" + text("_modules") + b"}" + text("a" * 50_000) + b"Nss")
    ),
    "model_without_attributes": lambda: yolov5_like(name("models.yolo", "Model") + b")\x81"),
    "model_whose_attributes_are_a_list": lambda: yolov5_like(record("models.yolo.Model", b"]")),
}
for title, make in PROGRAMS.items():
    program(f"pickle_{title}", make)

# --- more of the kind: safetensors ------------------------------------------------------------------------------------

JSON: dict[str, Callable[[], str]] = {
    "not_json": lambda: "{",
    "a_number": lambda: "5",
    "lists_100k_deep": lambda: "[" * 100_000 + "]" * 100_000,
    "version_nan": lambda: as_json(version=float("nan")),
    "version_of_4000_digits": lambda: as_json().replace('"version": 1', '"version": 1' + "0" * 4_000),
    "names_of_lists": lambda: as_json(names=[["a"], ["b"]]),
    "names_300k": lambda: as_json(names=[str(i) for i in range(300_000)]),
    "words_of_5_megabytes": lambda: as_json(yaml=net(name="x" * 5_000_000)),
    "patch_4096": lambda: as_json(yaml=net([-1, 1, "MobileViTBlock", [8, 16, 1, 3, 4096]])),
    "upsample_64": lambda: as_json(yaml=net([-1, 1, "nn.Upsample", [None, 64, "nearest"]])),
    "plan_in_the_file": lambda: as_json(plan={"yaml": 1}),
    "ema_in_the_file": lambda: as_json(ema={"a": 1}),
    "training_nan": lambda: as_json(training={"a": float("nan")}),
}
for title, make_text in JSON.items():
    json_file(f"json_{title}", make_text)

BYTES: dict[str, Callable[[], bytes]] = {
    "header_of_2_63": lambda: struct.pack("<Q", 2**63) + b"{}",
    "header_of_20_megabytes": lambda: struct.pack("<Q", 20_000_000) + b" " * 20_000_000,
    "header_cut_short": lambda: struct.pack("<Q", 50) + b"{",
    "header_of_lists": lambda: struct.pack("<Q", 8_000_000) + b"[" * 8_000_000,
    "a_tensor_beyond_the_end": lambda: (
        struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[9999999],"data_offsets":[0,40]}} '
    ),
}


def byte_file(title: str, make: Callable[[], bytes]) -> None:
    """Add a .safetensors file of these bytes."""
    PLAIN[f"bytes_{title}"] = (".safetensors", lambda path: path.write_bytes(make()))


for title, make in BYTES.items():
    byte_file(title, make)
