"""Which polynomials a torch program computes: tensors that carry their degrees through every ATen operation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_iter, tree_map

from vi_kit.degrees import (
    DegreeProbe,
    Degrees,
    Form,
    Rule,
    chosen,
    contraction,
    derive,
    discrete,
    exponential,
    first_moved,
    linear,
    logarithm,
    moved,
    named,
    power,
    product,
    quotient,
    solved,
    start,
    unknown,
)
from vi_kit.plan import Plan
from vi_kit.pyro.distributions import is_validation


def degree_probe(plan: Plan) -> DegreeProbe:
    """A probe with a zero of degree one for each site whose estimator asks for a degree."""
    leaks: dict[str, Form] = {}
    return DegreeProbe(
        {
            label: Traced(torch.zeros(()), {label: start(degree)}, leaks)
            for label, degree in plan.degrees.items()
        }
    )


def degrees_found(probe: DegreeProbe) -> list[tuple[str, str, Form]]:
    """What the terms of a probe are, as `DegreeProbe.found` says it."""
    leaks = next(iter(probe.zeros.values())).leaks
    own = [v.degrees if isinstance(v, Traced) else {} for v in probe.values()]
    return probe.found({**degrees, **leaks} for degrees in own)


class Traced(torch.Tensor):
    """A tensor that knows what it is in each site.

    Attributes:
        plain: its values.
        degrees: what it is.
        leaks: sites of which something left the reach of tracing, shared by all tensors of a probe.
    """

    plain: torch.Tensor
    degrees: Degrees
    leaks: dict[str, Form]

    @staticmethod
    def __new__(cls, plain: torch.Tensor, degrees: Degrees, leaks: dict[str, Form]) -> Traced:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            plain.size(),
            strides=plain.stride(),
            storage_offset=plain.storage_offset(),
            dtype=plain.dtype,
            device=plain.device,
        )
        self.plain, self.degrees, self.leaks = plain, degrees, leaks
        return self

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Traced({self.plain!r}, {dict(self.degrees)})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*_plain(args), **_plain(kwargs))
        traced = [t for t in tree_iter((args, kwargs)) if isinstance(t, cls)]
        leaks, name = traced[0].leaks, func._schema.name.removeprefix("aten::")
        degrees = _degrees(name, args, kwargs)
        if func._schema.is_mutable:
            return _written(name, args, kwargs, degrees, leaks)

        by_distribution = is_validation(sys._getframe(1))

        def wrap(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            own = degrees if x.is_floating_point() else discrete(name, degrees, by_distribution)
            return cls(x, own, leaks)

        wrapped = tree_map(wrap, result)
        if not any(isinstance(x, torch.Tensor) for x in tree_iter(result)):
            if not by_distribution:
                _leak(leaks, degrees, "a value that became a Python number")
        return wrapped


def _plain(tree: Any) -> Any:
    return tree_map(lambda x: x.plain if isinstance(x, Traced) else x, tree)


def _leak(leaks: dict[str, Form], degrees: Degrees, what: str) -> None:
    leaks.update({label: Form(blocker=what) for label in degrees})


def _written(name: str, args: Any, kwargs: Any, degrees: Degrees, leaks: dict[str, Form]) -> Any:
    """The result of an operation that writes into its first operand, where that stays what it was."""
    target = kwargs.get("out", args[0])
    if not isinstance(target, Traced) or target.degrees != degrees:
        _leak(leaks, degrees, f"{name}, which writes in place")
    return target


def _of(x: Any) -> dict[str, Form]:
    """What an argument is; of a list, what its elements are together."""
    operands = [t.degrees for t in tree_iter(x) if isinstance(t, Traced)]
    return derive("list", moved, operands) if operands else {}


def _degrees(name: str, args: Any, kwargs: Any) -> dict[str, Form]:
    base = name.removesuffix("_") if name not in RULES else name
    if base in SPECIAL:
        return SPECIAL[base](base, *args, **kwargs)
    operands = [*map(_of, args), *map(_of, kwargs.values())]
    rule = RULES.get(base, unknown)
    if kwargs.get("rounding_mode"):
        return discrete(base, derive(base, unknown, operands), by_distribution=False)
    if _is_whole(kwargs.get("dtype")):
        rule = unknown
    return derive(base, rule, operands)


def _is_whole(dtype: Any) -> bool:
    return dtype is not None and not dtype.is_floating_point


def _sum(name: str, x: Any, y: Any, **kwargs: Any) -> dict[str, Form]:
    """Of two; transforms add a zero."""
    if isinstance(y, int | float) and y == 0:
        return derive(name, moved, [_of(x)])
    return derive(name, linear, [_of(x), _of(y)])


def _power(name: str, base: Any, exponent: Any, **kwargs: Any) -> dict[str, Form]:
    known = float(exponent) if isinstance(exponent, int | float) else None
    return derive(name, power(known), [_of(base), _of(exponent)])


def _added_product(name: str, x: Any, *factors: Any, **kwargs: Any) -> dict[str, Form]:
    both = derive(name, contraction, [_of(f) for f in factors[:2]])
    return derive(name, linear, [_of(x), both])


def _added_quotient(name: str, x: Any, top: Any, bottom: Any, **kwargs: Any) -> dict[str, Form]:
    both = derive(name, quotient, [_of(top), _of(bottom)])
    return derive(name, linear, [_of(x), both])


def _convolution(name: str, x: Any, weight: Any, bias: Any, *rest: Any) -> dict[str, Form]:
    return _added_product(name, bias, x, weight)


def _solved(name: str, matrix: Any, right: Any, **kwargs: Any) -> dict[str, Form]:
    return derive(name, solved, [_of(matrix), _of(right)])


def _xlogy(name: str, x: Any, y: Any) -> dict[str, Form]:
    return derive(name, product, [_of(x), derive("log", logarithm, [_of(y)])])


def _reciprocal(name: str, x: Any) -> dict[str, Form]:
    return derive(name, quotient, [{}, _of(x)])


def _constant(name: str, *args: Any, **kwargs: Any) -> dict[str, Form]:
    return {}


RULES: Mapping[str, Rule] = {
    **named("rsub neg sum mean cumsum trace", linear),
    **named("view _unsafe_view reshape expand permute transpose t squeeze unsqueeze", moved),
    **named("select slice narrow clone detach detach_ alias contiguous _to_copy to", moved),
    **named("unbind split split_with_sizes chunk as_strided unfold flip roll diagonal", moved),
    **named("repeat positive lift_fresh cat stack copy tril triu diag_embed", moved),
    **named("constant_pad_nd _reshape_alias", moved),
    **named("index gather index_select masked_fill masked_select", first_moved),
    **named("mul", product),
    **named("mm bmm mv dot", contraction),
    **named("div", quotient),
    **named("square", power(2)),
    **named("sqrt", power(0.5)),
    **named("rsqrt", power(-0.5)),
    **named("exp", exponential),
    **named("log", logarithm),
    **named("where", chosen),
}
"""By the name of the ATen operation."""

SPECIAL: Mapping[str, Callable[..., dict[str, Form]]] = {
    **dict.fromkeys(("add", "sub"), _sum),
    "pow": _power,
    **dict.fromkeys(("addmm", "addmv", "baddbmm", "addbmm", "addcmul", "addr"), _added_product),
    "addcdiv": _added_quotient,
    "convolution": _convolution,
    "linalg_solve_triangular": _solved,
    "reciprocal": _reciprocal,
    "xlogy": _xlogy,
    **dict.fromkeys(
        "zeros_like ones_like full_like empty_like rand_like randn_like".split(), _constant
    ),
    **dict.fromkeys("new_zeros new_ones new_full new_empty new_empty_strided".split(), _constant),
}
"""Those whose operands are of different kinds, and those that look at shapes only."""
