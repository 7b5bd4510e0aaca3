r"""Linear response: covariances of the posterior from how the optimum of a fit with fixed draws would move.

Let $L(\eta)$ be the held loss, $\hat\eta$ its minimum, and $m_k(\eta)$ the mean of a function $f_k$ of the latent
sites over the held draws of the guide. If $t f_k$ is added to the model's log density, the minimum moves by
$H^{-1} \nabla m_k$ per unit of $t$, with $H$ the Hessian of $L$ at $\hat\eta$. The derivative of a posterior mean of
$f_j$ by such a tilt is the posterior covariance of $f_j$ and $f_k$; so it is estimated by
$\nabla m_j^\top H^{-1} \nabla m_k$.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vi_kit.base.errors import NotFiniteError, ObjectiveError, message, whole_number
from vi_kit.workflow.held import Held, Tilted, Wanted

CHECKED = 2
"""Directions in which the second derivative is compared with differences of the gradient."""


@dataclass(frozen=True)
class LinearResponse:
    """Posterior means and covariances of functions of the latent sites.

    Attributes:
        names: of the functions' elements, such as `"z[1]"`.
        mean: over the held draws of the guide, shape `(num,)`.
        covariance: by linear response, shape `(num, num)`. Where the posterior is Gaussian, the guide has its means
            as parameters of their own, and functions are linear, it is exact, though the guide's own variances
            are too small.
        monte_carlo_errors: standard errors of `mean`: by how much it would vary with other fixed draws, in standard
            deviations, to first order: where the guide can be the posterior it is zero, and what is left falls with
            their number, not with its root. That of the variational approximation is not in it.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    covariance: np.ndarray
    monte_carlo_errors: np.ndarray

    @property
    def sd(self) -> np.ndarray:
        """Posterior standard deviations, shape `(num,)`."""
        return np.sqrt(np.diag(self.covariance))

    def __str__(self) -> str:
        width = max(map(len, (*self.names, "site")))
        rows = zip(self.names, self.mean, self.sd, self.monte_carlo_errors, strict=True)
        lines = [f"{'site':{width}}  {'mean':>10}  {'sd':>10}  {'error of mean':>13}"]
        return "\n".join(
            [*lines, *(f"{n:{width}}  {m:10.4g}  {s:10.4g}  {e:13.2g}" for n, m, s, e in rows)]
        )


def linear_response(
    held: Held | None,
    functions: Mapping[str, Callable] | Sequence[str] | str | None,
    num_fixed: int,
    num_draws: int,
    seed: int,
) -> LinearResponse:
    """See `Fit.linear_response`."""
    if held is None:
        raise ObjectiveError(
            message(
                "linear_response: the fit is one by noisy steps",
                got="a fit without fixed_draws: no minimum of a function whose Hessian there is",
                expected="a fit with its noise held",
                fix="fit(..., fixed_draws=30)",
            )
        )
    num_draws = whole_number("linear_response", "num_draws", num_draws, least=2)
    tilted = held.tilted(_wanted(held, functions))
    zero, at = np.zeros(len(tilted.names)), held.at
    before, at_zero, by_tilt = tilted.evaluate(at, zero)
    value, _ = held.evaluate(at)
    scale = max(1.0, abs(value))
    if abs(before - value) > 1e3 * held.rounding * scale:
        raise ObjectiveError(
            message(
                "linear_response: the functions change how the programs are run",
                got=f"a loss of {before} in place of {value}, though nothing is added to it",
                expected="functions that broadcast over dims in front of the sites' own",
                fix="operations on the last dims of values, such as value[..., 0]",
            )
        )
    # the loss is linear in the tilt: this difference of two gradients is no approximation
    slopes = np.stack([at_zero - tilted.evaluate(at, unit)[1] for unit in np.eye(len(zero))])
    slopes = slopes[:, held.of_guide]
    times = hessian(held)
    solved = np.stack([_solved(times, slope, held) for slope in slopes])
    covariance = slopes @ solved.T
    errors = _errors(tilted, held, solved, num_fixed, num_draws, seed)
    return LinearResponse(tuple(tilted.names), -by_tilt, (covariance + covariance.T) / 2, errors)


