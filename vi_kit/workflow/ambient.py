"""The generators of random numbers that all share: those of Python, of NumPy, and of torch where it is loaded."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """They start from a seed; afterwards they are what they were."""
    torch = sys.modules.get("torch")  # a DataLoader serves NumPyro too
    of_python, of_numpy = random.getstate(), np.random.get_state()
    of_torch = None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        if torch is not None:
            torch.set_rng_state(of_torch)
