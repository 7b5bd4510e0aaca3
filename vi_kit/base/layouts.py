"""What an estimator says of the value that it gives a site: where its gradient is, and how many values it is."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Gradient(enum.Enum):
    """Where the gradient by the parameters of the distribution is.

    Attributes:
        NONE: not in the value, which is a constant given the draws before. Then the gradient of the site's own log
            density has mean zero, and is left out where the cost is linear in it.
        PATH: all of it is in the value, which a sampler made of the parameters. Its site has no `log_q` then.
        PART: some of it is, and some in what `Estimator.contract` adds. What is always right to say.
    """

    NONE = "none"
    PATH = "path"
    PART = "part"


@dataclass(frozen=True)
class Single:
    """One draw.

    Attributes:
        leaves_support: whether its values may lie outside the support, which is then not checked.
    """

    leaves_support: bool = False
    size = 1


@dataclass(frozen=True)
class Worlds:
    """Several values in front, for all of which the model is evaluated, each with its weight.

    Attributes:
        size: how many.
        max_worlds: of joint values of such sites on which one term may depend, or that a nonlinear function may sum
            over. `None` if any number may, and such a function takes one of them drawn for each.
        is_support: whether they are the whole support, which depends on nothing.
    """

    size: int
    max_worlds: int | None = None
    is_support: bool = False
    leaves_support = False


@dataclass(frozen=True)
class Alternatives:
    """A draw, and others for which the model is evaluated besides.

    Attributes:
        num: of the others.
        are_live: whether these are differentiated, and not only compared with the draw.
        leaves_support: whether a value may lie outside the support, which is then not checked.
    """

    num: int
    are_live: bool = False
    leaves_support: bool = False
    size = 1


@dataclass(frozen=True)
class Closed:
    """No draw: the value is its moments, which the operations of the program carry on."""

    leaves_support = False
    size = 1


Layout = Single | Worlds | Alternatives | Closed


def is_support(layout: Layout) -> bool:
    """Whether a value is the whole support."""
    return isinstance(layout, Worlds) and layout.is_support
