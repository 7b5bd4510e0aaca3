"""Parameters of algorithms that draw from posteriors, in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
from numpyro.distributions import constraints
from numpyro.primitives import _PYRO_STACK

from vi_kit.language.programs import Start


def is_running() -> bool:
    """Whether NumPyro's handlers are active."""
    return bool(_PYRO_STACK)


def declared(name: str, start: Start, like: jax.Array | None = None) -> jax.Array:
    """A parameter.

    Args:
        name: of the parameter.
        start: what it is at first.
        like: not used: parameters have the library's own dtype.
    """
    del like
    value = jnp.asarray(start.value, jnp.result_type(float))
    found = numpyro.param(name, value, constraint=getattr(constraints, start.constraint))
    return jnp.asarray(found)
