"""Values that are made in great number in every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, eq_default=False)
def value(*, slots: bool = False) -> Callable[[type[T]], type[T]]:
    """A dataclass that is compared by identity, and frozen for the type checker, which sees whatever would write to it.
    At run time it is not: a frozen one sets each attribute by a call, and takes three times as long to be made."""
    return dataclass(eq=False, slots=slots)
