"""YAML as presets are written: safe, with places in its errors, and the plain scalars of YAML 1.2."""

import re
from collections.abc import Hashable, Mapping
from typing import Any

import yaml

from ccnet_cli.errors import InputError

MAX_DEPTH = 16


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (1e-2 is a float, `no` a word), no duplicate keys, aliases, tags or deep nesting."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "an alias is not allowed here", mark)
        if event.tag is not None:
            raise yaml.MarkedYAMLError(None, None, f"tag {event.tag} is not allowed here", mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, "nested too deep", mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            # what labels mean is written {0: background, 255: car}
            if key.tag == "tag:yaml.org,2002:int":
                key.tag = "tag:yaml.org,2002:str"
            if key.tag != "tag:yaml.org,2002:str":
                raise yaml.MarkedYAMLError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"key {key.value} is written twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes every string that the loader would read as something else; writes lists in one line."""

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)


_Dumper.add_representer(list, _Dumper.represent_list)


# seventeen digits: Python refuses to convert absurdly long integers with an error of its own
for _tag, _pattern, _first in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"[-+]?(0|[1-9][0-9]{0,17})", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), _first)


def parse(text: str, where: str) -> Any:
    """One YAML document as plain types; `where` opens the error message."""
    try:
        return _Loader(text).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        # yaml splits some sentences in two: "expected a single document", "but found another document"
        why = f"{error.context} {error.problem}" if str(error.problem).startswith("but ") else error.problem
        raise InputError(position, str(why), "correct the YAML") from None
    except yaml.reader.ReaderError as error:
        position = f"{where}:{text.count(chr(10), 0, error.position) + 1}"
        raise InputError(position, f"character {error.character!r} is not allowed in YAML", "remove it") from None


def dump(mapping: Mapping[str, Any]) -> str:
    """A mapping of plain types as text that `parse` reads back to an equal one."""
    return yaml.dump(dict(mapping), Dumper=_Dumper, sort_keys=False, default_flow_style=False, width=120)
