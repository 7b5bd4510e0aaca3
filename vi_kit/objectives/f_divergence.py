"""f-divergences between the model's posterior and the guide."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from array_api_compat import array_namespace

from vi_kit.base.context import current
from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import Array
from vi_kit.costs.cost import Cost
from vi_kit.language.programs import Program
from vi_kit.language.refusals import refuse_estimated, refuse_others
from vi_kit.language.words import (
    SettingRange,
    SettingRule,
    divergence,
    iid,
    log_density,
    log_mean_exp,
    objective,
    simulate,
    stop_gradient,
)
from vi_kit.objectives.importance_weighted import log_weight


@dataclass(frozen=True)
class Generator:
    r"""The convex function of an f-divergence $D_f(p \| q) = E_q[f(p / q)]$, with $f(1) = 0$.

    Args:
        name: for printing.
        fn: takes an array of positive density ratios and returns one of the same shape, by operators and
            functions of the array API standard.
        of_log: whether `fn` takes the logarithms of the ratios instead, which is safer.

    Raises:
        ObjectiveError: not zero at 1, or not convex, as far as a grid of ratios from 0.001 to 1000 tells.

    Example:
        >>> Generator("squared", lambda u: (u - 1) ** 2)
        Generator('squared')
        >>> Generator("kl", lambda u: u * array_namespace(u).log(u))  # vi.array_namespace
        Generator('kl')
    """

    name: str
    fn: Callable[[Array], Array]
    of_log: bool = False

    def __call__(self, log_u: Array) -> Array:
        """The value at ratios that are given by their logarithms."""
        return self.fn(log_u if self.of_log else array_namespace(log_u).exp(log_u))

    def __post_init__(self) -> None:
        u = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 401))
        values, eps = self._evaluated(np.log(u))
        at_one = self._evaluated(np.zeros(1))[0]
        problem = None
        if values.shape != u.shape or at_one.shape != (1,):
            problem = f"returns shape {values.shape} for {u.shape}", "an array of the same shape"
        elif not np.isfinite(values).all():
            problem = "is not finite", "a finite value at every positive ratio"
        elif abs(at_one[0]) > 1e-9 + 16 * eps:
            problem = f"is {at_one[0]:.3g} at 1", "f(1) = 0; subtract the constant"
        else:
            change = np.diff(np.diff(values) / np.diff(u))
            rounding = 64 * eps * (1 + np.abs(values[1:-1])) / np.diff(u)[:-1] + 1e-9
            if (change < -rounding).any():
                where = u[1:-1][change < -rounding][0]
                problem = f"is not convex near {where:.3g}", "a convex function"
        if problem:
            raise self._error(*problem)

    def _evaluated(self, log_u: np.ndarray) -> tuple[np.ndarray, float]:
        """Values and the precision that they were computed with, by whichever arrays the function takes."""
        libraries = {"torch": "from_numpy", "jax.numpy": "asarray"}
        found = [(m, make) for m, make in libraries.items() if m in sys.modules]
        makers = [np.asarray, *(getattr(sys.modules[module], make) for module, make in found)]
        errors = []
        for make in makers:
            try:
                values = self(make(log_u))
                kind = str(getattr(values, "dtype", "float64")).removeprefix("torch.")
                return np.asarray(values, dtype=float), float(np.finfo(kind).eps)
            except Exception as error:  # of whatever library it is
                errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        raise self._error(
            f"cannot be evaluated: {errors[-1]}",
            "a function of an array by operators, or by functions of vi.array_namespace(array)",
        )

    def _error(self, problem: str, expected: str) -> ObjectiveError:
        return ObjectiveError(
            message(
                f"generator {self.name!r} {problem}",
                got=self.name,
                expected=expected,
                fix="one of vi.generators, or a convex function that is zero at 1",
            )
        )

    def __repr__(self) -> str:
        return f"Generator({self.name!r})"


class _Known(Generator):
    """One of the generators below, which a test checks: not checked again at each import."""

    def __post_init__(self) -> None:
        pass


def _exp(v: Array) -> Array:
    return array_namespace(v).exp(v)


def _expm1(v: Array) -> Array:
    return array_namespace(v).expm1(v)


def _jensen_shannon(v: Array) -> Array:
    xp = array_namespace(v)
    log_middle = xp.logaddexp(v, xp.zeros_like(v)) - math.log(2.0)
    return 0.5 * (_exp(v) * (v - log_middle) - log_middle)


forward_kl = _Known("forward_kl", lambda v: _exp(v) * v, of_log=True)
reverse_kl = _Known("reverse_kl", lambda v: -v, of_log=True)
jensen_shannon = _Known("jensen_shannon", _jensen_shannon, of_log=True)
squared_hellinger = _Known("squared_hellinger", lambda v: _expm1(0.5 * v) ** 2, of_log=True)
pearson = _Known("pearson", lambda v: _expm1(v) ** 2, of_log=True)
neyman = _Known("neyman", lambda v: _expm1(v) ** 2 * _exp(-v), of_log=True)
total_variation = _Known("total_variation", lambda v: 0.5 * abs(_expm1(v)), of_log=True)


def alpha(a: float) -> Generator:
    """The alpha-divergence $f(u) = (u^a - 1 - a (u - 1)) / (a (a - 1))$; `a = 1` is the forward KL divergence and
    `a = 0` the reverse one."""
    if a == 1.0:
        return forward_kl
    if a == 0.0:
        return reverse_kl
    return Generator(
        f"alpha({a:g})",
        lambda v: (_expm1(a * v) - a * _expm1(v)) / (a * (a - 1.0)),
        of_log=True,
    )


def tsallis(q: float) -> Generator:
    """The Tsallis relative entropy $f(u) = (u^q - u) / (q - 1)$ for positive q; `q = 1` is the forward KL
    divergence."""
    if q == 1.0:
        return forward_kl
    return Generator(f"tsallis({q:g})", lambda v: (_exp(q * v) - _exp(v)) / (q - 1.0), of_log=True)


def is_generator(value: object) -> bool:
    return isinstance(value, Generator)


@divergence
def f_divergence(
    model: Program,
    guide: Program,
    *,
    generator: Annotated[
        Generator, SettingRule(is_generator, "be a vi.Generator", "vi.generators.pearson")
    ],
    num_particles: int,
    normalized: bool = False,
) -> Cost:
    r"""$E_q[f(p / q)]$, without units; minimised. One per element of the plates that all terms share.

    With `normalized`, the model is a normalised program with the guide's sites and nothing observed: value
    and gradient are unbiased. Without, $p$ is the posterior and the ratios are self-normalised,
    $u_k = K w_k / \sum_j w_j$: the gradient is unbiased for the expected value of that estimate, which is only
    consistent for the divergence as `num_particles` grows.

    Args:
        generator: one of `vi.generators`, or a `vi.Generator` of your own.
        num_particles: draws from the guide.
        normalized: whether the model's density integrates to one.

    Example:
        >>> f_divergence(generator=squared_hellinger, num_particles=10)
        f_divergence(generator=Generator('squared_hellinger'), num_particles=10, normalized=False)

    References:
        Wan, Li and Hovakimyan 2020, f-Divergence Variational Inference.
    """

    if not normalized and num_particles == 1:
        current().refuse(
            message(
                "f_divergence: the ratio of one particle to its own mean is one, whatever the guide",
                got="num_particles=1, normalized=False",
                expected="several particles, or a normalised model",
                fix="num_particles=10, or normalized=True for a model without data",
            ),
            of_estimator=False,
        )

    def mean(log_w: Array) -> Array:
        xp = array_namespace(log_w)
        log_u = log_w if normalized else log_w - log_mean_exp(log_w)
        return xp.mean(generator(log_u), axis=0)

    return iid(lambda: log_weight(model, guide, normalized), num_particles).reduce(mean)


@objective
def tail_adaptive(
    model: Program,
    guide: Program,
    *,
    num_particles: int,
    beta: Annotated[float, SettingRange(-10.0, 10.0)] = -1.0,
) -> Cost:
    r"""$\sum_k \gamma_k \log w_k$ with weights $\gamma_k \propto \hat F(w_k)^\beta$ that are held fixed, in nats;
    maximised. $\hat F(w)$ is the share of draws whose weight is at least $w$.

    The gradient goes along the path of the draws, with the guide's parameters held in $\log q$. It is that of an
    f-divergence which adapts to the tail of the weights, so that its variance is finite whatever the tail, not
    that of any one divergence. `beta = 0` is the reverse KL divergence.

    Args:
        num_particles: draws from the guide.
        beta: power of the tail probabilities; negative ones put weight on large $w$, as mass-covering
            divergences do.

    Raises:
        EstimatorError: a site with another estimator than `Reparam`, or `beta` out of range.
        ObjectiveError: a guide whose density is estimated, but for `vi.AIS`: anew for each question.

    Example:
        >>> tail_adaptive(num_particles=20)
        tail_adaptive(num_particles=20, beta=-1.0)

    References:
        Wang, Liu and Liu 2018, Variational Inference with Tail-adaptive f-Divergence.
    """

    def log_weight_of_path() -> Cost:
        z = simulate(guide)
        refuse_others(z, "tail_adaptive")
        refuse_estimated(z, "tail_adaptive")
        return log_density(model, z) - log_density(stop_gradient(guide), z)

    def weighted(log_w: Array) -> Array:
        xp, held = array_namespace(log_w), current().backend.stop_gradient(log_w)
        share = xp.mean(xp.astype(held[None] >= held[:, None], held.dtype), axis=1)
        gamma = share**beta
        return xp.sum(gamma / xp.sum(gamma, axis=0) * log_w, axis=0)

    return iid(log_weight_of_path, num_particles).reduce(weighted)
