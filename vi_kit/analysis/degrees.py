"""Programs as polynomials in the values of their sites: of which degree, or because of which operation not.

A value is, in each site on which it depends, a polynomial, the exponential of one, or neither. One rule per operation
says what an operation makes of its operands. Of some sites it is only asked whether a value jumps. The libraries read
their programs operation by operation (`vi_kit.pyro.degrees`, `vi_kit.numpyro.degrees`) and look the rules up here by
name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from array_api_compat import array_namespace

from vi_kit.base.demands import ContinuousBetween, Demand, Polynomial
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution
from vi_kit.costs.terms import Site
from vi_kit.estimators import Estimator


@dataclass(frozen=True, order=True)
class Cut:
    """An operation whose result takes steps: a truth value, a whole number, or a rounded one; or is infinite between
    one value and another.

    Attributes:
        where: the line of the program.
        name: of the operation.
        key: tells it apart from others of that name on that line.
    """

    where: str
    name: str
    key: int = 0

    def __str__(self) -> str:
        return f"{self.name} ({self.where})" if self.where else self.name


@dataclass(frozen=True)
class Form:
    """What a value is as a function of one site, all else fixed.

    Attributes:
        degree: of the polynomial.
        is_exp: whether it is the exponential of the polynomial, times a constant.
        blocker: the operation that made it neither.
        is_continuous: whether no more is asked than where it may jump.
        cuts: the operations because of which it may.
    """

    degree: int = 0
    is_exp: bool = False
    blocker: str | None = None
    is_continuous: bool = False
    cuts: frozenset[Cut] = frozenset()

    @property
    def is_constant(self) -> bool:
        return self == CONSTANT

    @property
    def reason(self) -> str | None:
        """Why it is not a polynomial, or not continuous."""
        if self.cuts:
            return str(min(self.cuts))
        return self.blocker or ("exp" if self.is_exp else None)


CONSTANT = Form()
CONTINUOUS = Form(is_continuous=True)

JUMPS = frozenset(
    "floor ceil round trunc sign sgn heaviside frac fmod remainder rem while floor_divide angle".split()
)
"""Operations that jump though their result is no whole number or truth value, by any library's name."""

POLES = {"div": 1, "reciprocal": 0, "rsqrt": 0, "addcdiv": 2, "pow": 0, "integer_pow": 0}
"""Operations that are infinite where an operand is zero, and may have another limit on either side; which operand, by
any library's name. Powers are if their exponent is negative."""


def negative_directions(matrix: Any) -> Any:
    """What changes where a matrix is singular and may have another inverse on either side: how many eigenvalues are
    negative, without those that are by rounding; if it is not symmetric, the sign of its determinant."""
    xp = array_namespace(matrix)
    if matrix.shape[-1] != matrix.shape[-2]:
        return xp.zeros_like(matrix)
    a = xp.where(xp.isfinite(matrix), matrix, xp.zeros_like(matrix))
    even, eps = (a + a.mT) / 2, float(xp.finfo(a.dtype).eps)
    values, size = xp.linalg.eigvalsh(even), xp.max(xp.abs(a), axis=(-2, -1))
    least = 4.0 * a.shape[-1] * eps * size
    is_even = xp.max(xp.abs(a - even), axis=(-2, -1)) <= eps**0.5 * size
    below = xp.sum(xp.astype(values < -least[..., None], a.dtype), axis=-1)
    return xp.where(is_even, below, xp.linalg.slogdet(a)[0])


INVERSES = frozenset(
    "inv solve _solve slogdet pinv linalg_inv_ex linalg_solve_ex linalg_slogdet linalg_pinv".split()
)
"""Operations that jump where their first operand is a singular matrix, by any library's name."""

SIDES: Mapping[str, Callable[..., Any]] = {
    "atan2": lambda y, x: y < 0,
    "tan": lambda x: (x / math.pi + 0.5) // 1,
    "copysign": lambda x, y: y < 0,
    "signbit": lambda x: x < 0,
    "threshold_backward": lambda slope, x, threshold: x > threshold,
    "leaky_relu_backward": lambda slope, x, *others: x > 0,
    "hardtanh_backward": lambda slope, x, low, high: (x > low) ^ (x >= high),
    **dict.fromkeys(
        ("hardsigmoid_backward", "hardswish_backward"), lambda slope, x: (x > -3.0) ^ (x >= 3.0)
    ),
    **dict.fromkeys(
        ("softshrink_backward", "hardshrink_backward"), lambda slope, x, edge: abs(x) > edge
    ),
    "prelu_kernel_backward": lambda slope, x, weight: x > 0,
    "elu_backward": lambda slope, alpha, scale, inner, is_result, x: (x > 0) & (alpha * inner != 1),
    **dict.fromkeys(INVERSES, lambda matrix, *others: negative_directions(matrix)),
}
"""Other operations that jump between values of their operands, and what changes there."""

