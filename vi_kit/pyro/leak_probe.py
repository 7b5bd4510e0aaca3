"""Ways by which values reach terms unseen by provenance, which follows Python's calls of torch only."""

from __future__ import annotations

import functools

import torch

from vi_kit.base.layouts import is_support
from vi_kit.costs.terms import Site
from vi_kit.pyro.leaks import is_apart, tensors_in
from vi_kit.pyro.reader import Domain, Operation, Record


class LeakProbe(Domain):
    """Finds sites whose values reach a term on a way that provenance does not follow (`torch.vmap`,
    `torch.jit.script`): the operations that these make of a call are seen here, by the memory that they read.

    Attributes:
        untraceable: labels of such sites.
        may_branch: whether values are read on such a way, by which it may be another one in another run.
    """

    def __init__(self, record: Record) -> None:
        super().__init__(record)
        self.untraceable: set[str] = set()
        self.may_branch = False
        self._sites: dict[int, frozenset[Site]] = {}

    def mark(self, value: torch.Tensor, site: Site) -> torch.Tensor:
        """The value in memory of its own, from where it is followed."""
        value = value.clone()
        self.later(functools.partial(self._mark, value, site))
        return value

    def _mark(self, value: torch.Tensor, site: Site) -> None:
        if is_support(site.layout):  # however it was drawn here, it depends on nothing
            self._sites[_memory(value)] = frozenset()
        self._add(value, frozenset({site}))

    def compare(self, value: torch.Tensor, known: frozenset[Site]) -> None:
        self.later(lambda: self._report(self._found(value) - known))

    def _report(self, sites: frozenset[Site], by_script: bool = False) -> None:
        self.untraceable.update(s.label for s in sites)
        self.may_branch |= by_script

    def _found(self, value: torch.Tensor) -> frozenset[Site]:
        return frozenset() if is_apart(value) else self._sites.get(_memory(value), frozenset())

    def _add(self, value: torch.Tensor, sites: frozenset[Site]) -> None:
        if not is_apart(value):
            self._sites[_memory(value)] = self._found(value) | sites

    def note(self, operation: Operation) -> None:
        found = map(self._found, tensors_in((operation.args, operation.kwargs)))
        sites, told = frozenset[Site]().union(*found), operation.told
        if not sites:
            return
        if told is not None and not told.is_traced:
            self._report(sites, told.by_script)
        for x in tensors_in(operation.result):
            self._add(x, sites)


def _memory(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata
