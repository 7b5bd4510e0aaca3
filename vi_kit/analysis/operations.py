"""Kinds of operations: each library says once of which kind its own are (`operations.py` there). A reader has a rule
per kind, and per name where it sees more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Rule = TypeVar("Rule")


def by_name(kinds: Mapping[str, str]) -> dict[str, str]:
    """The kind of each operation, from the names of each kind, which are separated by spaces."""
    return {name: kind for kind, names in kinds.items() for name in names.split()}


def rule_for(name: str, rules: Mapping[str, Rule], kind: Mapping[str, str]) -> Rule | None:
    """That of an operation, or of its kind."""
    return rules.get(name) or rules.get(kind.get(name, ""))
