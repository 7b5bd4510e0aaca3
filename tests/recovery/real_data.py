"""Data that were measured, with models and guides in the words of both libraries.

Each function returns a function from a library to a model and a guide; their argument is a share of the likelihood.
"""

import json
import warnings
from pathlib import Path

import numpy as np
from sklearn.datasets import load_diabetes, load_digits
from sklearn.decomposition import PCA

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ tells of its next version
    import arviz as az


def autoguide(lib, name, model):
    """An autoguide of the library."""
    if lib.name == "pyro":
        from pyro.infer import autoguide
    else:
        from numpyro.infer import autoguide
    return getattr(autoguide, name)(model)


def eight_schools(centred=False):
    """Effects of coaching in eight schools (Rubin 1981). The guide has all but `tau` exactly, given `tau`."""
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def programs(lib):
        effect, error = lib.array(effects), lib.array(errors)

        def model(share=1.0):
            mu = lib.sample("mu", lib.dist.Normal(0.0, 5.0))
            tau = lib.sample("tau", lib.dist.HalfNormal(5.0))
            with lib.plate("schools", 8):
                if centred:
                    theta = lib.sample("theta", lib.dist.Normal(mu, tau))
                else:
                    theta = mu + tau * lib.sample("theta_t", lib.dist.Normal(0.0, 1.0))
                with lib.handlers.scale(scale=share):
                    lib.sample("y", lib.dist.Normal(theta, error), obs=effect)

        def guide(share=1.0):
            own = lib.theta(np.array([1.4]))
            tau = lib.sample("tau", lib.dist.Exponential(lib.xp.exp(-own[0])))
            weights = 1 / (error**2 / share + tau[..., None] ** 2)
            inside = 1 / 5.0**2 + weights.sum(-1)
            mean = (weights * effect).sum(-1) / inside
            mu = lib.sample("mu", lib.dist.Normal(mean, inside**-0.5))
            with lib.plate("schools", 8):
                precision = 1 + share * (tau / error) ** 2
                mean = share * tau * (effect - mu) / error**2 / precision
                lib.sample("theta_t", lib.dist.Normal(mean, precision**-0.5))

        return model, autoguide(lib, "AutoMultivariateNormal", model) if centred else guide

    return programs


def radon():
    """Log radon in 919 houses of 85 counties of Minnesota, by floor and by the uranium of the county (Gelman and Hill
    2007). The guide has the levels of counties exactly, given the rest. ArviZ ships the data, though not the draws."""
    file = Path(az.__file__).parent / "data/example_data/code/radon/radon.json"
    data = json.loads(file.read_text())
    county, uranium = np.array(data["county"]), np.array(data["u"])
    floor, logs = np.array(data["x"], float), np.array(data["y"])
    counts = np.bincount(county, minlength=85).astype(float)

    def programs(lib):
        of, u, x, y = map(lib.array, (county, uranium, floor, logs))
        sums = [lib.array(np.bincount(county, s, minlength=85)) for s in (logs, floor)]
        num = lib.array(counts)

        def model(share=1.0):
            w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(3)), 2.0).to_event(1))
            tau = lib.sample("tau", lib.dist.HalfNormal(1.0))
            sigma = lib.sample("sigma", lib.dist.HalfNormal(1.0))
            with lib.plate("counties", 85):
                alpha = lib.sample("alpha", lib.dist.Normal(w[..., 0] + w[..., 1] * u, tau))
            with lib.plate("houses", 919), lib.handlers.scale(scale=share):
                lib.sample("y", lib.dist.Normal(alpha[..., of] + w[..., 2] * x, sigma), obs=y)

        def guide(share=1.0):
            loc = lib.theta(np.array([1.4, 0.7, -0.6]), "loc")
            root = lib.theta(np.array([-3.0, 0.0, -2.0, 0.0, 0.0, -2.5]), "root")
            zero = 0 * root[0]
            a, b, c = (lib.xp.exp(root[i]) for i in (0, 2, 5))
            rows = [[a, zero, zero], [root[1], b, zero], [root[3], root[4], c]]
            tril = lib.xp.stack([lib.xp.stack(row) for row in rows])
            w = lib.sample("w", lib.dist.MultivariateNormal(loc, scale_tril=tril))
            own = lib.theta(np.array([-1.8, -1.2, -0.3, -3.5]), "own")
            tau = lib.sample("tau", lib.dist.LogNormal(own[0], lib.xp.exp(own[1])))
            sigma = lib.sample("sigma", lib.dist.LogNormal(own[2], lib.xp.exp(own[3])))
            inside = share * num / sigma**2
            precision = inside + 1 / tau**2
            rest = share * (sums[0] - w[..., 2] * sums[1]) / sigma**2
            with lib.plate("counties", 85):
                mean = (rest + (w[..., 0] + w[..., 1] * u) / tau**2) / precision
                lib.sample("alpha", lib.dist.Normal(mean, precision**-0.5))

        return model, guide

    return programs


def digits():
    """Threes and eights by five principal components of their pixels: logistic regression."""
    pixels, label = load_digits(return_X_y=True)
    chosen = np.isin(label, (3, 8))
    parts = PCA(5, svd_solver="full").fit_transform(pixels[chosen])
    inputs = parts / parts.std(axis=0)
    is_eight = (label[chosen] == 8).astype(float)

    def programs(lib):
        x, y = lib.array(inputs), lib.array(is_eight)

        def model(share=1.0):
            w = lib.sample("w", lib.dist.Normal(lib.array(np.zeros(5)), 1.0).to_event(1))
            offset = lib.sample("offset", lib.dist.Normal(0.0, 1.0))
            with lib.plate("images", len(inputs)), lib.handlers.scale(scale=share):
                lib.sample("y", lib.dist.Bernoulli(logits=(x * w).sum(-1) + offset), obs=y)

        return model, autoguide(lib, "AutoMultivariateNormal", model)

    return programs


def diabetes(guide="AutoMultivariateNormal"):
    """Progress of diabetes by ten measurements, some of them collinear: regression that learns how small slopes are."""
    inputs, progress = load_diabetes(return_X_y=True)
    inputs = inputs / inputs.std(axis=0)
    progress = (progress - progress.mean()) / progress.std()

    def programs(lib):
        x, y = lib.array(inputs), lib.array(progress)

        def model(share=1.0):
            tau = lib.sample("tau", lib.dist.HalfCauchy(0.1))
            sigma = lib.sample("sigma", lib.dist.HalfNormal(1.0))
            slopes = lib.dist.Normal(lib.array(np.zeros(10)), tau[..., None]).to_event(1)
            w = lib.sample("w", slopes)
            with lib.plate("patients", len(inputs)), lib.handlers.scale(scale=share):
                lib.sample("y", lib.dist.Normal((x * w).sum(-1), sigma), obs=y)

        return model, autoguide(lib, guide, model)

    return programs
