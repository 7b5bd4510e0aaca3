"""vi_kit for NumPyro: `Loss`, an `ELBO` to hand to `numpyro.infer.SVI`, and `fit`."""

from vi_kit.base.versions import importing
from vi_kit.language.marginal import PLAIN_RUNS

with importing("numpyro"):
    from vi_kit.numpyro.fit import fit
    from vi_kit.numpyro.loss import Loss
    from vi_kit.numpyro.marginal import with_proposals

PLAIN_RUNS.append(with_proposals)

__all__ = ["Loss", "fit"]
