"""Quadrature: the expectation over a continuous value as a weighted sum over a few nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from array_api_compat import array_namespace

from vi_kit.base.demands import Demand, Polynomial
from vi_kit.base.errors import ObjectiveError, message, whole_number
from vi_kit.base.layouts import Gradient, Layout, Worlds
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution, Push
from vi_kit.costs.downstream import Downstream
from vi_kit.costs.terms import Term
from vi_kit.estimators.base import Estimator, Expansion
from vi_kit.estimators.tables.quadrature_rules import RULES, along, floating, hermite, spherical

NUM_NODES = 8
"""Of a scalar, if the user does not say how many."""
MAX_NODES = 150
"""NumPy's rules overflow not far beyond."""


@dataclass(frozen=True)
class Quadrature(Estimator):
    r"""A rule, $\nabla_\theta \sum_i w_i f(z_i(\theta))$, whose nodes move with the parameters: no noise at all.

    Gauss rules: Hermite for Normal, Laguerre for Exponential and Gamma, Legendre for Uniform, Jacobi for Beta. They are
    exact for polynomials of degree at most 2 n - 1 with n nodes, and so are their gradients, by concentrations too. A
    vector of D > 1 Normal elements, or a MultivariateNormal, has 2 D nodes $\mu \pm \sqrt{D} L e_i$ of equal weights,
    exact to degree 3. The degree counts in the elements: in log z for a LogNormal.

    The degree of every term is proved before the first gradient, from the operations of the program; what is not
    proved is refused. With `biased=True` it is not asked for; `vi.quadrature_error` then estimates the error. Inside a
    nonlinear function of replicates (`iwae`), which is no polynomial, that is needed: the rule is then applied to all
    joint values of the replicates while these number at most `max_worlds`; beyond that one node is drawn for each.

    Unbiased when: every term is a polynomial in the elements of the site, of degree at most 2 n - 1, or 3 for a vector
        (`biased=True`: never, but the error falls fast with n where the cost is smooth).
    Needs: Normal, Exponential, Gamma, Uniform or Beta elements (vectors: of Normal elements) or a MultivariateNormal.
    Cost: n evaluations of the model; 2 D for a vector of D; those of sites that meet in one term multiply.
    Variance: zero on a linear cost (`elbo`).
    Use for: few smooth continuous sites; costs that are polynomials, such as conjugate Normal models.

    Args:
        num_nodes: of a scalar, 8 if left out; a vector takes none.
        biased: whether costs may be other than polynomials.
        max_worlds: largest number of joint values that a nonlinear function may sum over.

    Raises:
        ObjectiveError: fewer than one node, or more than 150.

    Example:
        >>> Quadrature(2)
        Quadrature(num_nodes=2, biased=False, max_worlds=1024)

    References:
        Golub and Welsch 1969, Calculation of Gauss Quadrature Rules.
        Arasaratnam and Haykin 2009, Cubature Kalman Filters (for vectors).
    """

    gradient: ClassVar[Gradient] = Gradient.PART
    num_nodes: int | None = None
    biased: bool = field(default=False, kw_only=True)
    max_worlds: int = field(default=1024, kw_only=True)
    is_second: bool = field(default=False, kw_only=True, repr=False)

    def __post_init__(self) -> None:
        if self.num_nodes is None:
            return
        if whole_number("Quadrature", "num_nodes", self.num_nodes) > MAX_NODES + 2 * self.is_second:
            raise ObjectiveError(
                message(
                    f"Quadrature: num_nodes must be at most {MAX_NODES}",
                    got=f"num_nodes={self.num_nodes}",
                    expected=f"an int from 1 to {MAX_NODES}",
                    fix=f"num_nodes={MAX_NODES}, or Reparam() for a cost that needs more",
                )
            )

    def second_rule(self) -> Estimator:
        """Two more nodes; for a vector, as many on other axes."""
        more = None if self.num_nodes is None else self.num_nodes + 2
        return replace(self, num_nodes=more, is_second=True)

    def layout(self, dist: Distribution) -> Layout:
        size = math.prod(dist.event_shape)
        return Worlds(self._num_nodes if size == 1 else 2 * size, self.max_worlds)

    @property
    def _num_nodes(self) -> int:
        return self.num_nodes or NUM_NODES + 2 * self.is_second

    def demand(self, dist: Distribution) -> Demand | None:
        if self.biased:
            return None
        is_scalar = math.prod(dist.event_shape) == 1
        degree = 2 * self._num_nodes - 1 if is_scalar else 3
        return Polynomial(degree, self._probe, self._for_degree)

    def _probe(self, dist: Distribution, zero: Array) -> Array:
        values, _, push = self._rule(dist)
        return push(values[0, ...] + zero)

    def _for_degree(self, degree: int) -> Estimator | None:
        return None if self.num_nodes is None else replace(self, num_nodes=degree // 2 + 1)

    def reason_against(self, dist: Distribution) -> str | None:
        elements, size = dist.elementary(), math.prod(dist.event_shape)
        is_normal = elements is not None and elements.family == "Normal"
        if not is_normal and dist.gaussian() is None:
            names = f"Normal, {', '.join(RULES)} elements and MultivariateNormal"
            if elements is None or elements.family not in RULES:
                return f"has no rule for {dist.name}; it has one for {names}"
            if size > 1:
                return f"has no rule for an event of {size} {elements.family} elements, only of Normal ones"
        if size > 1 and self.num_nodes is not None:
            return f"takes no num_nodes for an event of {size} elements: its rule has {2 * size}"
        return None

    def expand(self, dist: Distribution) -> Expansion:
        values, weights, push = self._rule(dist)
        return Expansion(push(values), is_worlds=True, weights=weights)

    def contract(self, downstream: Downstream) -> list[Term]:
        return downstream.by_worlds()

    def _rule(self, dist: Distribution) -> tuple[Array, Array, Push]:
        """Nodes of the elements, their weights, and the map from elements to values."""
        batch_ndim, gaussian = len(dist.batch_shape), dist.gaussian()
        if gaussian is not None:
            loc, scale_tril, push = gaussian
            standard, weights = self._standard(loc, batch_ndim, loc.shape[-1:])
            xp = array_namespace(loc)
            steps = xp.matmul(scale_tril, standard[..., None])[..., 0]
            return loc + steps, weights, push
        elements = dist.elementary()
        assert elements is not None
        if elements.family == "Normal":
            loc, scale = floating(elements.params["loc"], elements.params["scale"])
            standard, weights = self._standard(loc, batch_ndim, dist.event_shape)
            return loc + scale * standard, weights, elements.push
        params = dict(zip(elements.params, floating(*elements.params.values()), strict=True))
        values, weights = RULES[elements.family](params, self._num_nodes)
        weights = weights[(..., *(0,) * elements.event_ndim)]
        return values, weights, elements.push

    def _standard(
        self, like: Array, batch_ndim: int, event_shape: tuple[int, ...]
    ) -> tuple[Array, Array]:
        """The rule of standard normal vectors, with ones for the batch dims."""
        size = math.prod(event_shape)
        if size == 1:
            nodes, weights = hermite(self._num_nodes)
        else:
            nodes = spherical(size, self.is_second)
            weights = nodes[:, 0] * 0.0 + 1.0 / len(nodes)
        xp = array_namespace(like)
        flat = along(nodes.ravel(), like, 0)
        shape = (len(nodes), *(1,) * batch_ndim, *event_shape)
        return xp.reshape(flat, shape), along(weights, like, batch_ndim)
