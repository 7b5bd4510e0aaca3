"""Which JAX programs see several elements of a plate at once.

Along which dim of an array the elements of a plate lie is read off the jaxpr, equation by equation. Where that is not
clear, the program is evaluated (`vi_kit.analysis.mixing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vi_kit.analysis.jumps import HERE
from vi_kit.analysis.mixing import (
    AWAY,
    SEVERAL,
    UNCLEAR,
    Mixing,
    MixingProbe,
    Outcome,
    Places,
    common,
    find_mixed,
    joined,
    read,
)
from vi_kit.base.named import Axis
from vi_kit.engine.run import Run
from vi_kit.numpyro.degrees import CALLS, Evaluation, on_the_way, plausible
from vi_kit.numpyro.distributions import NumPyroDistribution

NUM_VALUES = 4 * len(AWAY)
"""How many values sites have where the program is evaluated."""

Rule = Callable[[Any, Sequence[int | None]], int]
"""From an equation and the dims of its operands, `None` of those that do not depend on an input, to that of its
results."""


def find_mixed_in(
    plates: Sequence[Axis], inputs: Sequence[Any], execute: Callable[[MixingProbe, list[Any]], Run]
) -> Mixing:
    """Which terms see several elements of which plates.

    Args:
        plates: to be looked at.
        inputs: numbers for what is not known while the step is traced.
        execute: makes a dry run with a probe, given these.
    """
    kinds: list[tuple[str, tuple[Axis, ...]]] = []

    def terms(number: Any, seconds: list[Any], inputs: list[Any]) -> list[Any]:
        def two_values(label: str, dist: Any) -> Any:
            key = dist.new_key()
            return [value(dist, jax.random.fold_in(key, n), n) for n in (number, number + 1)]

        def value(dist: Any, key: Any, number: Any) -> Any:
            away = jnp.stack([jnp.asarray(AWAY)[number % len(AWAY)], *jnp.zeros(len(HERE))])
            other = NumPyroDistribution(dist.fn, key)
            return other.one_of_many(number, lambda: on_the_way("", other, away))

        by_plate = dict(zip(plates, seconds, strict=True))
        probe = MixingProbe({}, seconds=by_plate, two_values=two_values)
        terms = execute(probe, inputs).terms
        kinds[:] = [(t.label, t.base.axes) for t in terms]
        return [t.base.array for t in terms]

    none = [np.zeros(plate.size, bool) for plate in plates]
    closed = jax.make_jaxpr(terms)(0, none, list(inputs))
    leaves = jax.tree.leaves(inputs)
    start: list[Places] = [{number: 0} for number in range(len(plates))]
    found = places(closed.jaxpr, [{}, *start, *({} for _ in leaves)])
    rng = np.random.default_rng(0)
    consts = [plausible(c, rng) for c in closed.consts]

    @jax.jit
    def evaluated(number: Any, seconds: list[Any], consts: list[Any], leaves: list[Any]) -> Any:
        base, given = [number, *none, *leaves], [number, *seconds, *leaves]
        return Evaluation({}, {}).of(closed.jaxpr, consts, base, given)[1]

    def run(number: int, seconds: Mapping[Axis, np.ndarray]) -> list[Outcome]:
        given = [seconds.get(plate, n) for plate, n in zip(plates, none, strict=True)]
        with jax.ensure_compile_time_eval():
            arrays = evaluated(number, given, consts, leaves)
        return [
            Outcome(what, axes, np.asarray(array))
            for (what, axes), array in zip(kinds, arrays, strict=True)
        ]

    of_terms = [(what, axes, of) for (what, axes), of in zip(kinds, found, strict=True)]
    return read(plates, of_terms, lambda left, terms: find_mixed(left, run, NUM_VALUES, terms))


def places(jaxpr: Jaxpr, inputs: Sequence[Places]) -> list[Places]:
    """Of the outputs, given those of the inputs."""
    known: dict[Any, Places] = dict(zip(jaxpr.invars, inputs, strict=True))

    def of(atom: Any) -> Places:
        return {} if isinstance(atom, Literal) else known.get(atom, {})

    for equation in jaxpr.eqns:
        operands = [of(atom) for atom in equation.invars]
        if any(operands):
            known.update(zip(equation.outvars, _results(equation, operands), strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _results(equation: Any, operands: Sequence[Places]) -> Sequence[Places]:
    name, params = equation.primitive.name, equation.params
    if name in CALLS and CALLS[name] in params:
        body = params[CALLS[name]]
        return places(body.jaxpr if isinstance(body, ClosedJaxpr) else body, operands)
    if name == "cond" and not operands[0]:
        return _of_branches([places(b.jaxpr, operands[1:]) for b in params["branches"]])
    if name == "scan":
        return _scanned(params, operands)
    rule = RULES.get(name, _unknown)
    inputs = {number: None for operand in operands for number in operand}
    found: dict[int, int] = {}
    for number in inputs:
        dims = [operand.get(number) for operand in operands]
        is_lost = any(dim is not None and dim < 0 for dim in dims)
        found[number] = common(dims) if is_lost else rule(equation, dims)
    return [found] * len(equation.outvars)


def _of_branches(branches: Sequence[Sequence[Places]]) -> list[Places]:
    """Of what one of several branches makes. What is not clear of one counts as seen: an evaluation takes another."""
    results = [joined(group) for group in zip(*branches, strict=True)]
    return [{n: SEVERAL if dim == UNCLEAR else dim for n, dim in of.items()} for of in results]


def _scanned(params: Mapping[str, Any], operands: Sequence[Places]) -> Sequence[Places]:
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, carry = list(operands[:consts]), list(operands[consts : consts + carries])
    xs = [_shifted(x, -1) for x in operands[consts + carries :]]
    while True:  # each round, something is found that is joined
        results = places(params["jaxpr"].jaxpr, [*fixed, *carry, *xs])
        both = [joined(pair) for pair in zip(carry, results[:carries], strict=True)]
        if both == carry:
            return [*carry, *(_shifted(y, 1) for y in results[carries:])]
        carry = both


def _shifted(of: Places, by: int) -> Places:
    """Where there is a dim in front, or none any more: an element of a plate is then one step of the loop."""
    return {n: dim if dim < 0 else dim + by if dim + by >= 0 else UNCLEAR for n, dim in of.items()}


def _unknown(equation: Any, dims: Sequence[int | None]) -> int:
    del equation, dims
    return UNCLEAR


def _elementwise(equation: Any, dims: Sequence[int | None]) -> int:
    del equation
    return common(dims)


def _outside(name: str, lost: int = SEVERAL) -> Rule:
    """Of operations along the dims that a parameter names, which stay."""

    def rule(equation: Any, dims: Sequence[int | None]) -> int:
        along, dim = equation.params[name], common(dims)
        return lost if dim in (along if isinstance(along, tuple) else (along,)) else dim

    return rule


def _reduced(name: str) -> Rule:
    """Of operations along the dims that a parameter names, which are gone."""

    def rule(equation: Any, dims: Sequence[int | None]) -> int:
        along, dim = equation.params[name], common(dims)
        return SEVERAL if dim in along or dim < 0 else dim - sum(d < dim for d in along)

    return rule


def _batched(equation: Any, dims: Sequence[int | None]) -> int:
    """Of functions of matrices."""
    dim = common(dims)
    return dim if dim < len(equation.invars[0].aval.shape) - 2 else SEVERAL


def _solved(equation: Any, dims: Sequence[int | None]) -> int:
    """Of equations with several right sides, each by itself."""
    matrix, right = dims
    num_dims = len(equation.invars[1].aval.shape)
    by_itself = num_dims - (1 if equation.params["left_side"] else 2)
    return by_itself if matrix is None and right == by_itself else _batched(equation, dims)


def _reshaped(equation: Any, dims: Sequence[int | None]) -> int:
    dim, old = common(dims), equation.invars[0].aval.shape
    new, before = equation.outvars[0].aval.shape, math.prod(old[:dim])
    same = (d for d, n in enumerate(new) if n == old[dim] and math.prod(new[:d]) == before)
    return UNCLEAR if equation.params["dimensions"] is not None else next(same, UNCLEAR)


def _broadcast(equation: Any, dims: Sequence[int | None]) -> int:
    return equation.params["broadcast_dimensions"][common(dims)]


def _unstacked(equation: Any, dims: Sequence[int | None]) -> int:
    dim, axis = common(dims), equation.params["axis"]
    return UNCLEAR if dim == axis else dim - (dim > axis)


def _stacked(equation: Any, dims: Sequence[int | None]) -> int:
    dim = common(dims)
    return dim + (dim >= equation.params["axis"]) if dim >= 0 else SEVERAL


def _transposed(equation: Any, dims: Sequence[int | None]) -> int:
    return equation.params["permutation"].index(common(dims))


def _sliced(equation: Any, dims: Sequence[int | None]) -> int:
    dim, size = common(dims), equation.invars[0].aval.shape
    return dim if equation.outvars[0].aval.shape[dim] == size[dim] else UNCLEAR


def _part(equation: Any, dims: Sequence[int | None]) -> int:
    """Taken, or replaced, at indices."""
    arrays = 2 if equation.primitive.name == "dynamic_update_slice" else 1
    dim = common(dims[:arrays]) if all(d is None for d in dims[arrays:]) else UNCLEAR
    part = equation.outvars[0] if arrays == 1 else equation.invars[1]
    whole = equation.invars[0].aval.shape
    return dim if dim < 0 or part.aval.shape[dim] == whole[dim] else UNCLEAR


def _padded(equation: Any, dims: Sequence[int | None]) -> int:
    dim = common(dims[:1])
    plain = dims[1] is None and equation.params["padding_config"][dim] == (0, 0, 0)
    return dim if plain else UNCLEAR


def _product(equation: Any, dims: Sequence[int | None]) -> int:
    contracted, batch = equation.params["dimension_numbers"]
    found = []
    for side, dim in enumerate(dims):
        if dim is None:
            continue
        if dim in batch[side]:
            found.append(batch[side].index(dim))
        elif dim in contracted[side]:
            return SEVERAL
        else:
            free = [
                [d for d in range(len(v.aval.shape)) if d not in (*batch[s], *contracted[s])]
                for s, v in enumerate(equation.invars)
            ]
            found.append(len(batch[0]) + len(free[0]) * side + free[side].index(dim))
    return common(found)


def _convolved(equation: Any, dims: Sequence[int | None]) -> int:
    numbers = equation.params["dimension_numbers"]
    is_batch = dims[0] == numbers.lhs_spec[0] and dims[1] is None
    plain = equation.params["batch_group_count"] == 1
    return numbers.out_spec[0] if is_batch and plain else UNCLEAR


def _windows(equation: Any, dims: Sequence[int | None]) -> int:
    dim, params = common(dims), equation.params
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    alone = all(params[name][dim] == 1 for name in names) and params["padding"][dim] == (0, 0)
    return dim if alone else SEVERAL


def _gathered(equation: Any, dims: Sequence[int | None]) -> int:
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, indices = equation.invars[0].aval.shape, dims[1]
    out = range(len(equation.outvars[0].aval.shape))
    of_indices = [d for d in out if d not in numbers.offset_dims]
    if dims[0] is None:
        assert indices is not None
        return of_indices[indices] if indices < len(of_indices) else UNCLEAR
    if dims[0] in numbers.operand_batching_dims:
        place = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(dims[0])]
        return of_indices[place] if indices in (None, place) else UNCLEAR
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    if indices is not None or dims[0] in gone or sizes[dims[0]] != operand[dims[0]]:
        return UNCLEAR
    kept = [d for d in range(len(operand)) if d not in gone]
    return numbers.offset_dims[kept.index(dims[0])]


def _scattered(equation: Any, dims: Sequence[int | None]) -> int:
    numbers, (operand, _, updates) = equation.params["dimension_numbers"], equation.invars
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    kept = [d for d in range(len(operand.aval.shape)) if d not in gone]
    windows = dict(zip(numbers.update_window_dims, kept, strict=True))
    whole = {to for of, to in windows.items() if updates.aval.shape[of] == operand.aval.shape[to]}
    places = [dims[0], None if dims[2] is None else windows.get(dims[2], UNCLEAR)]
    is_whole = dims[1] is None and all(place is None or place in whole for place in places)
    return common(places) if is_whole else UNCLEAR


def _named(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: Mapping[str, Rule] = {
    **_named("add add_any sub mul div rem max min neg sign abs floor ceil round", _elementwise),
    **_named("pow integer_pow square sqrt rsqrt cbrt exp exp2 expm1 log log1p", _elementwise),
    **_named("sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh", _elementwise),
    **_named("logistic erf erfc erf_inv lgamma digamma polygamma zeta", _elementwise),
    **_named("igamma igammac regularized_incomplete_beta bessel_i0e bessel_i1e", _elementwise),
    **_named("random_gamma_grad nextafter is_finite clamp select_n", _elementwise),
    **_named("lt_to le_to eq_to", _elementwise),
    **_named("eq ne lt le gt ge and or xor not shift_left shift_right_logical", _elementwise),
    **_named("convert_element_type reduce_precision stop_gradient copy", _elementwise),
    **_named("vi_kit_term", _elementwise),
    **_named("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or", _reduced("axes")),
    **_named("argmax argmin", _reduced("axes")),
    **_named("squeeze", _reduced("dimensions")),
    **_named("cumsum cumprod cummax cummin cumlogsumexp", _outside("axis")),
    **_named("rev", _outside("dimensions")),
    **_named("sort", _outside("dimension")),
    "split": _outside("axis", lost=UNCLEAR),
    "concatenate": _outside("dimension", lost=UNCLEAR),
    **_named("cholesky lu eigh qr svd", _batched),
    "triangular_solve": _solved,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "stack": _stacked,
    "unstack": _unstacked,
    "transpose": _transposed,
    "slice": _sliced,
    **_named("dynamic_slice dynamic_update_slice", _part),
    "pad": _padded,
    "dot_general": _product,
    "conv_general_dilated": _convolved,
    **_named("reduce_window_sum reduce_window_max reduce_window_min", _windows),
    "gather": _gathered,
    **_named("scatter scatter-add scatter_add scatter-mul scatter_mul", _scattered),
}
"""By the name of the primitive."""
