"""Random values in a JAX program: its jaxpr, computed anew with moments in the place of the values of sites."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from vi_kit.analysis.blocked import Blocked, Once, line_of_program, settled, sites_of, started
from vi_kit.analysis.factors import Known, Value
from vi_kit.analysis.parts import NoRuleError, SiteKey
from vi_kit.base.protocols import Moments
from vi_kit.costs.terms import Site
from vi_kit.numpyro.distributions import NumPyroDistribution
from vi_kit.numpyro.interpreter import AnyJaxpr, Computation, bound, has, opened
from vi_kit.numpyro.jax_rules import FUNCTIONS, LIBRARY, RULES, cut_out, without
from vi_kit.numpyro.markers import marker
from vi_kit.numpyro.operations import rule_for

random_p = marker("vi_kit_random")
"""The value of a site: from a sample and what `vi_kit.analysis.expectations.start` needs."""

sampled_p = marker("vi_kit_sampled")
"""The first operand, which has the second as its sample."""

term_p = marker("vi_kit_term")
"""A term, of which the expectation is wanted."""

either_p = marker("vi_kit_either", 2)
"""The first operand, in whose place the second may be taken if none of the others is random."""

OWN = (random_p, sampled_p, term_p, either_p)


@dataclass(frozen=True, eq=False)
class Random:
    """An array whose expectation is known, or was.

    Attributes:
        value: what is known of it.
        sample: makes the value that it has where the sites have those that were drawn; `None` if none were.
    """

    value: Value | Blocked
    sample: Callable[[], Any] | None


OnTerm = Callable[[Any, Any], jax.Array]
"""From the key of a term and its value to the array that is to be its value."""


def random_value(moments: Moments, site: SiteKey, sample: jax.Array | None) -> jax.Array:
    """The value of a site."""
    arrays = [jnp.asarray(x) for x in moments.arrays]
    like = jnp.zeros_like([*arrays, sample][0])  # type: ignore[arg-type]
    like = like[..., 0] if moments.kind == "categorical" else like
    if moments.is_whole or moments.kind in ("categorical", "bernoulli"):
        like = like.astype(jnp.result_type(int))
    value = moments.push(random_p.bind(like, *arrays, kind=moments.kind, site=site))
    return value if sample is None else sampled_p.bind(value, sample.astype(value.dtype))


def own_log_prob(
    dist: NumPyroDistribution,
    site: Site,
    drawn: Any,
    is_own: bool,
    value: jax.Array,
) -> jax.Array:
    """The log density, under a distribution, of the value of a site that was drawn from another."""
    log_prob, mean = dist.log_prob(value), dist.mean_log_prob(drawn, is_own)
    if mean is None:
        return log_prob
    mean = jnp.broadcast_to(mean, log_prob.shape)
    others = [jnp.asarray(x) for x in (*dist.arrays(), *drawn.arrays())]
    return either_p.bind(log_prob, mean, *others, site=(site.order, site.label))


def evaluated(fn: Callable[[], Any], on_term: OnTerm) -> Any:
    """What a program returns in which the values of sites are random."""
    trees = []

    def flat() -> list[Any]:
        leaves, tree = jax.tree.flatten(fn())
        trees.append(tree)
        return leaves

    closed = jax.make_jaxpr(flat)()
    return jax.tree.unflatten(trees[-1], Expectations(on_term).read(closed, ()))


def with_expectations(closed: Container[Any]) -> OnTerm:
    """What the terms of a run are: expectations if they have a closed form, else samples."""

    def on_term(key: Any, x: Any) -> jax.Array:
        return settled(x.value, x.sample, key in closed) if isinstance(x, Random) else x

    return on_term


def finding(found: dict[Any, Blocked | None]) -> OnTerm:
    """Notes which terms have a closed form: what the others have instead, by their keys."""

    def on_term(key: Any, x: Any) -> jax.Array:
        if isinstance(x, Random) and key is not None:
            found[key] = x.value if isinstance(x.value, Blocked) else None
        return sampled(x)

    return on_term


def sampled(x: Any) -> Any:
    """A random value as it is where the sites have the values that were drawn; of other things, themselves."""
    if not isinstance(x, Random):
        return x
    assert x.sample is not None
    return x.sample()


class Expectations(Computation[Any]):
    """Evaluates a jaxpr for arrays, of which some are `Random`."""

    def __init__(self, on_term: OnTerm) -> None:
        super().__init__()
        self.on_term = on_term

    def constant(self, value: Any) -> Any:
        return value

    def equation(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        if any(isinstance(x, Random) for x in operands) or has(equation, OWN):
            return super().equation(equation, operands)
        return bound(equation, operands)

    def on_vi_kit_random(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        values = [x.value if isinstance(x, Random) else jnp.asarray(x) for x in operands[1:]]
        kind, site = equation.params["kind"], equation.params["site"]
        return [Random(started(kind, values, site, LIBRARY, _frames(equation)), None)]

    def on_vi_kit_sampled(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        value, sample = operands
        return [Random(value.value, lambda: sampled(sample))]

    def on_vi_kit_term(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        made = self.on_term(equation.params["key"], operands[0])
        return [jnp.asarray(made, equation.outvars[0].aval.dtype)]  # moments may be less precise

    def on_vi_kit_either(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        log_prob, closed, *others = operands
        if any(isinstance(x, Random) for x in (closed, *others)) or not isinstance(
            log_prob, Random
        ):
            return [log_prob]
        known = Known(jnp.asarray(closed), frozenset((equation.params["site"],)))
        return [Random(Value((known,)), log_prob.sample)]

    def transfer(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        name, outs = equation.primitive.name, range(len(equation.outvars))
        if name in ("split", "unstack"):
            return _split(equation, operands[0])
        rule = rule_for(name, RULES) if len(outs) == 1 else None
        return [_ruled(name, equation, operands, rule, i) for i in outs]

    def call(self, equation: Any, body: AnyJaxpr, operands: list[Any]) -> Sequence[Any]:
        info, own = opened(body)[0].debug_info, ""
        if equation.primitive.name.startswith("custom_"):
            own = info.func_name
        if own in FUNCTIONS and any(isinstance(x, Random) for x in operands):
            return [_ruled(own, equation, operands, FUNCTIONS[own])]
        is_library = "site-packages" in (info.func_src_info or "")
        return [
            _called(result, equation, operands, own, is_library)
            for result in self.read(body, operands)
        ]

    def on_scan(self, equation: Any, operands: list[Any]) -> Sequence[Any]:
        """Of a loop in which sites are drawn and their terms made."""
        is_random = any(isinstance(x, Random) for x in operands)
        return (self.transfer if is_random else super().on_scan)(equation, operands)

    def step(self, body: ClosedJaxpr, inputs: list[Any]) -> tuple[list[Any], Any]:
        results = self.read(body, inputs)
        if any(isinstance(x, Random) for x in results):
            raise NoRuleError("a random value that leaves a loop")
        return results, ()


def _called(result: Any, equation: Any, operands: Sequence[Any], own: str, is_library: bool) -> Any:
    """What had no closed form in a function that was called, with the name of the function, if it has a derivative of
    its own, and with the line of the call, if it is a library's: such a one is traced where it is called first."""
    if not isinstance(result, Random) or not isinstance(result.value, Blocked):
        return result
    inside = result.value
    before = [x.value for x in operands if isinstance(x, Random)]
    if any(isinstance(v, Blocked) and v.operation == inside.operation for v in before):
        return result
    line = inside.line
    if is_library:
        line = line_of_program(_frames(equation)) or line
    return Random(replace(inside, operation=own or inside.operation, line=line), result.sample)


