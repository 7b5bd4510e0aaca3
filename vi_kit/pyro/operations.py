"""What ATen's operations have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import vi_kit.analysis.operations as operations
from vi_kit.analysis.operations import Rule

KINDS = {
    "sum": "add sub rsub neg",
    "copy": "copy _to_copy to clone detach alias lift_fresh contiguous positive",
    "reshape": "view _unsafe_view _reshape_alias _reshape_copy view_copy reshape",
    "layout": "expand repeat permute transpose t squeeze unsqueeze select slice narrow unbind split"
    " split_with_sizes unsafe_split unsafe_split_with_sizes chunk cat stack flip roll diagonal unfold"
    " constant_pad_nd diag_embed select_scatter slice_scatter",
    "memory": "as_strided",
    "triangle": "tril triu",
    "total": "sum mean trace",
    "reduction": "prod amax amin max min argmax argmin any all logsumexp _is_all_true _is_any_true var std"
    " var_mean std_mean norm nansum linalg_vector_norm median nanmedian mode kthvalue count_nonzero aminmax",
    "running total": "cumsum",
    "running": "cumprod cummax cummin logcumsumexp _softmax _log_softmax _safe_softmax sort topk glu"
    " _fft_r2c _fft_c2r _fft_c2c index_copy",
    "lookup": "gather index_select index masked_fill masked_select",
    "added at": "scatter_add index_add",
    "contraction": "mm bmm mv dot",
    "added product": "addmm addmv baddbmm addbmm addcmul addr",
    "triangular solve": "linalg_solve_triangular",
    "matrix": "cholesky linalg_cholesky_ex cholesky_inverse linalg_inv_ex linalg_lu_factor_ex linalg_lu"
    " linalg_qr _linalg_eigh _linalg_svd _linalg_det _linalg_slogdet linalg_matrix_exp",
    "choice": "where",
    "noise": "normal uniform bernoulli exponential geometric cauchy log_normal _standard_gamma poisson"
    " binomial native_dropout random",
    "shape": "zeros_like ones_like full_like empty_like rand_like randn_like randint_like new_zeros new_ones"
    " new_full new_empty new_empty_strided",
}
"""The operations of each kind. Those of `shape` look at shapes only. What torch calls pointwise needs no kind."""

KIND = operations.by_name(KINDS)


def rule_for(name: str, rules: Mapping[str, Rule]) -> Rule | None:
    """That of an operation, or of its kind."""
    return operations.rule_for(name, rules, KIND)


def name_of(func: Any, kwargs: Any = None) -> str:
    """What an operation is called, without the underscore of one that writes into an operand."""
    if kwargs and kwargs.get("rounding_mode"):
        return "floor_divide"
    return func._schema.name.removeprefix("aten::").removesuffix("_")
