"""vi_kit for Pyro: `Loss`, an `ELBO` to hand to `pyro.infer.SVI`, and `fit`."""

from vi_kit.base.versions import importing

with importing("pyro"):
    from vi_kit.pyro.fit import fit
    from vi_kit.pyro.loss import Loss

__all__ = ["Loss", "fit"]
