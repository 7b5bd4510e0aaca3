"""Which JAX programs see several elements of a plate at once.

Of which elements of a plate each entry of an array is made is read off the jaxpr, equation by equation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from vi_kit.analysis.mixing import (
    NOTHING,
    NOWHERE,
    SEVERAL,
    Along,
    MixingProbe,
    Place,
    along,
    broadcast,
    find,
    gathered,
    joined,
    merged,
    moved,
    only,
    spread_out,
    together,
)
from vi_kit.base.named import Axis
from vi_kit.costs.terms import Site
from vi_kit.engine.run import Run
from vi_kit.numpyro.degrees import CALLS, bound

Places = Mapping[int, Place]
"""By the number of each plate."""

Numbers = Callable[[Any], Any]
"""The value of an atom, if it is the same at every call of the program, else `None`."""

Rule = Callable[[Any, Sequence[Along], Numbers], Any]
"""From an equation and where elements lie in its operands to where they lie in its results, a `Place`, or in each of
them, a list."""


def find_mixed_in(
    plates: Sequence[Axis], inputs: Sequence[Any], execute: Callable[[MixingProbe, list[Any]], Run]
) -> set[tuple[str, Axis]]:
    """Which terms see several elements of which plates.

    Args:
        plates: to be looked at.
        inputs: numbers for what is not known while the step is traced.
        execute: makes a dry run with a probe, given these.
    """
    kinds: list[tuple[str, tuple[Axis, ...]]] = []

    def terms(marks: list[Any], inputs: list[Any]) -> list[Any]:
        by_plate = dict(zip(plates, marks, strict=True))

        def draw(site: Site, dist: Any) -> Any:
            made = jax.eval_shape(dist.sample)
            value = jnp.zeros(made.shape, made.dtype)
            for axis in by_plate.keys() & site.axes:
                trailing = axis.order - 1 + len(dist.event_shape)
                mark = by_plate[axis].reshape((axis.size, *(1,) * trailing))
                value = jnp.where(mark, value, value)
            return value

        probe = MixingProbe({}, draw=draw)
        terms = execute(probe, inputs).terms
        kinds[:] = [(t.label, t.base.axes) for t in terms]
        return [t.base.array for t in terms]

    closed = jax.make_jaxpr(terms)([np.ones(plate.size, bool) for plate in plates], list(inputs))
    start = [{i: along(0, range(1, plate.size + 1))} for i, plate in enumerate(plates)]
    others: list[Places] = [{} for _ in jax.tree.leaves(inputs)]
    found = places(closed, [*start, *others])
    return find(plates, [(*kind, of) for kind, of in zip(kinds, found, strict=True)])


def places(
    jaxpr: ClosedJaxpr | Jaxpr, inputs: Sequence[Places], numbers: Sequence[Callable] | None = None
) -> list[dict[int, Place]]:
    """Of the outputs, given those of the inputs.

    Args:
        jaxpr: of a function.
        inputs: where elements lie in its arguments.
        numbers: find what is known of their values.
    """
    body: Any = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    known: dict[Any, Places] = dict(zip(body.invars, inputs, strict=True))
    made_by = {v: e for e in body.eqns for v in e.outvars}
    values: dict[Any, Any] = {}
    if isinstance(jaxpr, ClosedJaxpr):
        consts = zip(body.constvars, jaxpr.consts, strict=True)
        values.update((v, c) for v, c in consts if not isinstance(c, Tracer))
    at = dict(zip(body.invars, numbers or [], strict=False))

    def of(atom: Any) -> Places:
        return {} if isinstance(atom, Literal) else known.get(atom, {})

    def number(atom: Any) -> Any:
        if isinstance(atom, Literal):
            return atom.val
        if atom not in values:
            values[atom] = at[atom]() if atom in at else None
            equation = made_by.get(atom)
            if equation is not None and not of(atom):
                operands = [number(a) for a in equation.invars]
                if all(x is not None for x in operands) and not equation.effects:
                    made = _evaluated(equation, operands)
                    values.update(zip(equation.outvars, made, strict=True))
        return values[atom]

    for equation in body.eqns:
        operands = [of(atom) for atom in equation.invars]
        if any(operands):
            known.update(zip(equation.outvars, _results(equation, operands, number), strict=True))
    return [dict(of(atom)) for atom in body.outvars]


def _evaluated(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The results of an equation, as far as there are some."""
    try:
        with jax.ensure_compile_time_eval():
            return bound(equation, operands)
    except Exception:  # it may be one that only compiled programs have
        return [None] * len(equation.outvars)


