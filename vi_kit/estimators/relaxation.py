"""Discrete values as one-hot vectors, and what lies between them. Categories are along the last dim."""

from __future__ import annotations

from array_api_compat import array_namespace, device

from vi_kit.base.errors import ObjectiveError, message
from vi_kit.base.named import Array
from vi_kit.base.protocols import Distribution


def lacks_relaxation(dist: Distribution) -> str | None:
    """Why a program cannot be given values between those of a distribution; `None` if it can."""
    if dist.elementary() is None or dist.name not in ("Bernoulli", "OneHotCategorical"):
        return f"needs Bernoulli or OneHotCategorical elements; {dist.name} has none"
    return None


def check_temperature(name: str, value: float, expected: str = "temperature > 0") -> None:
    """Refuse a temperature of an estimator that is not positive."""
    if not value > 0:
        raise ObjectiveError(
            message(
                f"{name}: the temperature must be positive",
                got=f"temperature={value!r}",
                expected=expected,
                fix="temperature=0.5",
            )
        )


def probabilities(dist: Distribution) -> Array:
    """Of the categories of each element; those of a Bernoulli are 0 and 1."""
    elements = dist.elementary()
    assert elements is not None
    probs = elements.params["probs"]
    if elements.family == "Categorical":
        return probs
    return array_namespace(probs).stack([1.0 - probs, probs], axis=-1)


def as_value(dist: Distribution, one_hot: Array) -> Array:
    """A one-hot vector, or what lies between such, as a value of the distribution."""
    return one_hot[..., 1] if dist.name == "Bernoulli" else one_hot


def safe_log(probs: Array) -> Array:
    """Of probabilities bounded away from zero, so that their reciprocal has a finite derivative."""
    xp = array_namespace(probs)
    return xp.log(xp.clip(probs, min=float(xp.finfo(probs.dtype).tiny) ** 0.5))


def hard(noisy: Array) -> Array:
    """The one-hot value of the largest."""
    xp = array_namespace(noisy)
    categories = xp.arange(noisy.shape[-1], device=device(noisy))
    return xp.astype(categories == xp.argmax(noisy, axis=-1, keepdims=True), noisy.dtype)


def given_the_largest(probs: Array, one_hot: Array, noise: Array, top: Array) -> Array:
    """Gumbel-perturbed log probabilities of which it is known which is the largest.

    Args:
        probs: shape `(*, K)`.
        one_hot: which is the largest, same shape.
        noise: standard exponential, same shape.
        top: standard exponential, shape `(*, 1)`: minus the log of it is the largest, whichever that is.
    """
    xp = array_namespace(probs)
    log_rest = xp.log(noise) - safe_log(probs)
    return xp.where(one_hot > 0, -xp.log(top), -xp.logaddexp(log_rest, xp.log(top)))
