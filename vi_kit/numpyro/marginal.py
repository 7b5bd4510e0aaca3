"""Plain runs of programs with sites integrated out, as NumPyro's SVI makes one to find the parameters."""

from __future__ import annotations

from typing import Any

import numpyro
from numpyro import handlers
from numpyro.primitives import _PYRO_STACK

from vi_kit.language.marginal import Marginal


def with_proposals(program: Marginal, args: Any, kwargs: Any) -> tuple[Any] | None:
    """Run a program, and its proposals too, of which whoever listens sees the parameters only.

    Returns:
        What the program returned; `None` if no handler of NumPyro listens.
    """
    if not _PYRO_STACK:
        return None
    with handlers.trace() as trace:
        result = program.fn(*args, **kwargs)
    drawn = {n: s for n, s in trace.items() if s["type"] == "sample" and not s["is_observed"]}
    kept = {n: drawn[n]["value"] for n in program.kept_of(drawn)}
    for proposal in program.algorithm.proposals:
        key = numpyro.prng_key()
        if key is not None:
            with handlers.block(hide_fn=lambda msg: msg["type"] not in ("param", "mutable")):
                handlers.seed(proposal, key)(kept, *args, **kwargs)
    return (result,)
