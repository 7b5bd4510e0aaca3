"""What JAX's primitives have in common."""

from __future__ import annotations

from collections.abc import Mapping

import vi_kit.analysis.operations as operations
from vi_kit.analysis.operations import Rule

KINDS = {
    "sum": "add sub add_any neg",
    "pointwise": "mul div rem max min sign abs floor ceil round pow integer_pow square sqrt rsqrt cbrt"
    " exp exp2 expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh logistic"
    " erf erfc erf_inv lgamma digamma polygamma zeta igamma igammac regularized_incomplete_beta"
    " bessel_i0e bessel_i1e random_gamma_grad nextafter is_finite clamp lt_to le_to eq_to"
    " and or xor not shift_left shift_right_logical shift_right_arithmetic population_count clz"
    " real imag conj complex",
    "choice": "select_n",
    "comparison": "eq ne lt le gt ge",
    "copy": "copy copy_p reduce_precision optimization_barrier device_put sharding_constraint"
    " vi_kit_term vi_kit_site vi_kit_apart",
    "cast": "convert_element_type stop_gradient",
    "layout": "reshape broadcast_in_dim squeeze expand_dims transpose slice rev concatenate pad stack unstack"
    " split tile",
    "total": "reduce_sum",
    "reduction": "reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin",
    "running total": "cumsum",
    "running": "cumprod cummax cummin cumlogsumexp",
    "window total": "reduce_window_sum",
    "window": "reduce_window_max reduce_window_min",
    "lookup": "gather dynamic_slice",
    "written": "scatter dynamic_update_slice",
    "added at": "scatter-add scatter_add",
    "multiplied at": "scatter-mul scatter_mul",
    "contraction": "dot_general conv_general_dilated",
    "triangular solve": "triangular_solve",
    "matrix": "cholesky lu eigh qr svd lu_pivots_to_permutation",
}
"""The primitives of each kind, all of them with one rule as to which numbers meet, or as to what is linear."""

KIND = operations.by_name(KINDS)


def rule_for(name: str, rules: Mapping[str, Rule]) -> Rule | None:
    """That of a primitive, or of its kind."""
    return operations.rule_for(name, rules, KIND)
