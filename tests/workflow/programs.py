"""Conjugate programs in the words of `tests.libraries`, with their answers in NumPy."""

import numpy as np

X = np.array([1.2, 0.7, 1.9, -0.4])
NOISE = 0.5


def normals(lib, loc=None, scale=None, x=X):
    """One global Normal, rows around it; the guide is the exact posterior unless told otherwise."""
    exact = posterior_of_normals(x)
    loc = exact[0] if loc is None else loc
    scale = exact[1] if scale is None else scale

    def model(x):
        z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
        with lib.plate("data", len(x)):
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    def guide(x):
        lib.sample("z", lib.dist.Normal(lib.theta(np.array([loc]))[0], scale))

    return model, guide, (lib.array(x),)


def posterior_of_normals(x=X):
    precision = 1 + len(x) / NOISE**2
    return x.sum() / NOISE**2 / precision, precision**-0.5


def evidence_of_normals(x=X):
    return log_normal(x, np.zeros(len(x)), NOISE**2 * np.eye(len(x)) + 1.0)


def rows(lib, slope=None, scale=None, x=X):
    """A Normal for each row, with an amortised guide."""
    slope = 1 / (1 + NOISE**2) if slope is None else slope
    scale = (NOISE**2 / (1 + NOISE**2)) ** 0.5 if scale is None else scale

    def model(x):
        with lib.plate("data", len(x)):
            z = lib.sample("z", lib.dist.Normal(0.0, 1.0))
            lib.sample("x", lib.dist.Normal(z, NOISE), obs=x)

    def guide(x):
        theta = lib.theta(np.array([slope]))
        with lib.plate("data", len(x)):
            lib.sample("z", lib.dist.Normal(theta[0] * x, scale))

    return model, guide, (lib.array(x),)


def evidence_of_rows(x=X):
    return -(x**2) / 2 / (1 + NOISE**2) - 0.5 * np.log(2 * np.pi * (1 + NOISE**2))


def log_normal(x, mean, covariance):
    off = x - mean
    _, log_det = np.linalg.slogdet(covariance)
    return -0.5 * (off @ np.linalg.solve(covariance, off) + log_det + len(x) * np.log(2 * np.pi))
