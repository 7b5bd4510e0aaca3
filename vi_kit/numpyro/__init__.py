"""vi_kit for NumPyro: `Loss`, an `ELBO` to hand to `numpyro.infer.SVI`."""

from vi_kit.numpyro.loss import Loss

__all__ = ["Loss"]
