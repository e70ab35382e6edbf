"""JSON and TOML from strangers' files: read, or refused with a ``ValueError``, whatever they hold."""

import json
import tomllib
from collections.abc import Mapping
from typing import Any

DEEPEST = 64
"""Tables and lists inside each other; a study needs six."""


def parse_json(text: str | bytes) -> Any:
    """Return what JSON says.

    Raises:
        ValueError: no JSON, or nested too deeply for this machine's stack, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def parse_object(text: str | bytes) -> dict[str, Any]:
    """Return the object that JSON holds; raises ``ValueError`` as ``parse_json`` does, and for anything else."""
    found = parse_json(text)
    if not isinstance(found, dict):
        raise ValueError(f"a JSON object was expected, not {type(found).__name__}")
    return found


def parse_toml(text: str) -> dict[str, Any]:
    """Return the tree that TOML text holds: tables, lists, texts, numbers and truth values.

    Raises:
        ValueError: no TOML, nested deeper than ``DEEPEST``, a date, or a number of thousands of digits.
    """
    try:
        tree = tomllib.loads(text.removeprefix("\ufeff"))  # some editors begin every file with this mark
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_tree(tree)
    return tree


def check_tree(tree: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a tree that is too deep to be walked, or that holds something without a meaning here."""
    level: list[Any] = [tree]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for node in level:
            if isinstance(node, Mapping):
                below += node.values()
            elif isinstance(node, (list, tuple)):
                below += node
            elif not isinstance(node, (str, int, float, bool)):
                raise ValueError(f"{node} is a date or a time, which nothing here takes")
        if not below:
            return
        level = below
    raise ValueError(f"nested deeper than {DEEPEST} tables")