def _results(
    equation: Any, operands: Sequence[Places], number: Numbers
) -> Sequence[dict[int, Place]]:
    name, params = equation.primitive.name, equation.params
    plates = {n: None for operand in operands for n in operand}
    if name in CALLS and CALLS[name] in params:
        numbers = [lambda atom=atom: number(atom) for atom in equation.invars]
        return places(params[CALLS[name]], operands, numbers)
    if name == "cond":
        branches = [places(b, operands[1:]) for b in params["branches"]]
        both = [joined(group) for group in zip(*branches, strict=True)]
        return [{**of, **dict.fromkeys(operands[0], None)} for of in both]
    if name == "scan":
        return _scanned(params, operands)
    if name == "while":
        return _repeated(params, operands)
    results: list[dict[int, Place]] = [{} for _ in equation.outvars]
    for n in plates:
        own = [operand.get(n, NOTHING) for operand in operands]
        known = [place for place in own if place is not None]
        found: Any = None
        if len(known) == len(own) and name in RULES:
            found = RULES[name](equation, known, number)
        each = found if isinstance(found, list) else [found] * len(results)
        for of, place in zip(results, each, strict=True):
            if place != NOTHING:
                of[n] = place
    return results


def _scanned(params: Mapping[str, Any], operands: Sequence[Places]) -> Sequence[dict[int, Place]]:
    consts, carries = params["num_consts"], params["num_carry"]
    fixed, carry = list(operands[:consts]), [dict(c) for c in operands[consts : consts + carries]]
    steps: dict[int, tuple[int, ...]] = {}
    known = [place for x in operands for place in x.values() if place is not None]
    lowest = min([SEVERAL, *(element for place in known for element in place.elements)])
    xs = [
        {n: _of_a_step(place, steps, lowest) for n, place in x.items()}
        for x in operands[consts + carries :]
    ]
    while True:  # each round, something is found that is joined
        results = places(params["jaxpr"], [*fixed, *carry, *xs])
        kept = [{n: _kept(p, steps) for n, p in c.items()} for c in results[:carries]]
        both = [joined(pair) for pair in zip(carry, kept, strict=True)]
        if both == carry:
            ys = results[carries:]
            return [*carry, *({n: _of_all_steps(p, steps) for n, p in y.items()} for y in ys)]
        carry = both


def _of_a_step(place: Place, steps: dict[int, tuple[int, ...]], lowest: int) -> Place:
    """Of what a loop sees of an array along whose first dim it goes. The element of a step has its own number, below
    the lowest of those around the loop."""
    if place is None or place.dim == NOWHERE:
        return place
    if place.dim > 0:
        return moved(place, place.dim - 1)
    known = {elements: number for number, elements in steps.items()}
    number = known.setdefault(place.elements, lowest - 1 - len(steps))
    steps[number] = place.elements
    return Along(NOWHERE, (number,))


def _of_all_steps(place: Place, steps: Mapping[int, tuple[int, ...]]) -> Place:
    """Of what is made of the results of all steps."""
    if place is None:
        return None
    if steps.keys() & set(place.elements):
        element = only(place) if max(place.elements) <= 0 else None
        own = min(place.elements)
        is_one = element is not None and set(place.elements) <= {0, own}
        return along(0, steps[own]) if is_one else None
    return moved(place, place.dim + 1)


def _kept(place: Place, steps: Mapping[int, Any]) -> Place:
    """Of what a loop hands on: the elements of several steps meet in it."""
    return None if place is not None and steps.keys() & set(place.elements) else place


def _repeated(params: Mapping[str, Any], operands: Sequence[Places]) -> Sequence[dict[int, Place]]:
    num_test, num_body = params["cond_nconsts"], params["body_nconsts"]
    of_test = list(operands[:num_test])
    fixed = list(operands[num_test : num_test + num_body])
    carry = [dict(c) for c in operands[num_test + num_body :]]
    while True:
        results = places(params["body_jaxpr"], [*fixed, *carry])
        (told,) = places(params["cond_jaxpr"], [*of_test, *carry])
        lost = [dict[int, Place].fromkeys(told, None) for _ in carry]
        both = [joined(group) for group in zip(carry, results, lost, strict=True)]
        if both == carry:
            return carry
        carry = both


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(atom.aval.shape)


