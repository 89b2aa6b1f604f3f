"""YAML as people write it: words stay words, numbers are decimal, and what YAML would lose in silence is refused."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import yaml

from utils.text import clean

TAG = "tag:yaml.org,2002:"
MAX_NODES = 60_000  # values of a file after its aliases are filled in: a few lines can stand for billions
MAX_TEXT = 1_000_000  # characters, some seconds; names of 20,000 classes have 400,000
# YAML 1.2's core schema. YAML 1.1, which PyYAML follows, also reads on, off, yes and no as booleans, 012 as ten,
# 12:30 as 750 and 2024-01-02 as a date, but 1e-3 as a word.
FORMS = {
    "null": (r"~|null|Null|NULL|", "~nN\0"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),
}


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the words and numbers of YAML 1.2; a repeated key or an endless alias is an error."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (as PyYAML declares it)

    def __init__(self, text: str):
        super().__init__(text)
        self.count, self.sizes = 0, dict[int, int]()

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node; counts the values that it and its aliases stand for."""
        alias, event = self.check_event(yaml.AliasEvent), self.peek_event()
        mark, before = event.start_mark, self.count
        if getattr(event, "tag", None) is not None:
            raise yaml.MarkedYAMLError(problem=f"a tag, {clean(event.tag, 80)}, expected none", problem_mark=mark)
        node = super().compose_node(parent, index)
        if not alias:
            self.count += 1
            self.sizes[id(node)] = self.count - before
        elif id(node) in self.sizes:
            self.count += self.sizes[id(node)]
        else:
            raise yaml.MarkedYAMLError(problem="an alias to what it is a part of", problem_mark=mark)
        if self.count > MAX_NODES:
            problem = f"more than {MAX_NODES} values, with the aliases filled in"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """The next mapping.

        Raises:
            MarkedYAMLError: it has a key twice.
        """
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            same = str(self.construct_yaml_int(key)) if key.tag == f"{TAG}int" else key.value
            line = key.start_mark.line + 1
            if same in lines:
                problem = f"the key {clean(key.value, 80)} is given twice, in lines {lines[same]} and {line}"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            lines[same] = line
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """A whole number; a leading 0 does not make it octal."""
        text = str(self.construct_scalar(node))
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)


for kind, (form, first) in FORMS.items():
    letters = ["" if letter == "\0" else letter for letter in first]
    Loader.add_implicit_resolver(TAG + kind, re.compile(f"^(?:{form})$"), letters)
Loader.add_constructor(f"{TAG}int", Loader.construct_yaml_int)


def load_yaml(text: str, as_text: Collection[str] = ()) -> tuple[Any, dict[tuple[str, ...], int]]:
    """The content of a YAML text, and the line of each key of the outer two levels, of list items too, as written.

    Args:
        as_text: outer keys below which every word and number stays the text that was written; one that has no value,
            or the value null, is None.

    Raises:
        YAMLError, RecursionError, ValueError: not YAML that is read here; a key twice; too much; too deep.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"{len(text):,} characters, expected at most {MAX_TEXT:,}")
    loader = Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None, {}
        lines: dict[tuple[str, ...], int] = {}
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            lines[(str(key.value),)] = key.start_mark.line + 1
            for i, item in enumerate(value.value if isinstance(value, yaml.CollectionNode) else ()):
                place, node = (str(item[0].value), item[0]) if isinstance(item, tuple) else (str(i), item)
                lines[str(key.value), place] = node.start_mark.line + 1
            if key.value in as_text and not (isinstance(value, yaml.ScalarNode) and value.tag == f"{TAG}null"):
                keep_text(value)
        return loader.construct_document(root), lines
    finally:
        loader.dispose()


def keep_text(node: yaml.Node) -> None:
    """Make every plain word below a node text, in place; the keys of mappings keep their kind."""
    waiting, seen = [node], set[int]()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, yaml.ScalarNode):
            if item.tag.removeprefix(TAG) in FORMS:
                item.tag = f"{TAG}str"
        elif isinstance(item, yaml.MappingNode):
            waiting += [value for _, value in item.value]
        elif isinstance(item, yaml.SequenceNode):
            waiting += item.value
