"""Matrix products of float32 on a CPU by oneDNN, which torch carries and uses for other types alone.

For float32 torch calls MKL, which reaches half of what an AMD processor can do and a third where one matrix is narrow;
oneDNN is as fast on every maker's. Where this torch does not offer it, and for all other types and devices, the
product is torch's own.

Axes: N rows, D columns of the left matrix, E rows of the right one.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def product(left_ND: Tensor, right_ED: Tensor) -> Tensor:
    """`left @ right.T`, (N, E); not differentiable. The matrices may lie in memory in any way.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    if left_ND.numel() and right_ED.numel() and _is_plain(left_ND) and _is_plain(right_ED):
        onednn = _onednn()
        if onednn is not None:
            return onednn(_dense(left_ND), _dense(right_ED))
    return left_ND @ right_ED.t()


def linear(input_ND: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
    """torch.nn.functional.linear of a matrix, its three products by `product` where that is of use."""
    autocast = torch.is_autocast_enabled(input_ND.device.type)
    if autocast or not (_is_plain(input_ND) and _is_plain(weight_ED)) or _onednn() is None:
        return functional.linear(input_ND, weight_ED, bias_E)
    return _Linear.apply(input_ND, weight_ED, bias_E)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_ND: Tensor, weight_ED: Tensor, bias_E: Tensor) -> Tensor:
        ctx.save_for_backward(input_ND, weight_ED)
        return product(input_ND, weight_ED).add_(bias_E)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input_ND, weight_ED = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            product(gradient_NE, weight_ED.t()) if wants_input else None,
            product(gradient_NE.t(), input_ND.t()) if wants_weight else None,
            gradient_NE.sum(0) if wants_bias else None,
        )


def _dense(matrix: Tensor) -> Tensor:
    """The matrix with its rows or columns one after the other; of all other layouts oneDNN is very slow."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()


def _is_plain(matrix: Tensor) -> bool:
    return matrix.device.type == "cpu" and matrix.dtype == torch.float32


@cache
def _onednn() -> Callable[[Tensor, Tensor], Tensor] | None:
    """oneDNN's product; None where this torch has none that gives the right numbers."""

    def multiplied(left_ND: Tensor, right_ED: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(left_ND, right_ED, None, "none", [], "")

    # The operator is torch's own, for its compiler, and not part of its promises.
    try:
        left, right = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(3, 4).t()
        return multiplied if torch.equal(multiplied(left, right), left @ right.t()) else None
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return None
