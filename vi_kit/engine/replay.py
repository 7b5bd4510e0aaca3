"""What plain runs of two programs, by either library's own handlers, have in common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from vi_kit.base.distributions import DistributionView
from vi_kit.base.named import Array
from vi_kit.engine.statements import GIVEN

View = Callable[[Any], DistributionView]
"""Of a library's distribution, without its masks: what its values are drawn from."""


def is_drawn(site: Any, view: View) -> bool:
    """Whether a site is: a Delta is not, nor one whose value was given."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and GIVEN not in site["infer"]
        and view(site["fn"]).name != "Delta"
    )


def counts_in_guide(site: Any, view: View) -> bool:
    """What is drawn, and factors; not the data, in a guide that runs the model."""
    if site["type"] != "sample":
        return False
    return not site["is_observed"] or view(site["fn"]).name == "Unit"


def plain_log_prob(site: Any, view: View) -> Array:
    """The log density of the value of a site, neither scaled nor masked."""
    return view(site["fn"]).fn.log_prob(site["value"]).sum()


def _asarray(values: np.ndarray, like: Array) -> Array:
    return array_namespace(like).asarray(values, device=device(like))


def weighted_edges(sites: Iterable[Any], view: View) -> list[Array]:
    """The bounds of the supports, with weights that let none cancel another."""
    rng = np.random.default_rng(0)
    return [
        (edge * _asarray(rng.uniform(1.0, 2.0, tuple(edge.shape)), edge)).sum()
        for site in sites
        for edge in view(site["fn"]).support_edges()
    ]


def joint_support(site: Any, view: View, most: int) -> np.ndarray | None:
    """All joint values of the elements of a site, shape `(num, *batch, *event)`; `None` if they are not finite, or more
    than `most`."""
    seen = view(site["fn"])
    fn = seen.fn
    while isinstance(fn, seen.wrappers.independent | seen.wrappers.expanded):
        fn = fn.base_dist
    if not fn.has_enumerate_support:
        return None
    try:
        support = np.asarray(fn.enumerate_support(expand=False))
    except NotImplementedError:
        return None
    event, shape = tuple(fn.event_shape), (*seen.batch_shape, *seen.event_shape)
    shape = shape[: len(shape) - len(event)]
    num = int(np.prod(shape))
    if len(support) ** num > most:
        return None
    support = support.reshape(len(support), *event)
    indices = np.array(list(itertools.product(range(len(support)), repeat=num)))
    return support[indices].reshape(len(indices), *shape, *event)


def shares_plates(sites: Iterable[Any]) -> bool:
    """Whether a plate holds all sample statements."""
    stacks = [{f.name for f in s["cond_indep_stack"]} for s in sites if s["type"] == "sample"]
    return bool(stacks and set.intersection(*stacks))
