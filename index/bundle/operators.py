"""The operators a tower's graph may call.

An allow-list of names, not of namespaces: `torch.ops.aten` also holds operators that write files (`from_file`, `save`)
or read memory without checking bounds, and torch's loader follows any dotted name from `torch`, `torch.os.system` too.
A tower that needs another harmless operator is a reason to add its name here.
"""

from __future__ import annotations

import re

_SHAPES = """
    alias cat chunk clone contiguous detach diagonal expand expand_as flatten flip lift_fresh_copy movedim narrow
    permute pad constant_pad_nd repeat repeat_interleave reshape reshape_as roll select slice split split_with_sizes squeeze
    stack swapaxes swapdims t tile transpose tril triu unbind unflatten unfold unsqueeze view view_as zero type_as to
    _to_copy copy sym_size sym_numel sym_stride size numel dim is_floating_point
    _assert_tensor_metadata _assert_scalar sym_constrain_range sym_constrain_range_for_size
"""
_NEW_TENSORS = """
    arange empty empty_like eye fill full full_like linspace logspace new_empty new_full new_ones new_zeros ones
    ones_like scalar_tensor zeros zeros_like one_hot
"""
_CHOOSING = """
    bucketize embedding gather index index_add index_copy index_fill index_put index_select masked_fill masked_scatter
    scatter scatter_add scatter_reduce searchsorted take take_along_dim where sort argsort topk
"""
_ELEMENTWISE = """
    abs acos add addcdiv addcmul asin atan atan2 bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor ceil clamp clamp_max clamp_min clip cos cosh deg2rad div divide elu eq erf erfc exp
    exp2 expm1 floor floor_divide fmod frac ge gelu greater greater_equal gt hardsigmoid hardswish hardtanh isfinite
    isinf isnan le leaky_relu lerp less less_equal lgamma log log10 log1p log2 log_sigmoid logaddexp logical_and
    logical_not logical_or logical_xor logit lt maximum minimum mish mul multiply nan_to_num ne neg negative not_equal
    __and__ __or__ __xor__ __lshift__ __rshift__ pow prelu reciprocal relu relu6 remainder round rsqrt rsub selu sigmoid
    sign silu sin sinh softplus sqrt square sub subtract tan tanh threshold true_divide trunc xlogy dropout
    feature_dropout
"""
_REDUCTIONS = """
    all amax amin aminmax any argmax argmin count_nonzero cosine_similarity cummax cummin cumprod cumsum linalg_norm
    linalg_vector_norm log_softmax logcumsumexp logsumexp max mean median min norm prod softmax std std_mean sum var
    var_mean _log_softmax _softmax _safe_softmax
"""
_LAYERS = """
    addbmm addmm addmv baddbmm bilinear bmm dot einsum inner linear linalg_vecdot matmul mm mv outer vdot avg_pool1d
    adaptive_avg_pool1d adaptive_max_pool1d max_pool1d conv1d conv2d batch_norm group_norm instance_norm layer_norm
    native_batch_norm native_group_norm native_layer_norm rms_norm _native_batch_norm_legit_no_training gru lstm
    rnn_relu rnn_tanh scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
"""
ATEN = frozenset((_SHAPES + _NEW_TENSORS + _CHOOSING + _ELEMENTWISE + _REDUCTIONS + _LAYERS).split())

# Arithmetic on sizes, which export writes as Python functions.
_SIZE_ARITHMETIC = ("add", "sub", "mul", "floordiv", "mod", "neg", "and_", "or_", "getitem")
_SIZE_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
SIZES = frozenset(f"_operator.{name}" for name in _SIZE_ARITHMETIC + _SIZE_COMPARISONS) | frozenset(
    f"torch.sym_{name}" for name in ("max", "min", "not", "int", "float")
)

_ATEN_TARGET = re.compile(r"torch\.ops\.aten\.([A-Za-z0-9_]+)\.([A-Za-z0-9_]+)")


def is_allowed(target: str) -> bool:
    """Whether a node of a tower may call `target`, written as export does: `torch.ops.aten.add.Tensor`."""
    if target in SIZES:
        return True
    match = _ATEN_TARGET.fullmatch(target)
    if match is None:
        return False
    name, overload = match.groups()
    in_place = name.removesuffix("_")  # add_ writes into its first argument, always a tensor of this graph
    return (name in ATEN or in_place in ATEN) and not overload.startswith("__")
