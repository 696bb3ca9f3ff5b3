"""Averages of tokens weighed by their likeness to some vectors: all that attention pooling does to tokens.

Axes: B images, T tokens, D token width, H vectors, C images of one part.

The work goes part by part and, where an image is large, image by image: its tokens are then still in the processor's
cache when they are read the second time, and tokens of half precision are never all widened at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nearid_ray.models.products import product

_PART_BYTES = {"cpu": 8 << 20}
_GPU_PART_BYTES = 256 << 20
"""Tokens of one part: on a CPU what its cache holds, on a GPU what bounds the memory of a widened copy."""
_LARGE_IMAGE = 1 << 20
"""Products of an image (T * D * H) above which it pays to go image by image on a CPU."""


def pool_tokens(tokens_BTD: Tensor, vector_HD: Tensor, computed_in: torch.dtype) -> Tensor:
    """context_BHD = sum_t p_bht x_bt with p the softmax over t of x_bt . vector_h, of type `computed_in`.

    Differentiable once, in both arguments. The products are of type `computed_in`, to which tokens of another type are
    brought part by part; the softmax and the gradient's sum over images are in at least float32.

    Raises:
        ValueError: an image has no tokens.
    """
    if tokens_BTD.shape[1] == 0:
        raise ValueError("images without tokens cannot be pooled")
    return _PoolTokens.apply(tokens_BTD, vector_HD, computed_in)


def attention_weights(tokens_BTD: Tensor, vector_HD: Tensor, computed_in: torch.dtype) -> Tensor:
    """weight_BTH: softmax over t of x_bt . vector_h, in at least float32; differentiable."""
    score_BTH = torch.matmul(tokens_BTD.to(computed_in), vector_HD.to(computed_in).t())
    return torch.softmax(score_BTH, dim=1, dtype=_at_least_float32(computed_in))


class _PoolTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens_BTD: Tensor, vector_HD: Tensor, dtype: torch.dtype) -> Tensor:
        images, tokens, width = tokens_BTD.shape
        heads = len(vector_HD)
        kept_HD, vector_HD = vector_HD, vector_HD.to(dtype)
        context_BHD = vector_HD.new_empty(images, heads, width)
        weight_BTH = vector_HD.new_empty(images, tokens, heads, dtype=_at_least_float32(dtype))
        with torch.autocast(tokens_BTD.device.type, enabled=False):
            for part in _parts(tokens_BTD, dtype):
                part_CTD = tokens_BTD[part].to(dtype).contiguous()
                score_CTH = product(part_CTD.view(-1, width), vector_HD).view(-1, tokens, heads)
                weight_CTH = torch.softmax(score_CTH, dim=1, dtype=weight_BTH.dtype)
                weight_BTH[part] = weight_CTH
                _each_product(weight_CTH.to(dtype).transpose(1, 2), part_CTD.transpose(1, 2), context_BHD[part])
        ctx.dtype = dtype
        ctx.save_for_backward(tokens_BTD, kept_HD, weight_BTH)
        return context_BHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BHD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (tokens_BTD, kept_HD, weight_BTH), dtype = ctx.saved_tensors, ctx.dtype
        vector_HD = kept_HD.to(dtype)
        _, tokens, width = tokens_BTD.shape
        heads = len(vector_HD)
        wants_tokens = ctx.needs_input_grad[0]
        tokens_gradient_BTD = torch.empty_like(tokens_BTD) if wants_tokens else None
        vector_gradient_HD = torch.zeros_like(vector_HD, dtype=_at_least_float32(dtype))
        with torch.autocast(tokens_BTD.device.type, enabled=False):
            for part in _parts(tokens_BTD, dtype):
                part_CTD, weight_CTH = tokens_BTD[part].to(dtype).contiguous(), weight_BTH[part]
                gradient_CHD = gradient_BHD[part].to(dtype)
                along_CTH = weight_CTH.new_empty(weight_CTH.shape, dtype=dtype)
                _each_product(part_CTD, gradient_CHD, along_CTH)
                moved_CTH = weight_CTH * along_CTH
                moved_CTH = torch.addcmul(moved_CTH, weight_CTH, moved_CTH.sum(1, keepdim=True), value=-1).to(dtype)
                moved_NH = moved_CTH.view(-1, heads)
                vector_gradient_HD += product(moved_NH.t(), part_CTD.view(-1, width).t())
                if tokens_gradient_BTD is not None:
                    pulled_CTD = torch.empty_like(part_CTD)
                    _each_product(weight_CTH.to(dtype), gradient_CHD.transpose(1, 2), pulled_CTD)
                    pulled_CTD += product(moved_NH, vector_HD.t()).view(-1, tokens, width)
                    tokens_gradient_BTD[part] = pulled_CTD.to(tokens_BTD.dtype)
        return tokens_gradient_BTD, vector_gradient_HD.to(kept_HD.dtype), None


def _each_product(left_CND: Tensor, right_CED: Tensor, out_CNE: Tensor) -> None:
    """out_c = left_c @ right_c.T"""
    if left_CND.device.type == "cpu" and left_CND[:1].numel() * right_CED.shape[1] >= _LARGE_IMAGE:
        for left_ND, right_ED, out_NE in zip(left_CND, right_CED, out_CNE, strict=True):
            out_NE.copy_(product(left_ND, right_ED))
    else:
        torch.bmm(left_CND, right_CED.transpose(1, 2), out=out_CNE)


def _parts(tokens_BTD: Tensor, dtype: torch.dtype) -> Iterator[slice]:
    images, tokens, width = tokens_BTD.shape
    limit = _PART_BYTES.get(tokens_BTD.device.type, _GPU_PART_BYTES)
    each = max(1, limit // max(1, tokens * width * dtype.itemsize))
    return (slice(start, start + each) for start in range(0, images, each))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
