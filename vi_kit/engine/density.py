"""The log density of a statement, scaled and masked, the same for every library."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from array_api_compat import array_namespace

from vi_kit.base.distributions import DistributionView
from vi_kit.base.named import Array, Axis


class LogDensity(NamedTuple):
    """What a statement adds to a log density (nats).

    Attributes:
        name: of the site, latent or observed.
        axes: its plates and replicate axes.
        density: scaled (but for subsampling) and masked.
        plain: neither scaled nor masked.
        factor: the one divided by the other.
        number: the same, if it is one known number for all elements.
        inside: see `Term.inside`.
        scale: of the density, but for that of its plates.
        masks: of its handlers and its distribution, those that there are.
    """

    name: str
    axes: tuple[Axis, ...]
    density: Array
    plain: Array
    factor: Callable[[], Array]
    number: float | None = None
    inside: frozenset[tuple[Axis, int]] = frozenset()
    scale: float | Array = 1.0
    masks: tuple[Any, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        axes: tuple[Axis, ...],
        plain: Array,
        log_prob: Array,
        dist: DistributionView,
        scale: float | Array | None,
        mask: Any = True,
        inside: frozenset[tuple[Axis, int]] = frozenset(),
    ) -> LogDensity:
        """From what a distribution says, without and with its masks, and the scale and the mask of the handlers around
        its statement."""
        rest = _split(1.0 if scale is None else scale, (*axes, *dict(inside)))
        is_number = isinstance(rest, int | float)
        has_none = (mask is None or mask is True) and dist.mask is True

        def factor() -> Array:
            ones = array_namespace(plain).ones_like(plain)
            return scaled_and_masked(scaled_and_masked(ones, rest, mask), 1.0, dist.mask)

        return cls(
            name,
            axes,
            scaled_and_masked(log_prob, rest, mask),
            plain,
            factor,
            float(rest) if is_number and has_none and not dist.hides_elements else None,
            inside,
            rest,
            () if has_none else (mask, dist.mask),
        )

    @property
    def unscaled(self) -> bool:
        """Whether nothing but its plates scales it."""
        return isinstance(self.scale, int | float) and self.scale == 1.0

    def unmasked(self) -> LogDensity:
        """The same without masks: of a site that is summed out the probabilities still sum to one, and the mask is on
        what is observed."""
        return self._replace(density=scaled_and_masked(self.plain, self.scale, True))


def scaled_and_masked(array: Array, scale: float | Array, mask: Any) -> Array:
    """An array times a scale, with zero where a mask is false."""
    if mask is False:
        return array_namespace(array).zeros_like(array)
    if not (isinstance(scale, int | float) and scale == 1.0):
        array = array * scale
    if mask is None or mask is True:
        return array
    return array_namespace(array).where(mask, array, 0.0)


def is_open(mask: Any) -> bool:
    """Whether a mask is known to leave nothing out."""
    if mask is None or isinstance(mask, bool):
        return mask is not False
    try:
        return bool(array_namespace(mask).all(mask))
    except TypeError:  # of a value that is traced
        return False


def _split(scale: float | Array, axes: Iterable[Axis]) -> float | Array:
    """A statement's scale without the part that comes from its subsampled plates, which is kept pending."""
    for axis in axes:
        if axis.scale != 1.0:
            scale = scale / axis.scale
    return 1.0 if isinstance(scale, float) and abs(scale - 1.0) < 1e-12 else scale
