"""Blocks whose keywords are the fields of a dataclass: a row gives them as any other argument."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
from torch import nn

from models.common import MobileViTBlock, MobileViTForm
from models.rows import Row, parse_row


@dataclass(frozen=True)
class Look:
    first: int = 1
    second: bool = False


PLAIN = Look()


class Block(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 3, look: Look = PLAIN):
        super().__init__()
        self.given = (c1, c2, k, look)


def row(*arguments: Any, block: type[nn.Module] = Block, repeats: int = 1) -> Row:
    entry = [-1, repeats, block.__name__, list(arguments)]
    return parse_row(entry, {"nc": 2}, [3], {block.__name__: block})


@pytest.mark.parametrize(
    ("arguments", "k", "look"),
    [
        ((8,), 3, Look()),
        ((8, 5, {"second": True}), 5, Look(second=True)),
        ((8, 5, 7, True), 5, Look(7, True)),
        ((8, {"k": 1, "first": 2}), 1, Look(2)),
    ],
)
def test_fields_are_given_as_keywords_or_in_order(arguments: tuple[Any, ...], k: int, look: Look) -> None:
    assert row(*arguments).build().given == (3, 8, k, look)
    assert [layer.given[0] for layer in row(*arguments, repeats=2).build()] == [3, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((8, {"third": 1}), "unexpected keyword argument 'third'"),
        ((8, {"look": 1}), "look is no argument of a row, expected: first, second"),
        ((8, 3, 1, True, 5), "Block takes c1, c2, k, first, second: 1 argument too many"),
    ],
)
def test_others_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        row(*arguments).build()


def built(keywords: dict[str, Any]) -> tuple[Any, ...]:
    """Of a MobileViT block of a row: shapes, what is zero at the start, heads and the switches of forward."""
    entry = [-1, 1, "MobileViTBlock", [8, 8, 1, 3, 2, 16, keywords]]
    block = parse_row(entry, {"nc": 2}, [8], {"MobileViTBlock": MobileViTBlock}).build()
    shapes = tuple((name, tuple(p.shape), bool(p.any())) for name, p in block.named_parameters())
    heads = tuple((m.heads, m.head_dim) for m in block.modules() if hasattr(m, "head_dim"))
    return shapes, heads, block.input_first, block.fuse_local, block.residual


def test_every_field_of_a_mobilevit_changes_what_is_built() -> None:
    values: dict[str, Any] = {"heads": 2, "head_dim": 4, "fusion_kernel": 1}
    seen = {built({})}
    for field in fields(MobileViTForm):
        needed = {"residual": True} if field.name == "zero_start" else {}
        seen.add(built({field.name: values.get(field.name, True)} | needed))
    assert len(seen) == 1 + len(fields(MobileViTForm))