def _wanted(held: Held, functions: Any) -> Wanted:
    known = held.latent()
    if isinstance(functions, Mapping) and functions and all(map(callable, functions.values())):
        return dict(functions)
    names = [functions] if isinstance(functions, str) else functions
    names = known if names is None else list(names)
    unknown = [n for n in names if n not in known]
    if unknown or not names:
        raise ObjectiveError(
            message(
                "linear_response: no such latent site",
                got=", ".join(map(repr, unknown)) or "none",
                expected=f"names among {', '.join(map(repr, known))}, or functions of the sites by name",
                fix='fit.linear_response({"sum": lambda sites: sites["a"] + sites["b"]})',
            )
        )
    return dict.fromkeys(names)


def hessian(held: Held) -> Callable[[np.ndarray], np.ndarray]:
    """The product of the Hessian by the guide's parameters with a vector.

    By derivatives of the gradient, if they are what its differences say; else by the differences: what has the gradient
    of the value (as sums over an enumerated site, on which another one's value bears) may have another second
    derivative.
    """
    at, own = held.at, held.of_guide
    step = held.rounding ** (1 / 3)

    def full(direction: np.ndarray) -> np.ndarray:
        result = np.zeros(len(at))
        result[own] = direction
        return result

    def by_differences(direction: np.ndarray) -> np.ndarray:
        size = step * max(1.0, float(np.abs(at[own]).max())) / float(np.abs(direction).max())
        ends = [held.evaluate(at + s * size * full(direction))[1] for s in (1, -1)]
        return (ends[0] - ends[1])[own] / (2 * size)

    def by_derivatives(direction: np.ndarray) -> np.ndarray | None:
        found = held.times_hessian(at, full(direction))
        return None if found is None else found[own]

    generator = np.random.default_rng(0)
    for _ in range(CHECKED):
        direction = generator.choice([-1.0, 1.0], int(own.sum()))
        exact, other = by_derivatives(direction), by_differences(direction)
        off = np.inf if exact is None else float(np.abs(exact - other).max())
        if not off <= 10 * held.rounding**0.4 * max(1.0, float(np.abs(other).max())):
            return by_differences
    return lambda direction: np.asarray(by_derivatives(direction))


def _solved(times: Callable[[np.ndarray], np.ndarray], slope: np.ndarray, held: Held) -> np.ndarray:
    """The Hessian's inverse times a vector, by conjugate gradients; what the minimiser has learned of it helps."""
    from scipy.sparse import linalg  # takes long to import

    num, size = len(slope), float(np.linalg.norm(slope))
    wanted = max(1e-10, 10 * held.rounding)

    def image(direction: np.ndarray) -> np.ndarray:
        found = times(direction)
        curvature = float(direction @ found)
        if not curvature > 0:
            raise _no_minimum(f"a curvature of {curvature:.3g} nats along a direction")
        return found

    operator: Any = linalg.LinearOperator  # whose stub lacks what it takes
    inverse = held.inverse if held.of_guide.all() else None
    found, _ = linalg.cg(
        operator((num, num), image, dtype=float),
        slope,
        rtol=wanted,
        maxiter=20 * num + 20,
        M=inverse,
    )
    rest = float(np.linalg.norm(slope - times(found))) if found.any() else size
    if rest > 1e4 * wanted * size:
        raise _no_minimum(f"a residual of {rest:.3g}, of {size:.3g} at first")
    return found


def _no_minimum(got: str) -> NotFiniteError:
    return NotFiniteError(
        message(
            "linear_response: the Hessian of the held loss has no inverse that is positive",
            got=got,
            expected="a minimum of the loss, with a curvature in each direction",
            fix="a fit that converged (fit.stopped), in double precision; more fixed_draws than the guide's"
            " covariances have dims; no parameter that changes nothing",
        )
    )


def _errors(
    tilted: Tilted, held: Held, solved: np.ndarray, num_fixed: int, num_draws: int, seed: int
) -> np.ndarray:
    """Standard errors of the means: of one draw, the mean and what its gradient moves the optimum by."""
    by_params, by_tilt = tilted.drawn(held.at, num_draws, seed)
    influence = -by_tilt - by_params[:, held.of_guide] @ solved.T
    return influence.std(axis=0, ddof=1) / np.sqrt(num_fixed)