GAPS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(
        "lt le gt ge less less_equal greater greater_equal".split(), lambda x, y: x - y
    ),
    **dict.fromkeys(("sign", "sgn"), lambda x: x),
}
"""Comparisons, by any library's name, and what changes its sign where their result does."""

TESTS = frozenset(("is_finite",))
"""Operations whose truth value is mostly about rounding and overflow: a change of it need not be seen."""

Degrees = Mapping[str, Form]
"""What a value is in each site on which it depends, by label."""

Rule = Callable[[str, Sequence[Form]], Form]
"""From the name of an operation, and what its operands are in a site, to what its result is."""


def derive(name: str, rule: Rule, operands: Sequence[Degrees]) -> dict[str, Form]:
    """What an operation makes of its operands, in each site. An operand that made no polynomial stays none."""
    found = {}
    for label in {label: None for operand in operands for label in operand}:
        forms = [operand.get(label, CONSTANT) for operand in operands]
        blocked = [f for f in forms if f.blocker]
        if blocked:
            form = blocked[0]
        elif any(f.is_continuous for f in forms):
            form = Form(is_continuous=True, cuts=frozenset().union(*(f.cuts for f in forms)))
        else:
            form = rule(name, forms)
        if not form.is_constant:
            found[label] = form
    return found


def stepped(operands: Degrees, cut: Cut, is_known: bool = False) -> dict[str, Form]:
    """What an operation made whose result takes steps.

    Args:
        operands: what they are together.
        cut: the operation.
        is_known: whether the steps are those of a library's distribution, or about rounding and overflow: they choose
            between formulas for one function, which does not jump.
    """

    def form(old: Form) -> Form:
        if old.is_continuous:
            return old if is_known else replace(old, cuts=old.cuts | {cut})
        return old if old.blocker else Form(blocker=cut.name)

    return {label: form(old) for label, old in operands.items()}


def parted(result: Degrees, operands: Degrees, cut: Cut) -> dict[str, Form]:
    """What an operation made that may jump in some of its operands."""
    return {
        label: replace(form, cuts=form.cuts | {cut})
        if form.is_continuous and label in operands
        else form
        for label, form in result.items()
    }


def start(demand: Demand | None) -> Form:
    """What the value of a site is in itself, if a degree is asked for; else whether something jumps."""
    return Form(1) if isinstance(demand, Polynomial) else CONTINUOUS


def unknown(name: str, forms: Sequence[Form]) -> Form:
    """Of an operation that has no rule."""
    return CONSTANT if all(f.is_constant for f in forms) else Form(blocker=name)


def linear(name: str, forms: Sequence[Form]) -> Form:
    """Sums, differences and means."""
    del name
    if any(f.is_exp for f in forms):
        return Form(blocker="exp")
    return Form(max(f.degree for f in forms))


def moved(name: str, forms: Sequence[Form]) -> Form:
    """Operands laid out anew, each element one of theirs."""
    live = [f for f in forms if not f.is_constant]
    if live and all(f.is_exp for f in live):
        return Form(max(f.degree for f in live), is_exp=True)
    return linear(name, forms)


def first_moved(name: str, forms: Sequence[Form]) -> Form:
    """The first operand laid out anew, as the others say."""
    return forms[0] if all(f.is_constant for f in forms[1:]) else Form(blocker=name)


def chosen(name: str, forms: Sequence[Form]) -> Form:
    """The first operand chooses between the others."""
    return moved(name, forms[1:]) if forms[0].is_constant else Form(blocker=name)


def product(name: str, forms: Sequence[Form]) -> Form:
    """Of elements."""
    live = [f for f in forms if not f.is_constant]
    if live and all(f.is_exp for f in live):
        return Form(max(f.degree for f in live), is_exp=True)
    return contraction(name, forms)