def _elementwise(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    shape = _shape(equation.outvars[0])
    pairs = zip(equation.invars, places, strict=True)
    return together(broadcast(p, _shape(v), shape) for v, p in pairs)


def _rearranged(equation: Any, places: Sequence[Along], number: Numbers) -> list[Place]:
    """Of operations that leave numbers as they are: the same is done with the elements of which they are made."""
    del number
    pairs = zip(equation.invars, places, strict=True)
    elements = [spread_out(p, _shape(v)) for v, p in pairs]
    if equation.primitive.name in VIEWS:
        return [gathered(VIEWS[equation.primitive.name](elements[0], equation))]
    return _of_elements(equation, elements)


def _broadcast_in_dim(x: np.ndarray, equation: Any) -> np.ndarray:
    shape, dims = _shape(equation.outvars[0]), equation.params["broadcast_dimensions"]
    sizes = dict(zip(dims, x.shape, strict=True))
    return np.broadcast_to(x.reshape([sizes.get(d, 1) for d in range(len(shape))]), shape)


def _sliced(x: np.ndarray, equation: Any) -> np.ndarray:
    params = equation.params
    steps = params["strides"] or (1,) * x.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return x[tuple(slice(*bound) for bound in bounds)]


VIEWS: Mapping[str, Callable[[np.ndarray, Any], np.ndarray]] = {
    "reshape": lambda x, equation: x.reshape(_shape(equation.outvars[0])),
    "squeeze": lambda x, equation: x.reshape(_shape(equation.outvars[0])),
    "expand_dims": lambda x, equation: x.reshape(_shape(equation.outvars[0])),
    "broadcast_in_dim": _broadcast_in_dim,
    "transpose": lambda x, equation: x.transpose(equation.params["permutation"]),
    "slice": _sliced,
    "rev": lambda x, equation: np.flip(x, equation.params["dimensions"]),
}
"""Rearrangements that take no memory."""


def _of_elements(equation: Any, operands: Sequence[Any]) -> list[Place]:
    with jax.ensure_compile_time_eval():
        return [gathered(np.asarray(x)) for x in bound(equation, [*map(jnp.asarray, operands)])]


def _outside(name: str) -> Rule:
    """Of operations along the dims that a parameter names, which stay."""

    def rule(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
        dims, place = equation.params[name], _elementwise(equation, places, number)
        dims = dims if isinstance(dims, tuple) else (dims,)
        return merged(place) if place is not None and place.dim in dims else place

    return rule


def _reduced(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    dims, place = equation.params["axes"], together(places)
    if place is None or place.dim == NOWHERE:
        return place
    if place.dim in dims:
        return merged(place)
    return moved(place, place.dim - sum(d < place.dim for d in dims))


def _before_the_last(num: int) -> Rule:
    """Of functions of so many dims at the end."""

    def rule(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
        del number
        pairs = zip(equation.invars, places, strict=True)
        return together(merged(p) if p.dim >= len(_shape(v)) - num else p for v, p in pairs)

    return rule


def _solved(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    """Of equations with several right sides, each by itself."""
    matrix, right = places
    by_itself = len(_shape(equation.invars[1])) - (1 if equation.params["left_side"] else 2)
    if matrix == NOTHING and right.dim == by_itself:
        return right
    return _before_the_last(2)(equation, places, number)


def _solved_by_functions(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    place = together(places)
    spread = [v for v, p in zip(equation.invars, places, strict=True) if p.dim != NOWHERE]
    is_batch = place is not None and all(place.dim < len(_shape(v)) - 1 for v in spread)
    return place if is_batch and all(place == p for p in places if p.dim != NOWHERE) else None


def _transformed(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    return _before_the_last(len(equation.params["fft_lengths"]))(equation, places, number)


def _numbered(first: int) -> Rule:
    """Of operations at indices, the arguments from a number on: of what is rearranged, if they are known."""

    def rule(equation: Any, places: Sequence[Along], number: Numbers) -> Place | list[Place]:
        indices = [number(a) for a in equation.invars[first:]]
        if any(p != NOTHING for p in places[first:]):
            return None
        if all(i is not None for i in indices):
            arrays = zip(equation.invars[:first], places, strict=False)
            return _of_elements(
                equation, [*(spread_out(p, _shape(v)) for v, p in arrays), *indices]
            )
        part = equation.outvars[0] if first == 1 else equation.invars[1]
        sizes, place = zip(_shape(part), _shape(equation.invars[0]), strict=True), together(places)
        whole = [d for d, (size, all_of_it) in enumerate(sizes) if size == all_of_it]
        return place if place is None or place.dim in (*whole, NOWHERE) else merged(place)

    return rule


def _gathered(equation: Any, places: Sequence[Along], number: Numbers) -> Place | list[Place]:
    own, at = places
    indices = number(equation.invars[1])
    if at == NOTHING and indices is not None:
        return _of_elements(equation, [spread_out(own, _shape(equation.invars[0])), indices])
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = _shape(equation.invars[0])
    out = range(len(_shape(equation.outvars[0])))
    of_indices = [d for d in out if d not in numbers.offset_dims]
    if at.dim != NOWHERE:
        if at.dim >= len(of_indices):
            return None
        at = moved(at, of_indices[at.dim])
    if own.dim in numbers.operand_batching_dims:
        i = numbers.operand_batching_dims.index(own.dim)
        own = moved(own, of_indices[numbers.start_indices_batching_dims[i]])
    elif own.dim != NOWHERE:
        gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        if own.dim in gone or sizes[own.dim] != shape[own.dim]:
            return together([merged(own), at])
        kept = [d for d in range(len(shape)) if d not in gone]
        own = moved(own, numbers.offset_dims[kept.index(own.dim)])
    return together([own, at])


def _scattered(equation: Any, places: Sequence[Along], number: Numbers) -> Place | list[Place]:
    own, at, updates = places
    indices, shape = number(equation.invars[1]), _shape(equation.invars[0])
    if at == NOTHING and indices is not None and equation.primitive.name == "scatter":
        elements = [spread_out(p, _shape(v)) for v, p in zip(equation.invars, places, strict=True)]
        elements[1] = np.asarray(indices)
        return _of_elements(equation, elements)
    numbers = equation.params["dimension_numbers"]
    gone = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = dict(
        zip(
            numbers.update_window_dims, (d for d in range(len(shape)) if d not in gone), strict=True
        )
    )
    sizes = _shape(equation.invars[2])
    whole = {to for of, to in windows.items() if sizes[of] == shape[to]}
    if updates.dim != NOWHERE:
        updates = moved(updates, windows[updates.dim]) if updates.dim in windows else None
    found = together([own, updates])
    is_whole = found is not None and found.dim in (*whole, NOWHERE)
    return found if at == NOTHING and is_whole else None


def _product(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    contracted, batch = equation.params["dimension_numbers"]
    found: list[Place] = []
    free = [
        [d for d in range(len(_shape(v))) if d not in (*batch[side], *contracted[side])]
        for side, v in enumerate(equation.invars)
    ]
    for side, place in enumerate(places):
        if place.dim in contracted[side]:
            place = merged(place)
        elif place.dim in batch[side]:
            place = moved(place, batch[side].index(place.dim))
        elif place.dim != NOWHERE:
            place = moved(place, len(batch[0]) + len(free[0]) * side + free[side].index(place.dim))
        found.append(place)
    return together(found)


def _convolved(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    numbers, (rows, kernel) = equation.params["dimension_numbers"], places
    if rows.dim == NOWHERE and kernel.dim == NOWHERE:
        return together(places)
    is_batch = rows.dim == numbers.lhs_spec[0] and equation.params["batch_group_count"] == 1
    return together([moved(rows, numbers.out_spec[0]), kernel]) if is_batch else None


def _windows(equation: Any, places: Sequence[Along], number: Numbers) -> Place:
    del number
    place, params = together(places), equation.params
    if place is None or place.dim == NOWHERE:
        return place
    names = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    alone = all(params.get(name, (1,) * 99)[place.dim] == 1 for name in names)
    return place if alone and params["padding"][place.dim] == (0, 0) else merged(place)


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
    **_named("shift_right_arithmetic population_count clz real imag conj complex", _elementwise),
    **_named("convert_element_type reduce_precision stop_gradient copy copy_p", _elementwise),
    **_named("optimization_barrier vi_kit_term", _elementwise),
    **_named("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or", _reduced),
    **_named("argmax argmin", _reduced),
    **_named("reshape broadcast_in_dim squeeze expand_dims transpose slice rev", _rearranged),
    **_named("concatenate pad stack unstack split", _rearranged),
    **_named("cumsum cumprod cummax cummin cumlogsumexp", _outside("axis")),
    **_named("sort", _outside("dimension")),
    **_named("cholesky lu eigh qr svd lu_pivots_to_permutation", _before_the_last(2)),
    "top_k": _before_the_last(1),
    "fft": _transformed,
    "triangular_solve": _solved,
    "custom_linear_solve": _solved_by_functions,
    "dynamic_slice": _numbered(1),
    "dynamic_update_slice": _numbered(2),
    "gather": _gathered,
    **_named("scatter scatter-add scatter_add scatter-mul scatter_mul", _scattered),
    "dot_general": _product,
    "conv_general_dilated": _convolved,
    **_named("reduce_window_sum reduce_window_max reduce_window_min", _windows),
}
"""By the name of the primitive."""
