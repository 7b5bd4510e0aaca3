"""Objectives, one family a file, each a short program of the language."""

from vi_kit.objectives.elbo import elbo
from vi_kit.objectives.expected_reward import expected_reward
from vi_kit.objectives.f_divergence import Generator, f_divergence, tail_adaptive
from vi_kit.objectives.importance_weighted import ciwae, iwae, miwae, piwae
from vi_kit.objectives.log_variance import (
    log_variance,
    sub_trajectory_balance,
    trajectory_balance,
)
from vi_kit.objectives.renyi import cubo, renyi, thermodynamic
from vi_kit.objectives.wake_sleep import eubo, forward_kl, multi_trace, wake_sleep

__all__ = [
    "Generator",
    "ciwae",
    "cubo",
    "elbo",
    "eubo",
    "expected_reward",
    "f_divergence",
    "forward_kl",
    "iwae",
    "log_variance",
    "miwae",
    "multi_trace",
    "piwae",
    "renyi",
    "sub_trajectory_balance",
    "tail_adaptive",
    "thermodynamic",
    "trajectory_balance",
    "wake_sleep",
]