def _ruled(name: str, equation: Any, operands: Sequence[Any], rule: Any, index: int = 0) -> Random:
    live = [x for x in operands if isinstance(x, Random)]
    draw: Callable[[], Any] | None = None
    if all(x.sample is not None for x in live):
        draw = Once(lambda: bound(equation, [sampled(x) for x in operands])[index])
    blocked = Blocked.among([x.value for x in live])
    if blocked is not None:
        return Random(blocked, draw)
    try:
        if rule is None:
            raise NoRuleError("there is no rule for it")
        result = rule(equation, *map(_value, operands))
        return Random(result, draw) if isinstance(result, Value) else result
    except NoRuleError as error:
        sites = sites_of([x.value for x in live])
        line = line_of_program(_frames(equation))
        return Random(Blocked(name, str(error), line, sites), draw)


def _value(x: Any) -> Any:
    if isinstance(x, Random):
        return x.value
    is_known_truth = isinstance(x, np.ndarray) and x.dtype == bool  # `_select` looks at it
    return jnp.asarray(x) if isinstance(x, np.ndarray) and x.ndim and not is_known_truth else x


def _frames(equation: Any) -> Iterator[tuple[str, int, str]]:
    """Of the program, the innermost first: file, line and function."""
    traceback = equation.source_info.traceback
    for frame in traceback.frames if traceback is not None else ():
        yield frame.file_name, frame.line_num, frame.function_name


def _split(equation: Any, x: Random) -> list[Random]:
    """Of a split into pieces, and one into single slices."""
    axis, name = equation.params["axis"], equation.primitive.name
    sizes = equation.params.get("sizes", (1,) * len(equation.outvars))
    pieces = []
    for i, size in enumerate(sizes):
        start = sum(sizes[:i])

        def cut(e: Any, value: Value, start: int = start, size: int = size) -> Value:
            slices = [slice(None)] * len(value.shape)
            slices[axis] = slice(start, start + size)
            piece = cut_out(value, slices)
            return without(piece, (axis,)) if name == "unstack" else piece

        pieces.append(_ruled(name, equation, [x], cut, i))
    return pieces