def contraction(name: str, forms: Sequence[Form]) -> Form:
    """Sums of products."""
    del name
    if any(f.is_exp for f in forms):
        return Form(blocker="exp")
    return Form(sum(f.degree for f in forms))


def quotient(name: str, forms: Sequence[Form]) -> Form:
    """The first operand divided by the second."""
    if forms[1].is_constant:
        return forms[0]
    if forms[1].is_exp:
        return product(name, forms)
    return Form(blocker=name)


def solved(name: str, forms: Sequence[Form]) -> Form:
    """The solution for a matrix and a right hand side."""
    return linear(name, forms[1:]) if forms[0].is_constant else Form(blocker=name)


def power(exponent: float | None) -> Rule:
    """The first operand to a power that is constant; `None` if it is not known which."""

    def rule(name: str, forms: Sequence[Form]) -> Form:
        base = forms[0]
        if any(not f.is_constant for f in forms[1:]):
            return Form(blocker=name)
        if base.is_constant or base.is_exp:
            return base
        if exponent is None or exponent < 0 or exponent != int(exponent):
            return Form(blocker=name)
        return Form(base.degree * int(exponent))

    return rule


def exponential(name: str, forms: Sequence[Form]) -> Form:
    (form,) = forms
    if form.is_exp:
        return Form(blocker=name)
    return Form(form.degree, is_exp=not form.is_constant)


def logarithm(name: str, forms: Sequence[Form]) -> Form:
    (form,) = forms
    if form.is_constant or form.is_exp:
        return Form(form.degree)
    return Form(blocker=name)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("sum", "total", "running total", "window total", "added at"), linear),
    **dict.fromkeys(("copy", "cast", "layout", "reshape", "memory", "triangle", "written"), moved),
    "lookup": first_moved,
    "choice": chosen,
    "mul": product,
    "contraction": contraction,
    "div": quotient,
    "triangular solve": solved,
    "square": power(2),
    "sqrt": power(0.5),
    "rsqrt": power(-0.5),
    "exp": exponential,
    "log": logarithm,
}
"""By the kind of an operation, or by its name where that is the same in all libraries."""


@dataclass(eq=False)
class DegreeProbe:
    """What a dry run notes in which the values of sites carry their degrees.

    Attributes:
        zeros: for each site whose estimator asks for a degree, a zero of degree one in it.
        terms: every term that was made: where it comes from, and its value.
        draws: the label of every site that is not reparameterised, and the log density of its value, which may not
            depend on these sites at all.
        used: where the terms of the objective come from.
        holds: whether terms of draws that are held are left out.
    """

    zeros: Mapping[str, Array]
    terms: list[tuple[str, Array]] = field(default_factory=list)
    draws: list[tuple[str, Array]] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    holds: bool = field(default=True, kw_only=True)

    def value(self, site: Site, dist: Distribution, estimator: Estimator) -> Array:
        """The value of a site."""
        if site.label in self.zeros:
            demand = estimator.demand(dist)
            assert isinstance(demand, Polynomial | ContinuousBetween)
            return demand.probe(dist, self.zeros[site.label])
        return dist.rsample() if dist.has_rsample else dist.sample()

    def held(self, value: Array) -> Array:
        """The value of a draw that is held."""
        return value

    def drawn(self, label: str, dist: Distribution, log_prob: Array) -> None:
        """Note the log density of a value."""
        if not dist.has_rsample:
            self.draws.append((label, log_prob))

    def values(self) -> list[Array]:
        """All whose degrees `found` asks for."""
        return [value for _, value in (*self.terms, *self.draws)]

    def forget(self) -> DegreeProbe:
        """What it noted, without the arrays."""
        terms = [(what, None) for what, _ in self.terms]
        return DegreeProbe({}, terms, [(label, None) for label, _ in self.draws], self.used)

    def found(self, degrees: Iterable[Degrees]) -> list[tuple[str, str, Form]]:
        """Where a term of the objective comes from, the label of a site, and what the term is in it.

        Args:
            degrees: of `values`.
        """
        remaining, entries = iter(degrees), []
        for what, _ in self.terms:
            entries += [(what, *item) for item in next(remaining).items() if what in self.used]
        for label, _ in self.draws:
            what = f"the draw of site {label!r}"
            above = {label: f for label, f in next(remaining).items() if not f.is_continuous}
            entries += [(what, label_above, Form(blocker=what)) for label_above in above]
        return entries
