"""The attention-pooling head of SigLIP, computed without ever forming keys and values.

Axes: B images, T tokens, D token width, H attention heads, E = D / H width of one attention head, M hidden width of the
MLP, R heads of a stack, X = R * H.

The head asks one learned question (the probe) of every image, so its query is the same for all of them. The keys can
therefore be folded into the query and the values applied after averaging the tokens:

    u_h       = W_k,h^T q_h / sqrt(E)              one vector of width D an attention head
    p_h       = softmax over tokens of (x_t . u_h)
    context_h = sum_t p_h,t x_t
    value_h   = W_v,h context_h + b_v,h            (the p sum to one, so the bias enters once)

which is the same function as multi-head attention with keys and values projected for every token, and reads the tokens
only twice. The bias of the keys shifts all scores of a head alike, which a softmax does not see.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray.errors import UsageError
from nearid_ray.models.pooling import attention_weights, pool_tokens
from nearid_ray.models.products import linear


class AttentionPoolingHead(nn.Module):
    """SigLIP's multi-head attention pooling: one embedding from the tokens of one image.

    Parameters and state dict are those of transformers' `SiglipMultiheadAttentionPoolingHead`, so that weights go both
    ways; outputs and gradients are equal to it up to rounding.

    Args:
        width: token and embedding width D; a multiple of `heads`.
        heads: number of attention heads H.
        mlp_width: hidden width of the MLP.
        eps: epsilon of the layer norm.

    Raises:
        ValueError: a size is not positive, or `width` is not a multiple of `heads`.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, eps: float = 1e-6) -> None:
        super().__init__()
        if min(width, heads, mlp_width) < 1 or width % heads:
            raise ValueError(
                f"a head of width {width}, heads {heads}, mlp_width {mlp_width} cannot be built: sizes must be "
                "positive and width a multiple of heads"
            )
        self.width, self.heads, self.mlp_width, self.eps = width, heads, mlp_width, eps
        self.probe = nn.Parameter(torch.randn(1, 1, width))
        # Holds the projections under the names transformers uses; its own forward is never called.
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.layernorm = nn.LayerNorm(width, eps=eps)
        self.mlp = _Mlp(width, mlp_width)

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], heads: int, eps: float = 1e-6) -> Self:
        """A head holding a copy of `state`, its widths read from the weights; float32.

        Raises:
            UsageError: `state` is not the state of such a head.
        """
        try:
            width, mlp_width = state["probe"].shape[-1], state["mlp.fc1.weight"].shape[0]
            head = cls._empty(width, heads, mlp_width, eps)
            head.load_state_dict(dict(state))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"these weights are not those of an attention-pooling head with {heads} heads: {error}"
            ) from error
        return head

    @classmethod
    def initialised(cls, width: int, heads: int, mlp_width: int, eps: float = 1e-6, *, seed: int = 0) -> Self:
        """A new head for a backbone that has none: the same weights for the same sizes and seed, on any machine.

        All matrices and the probe are uniform in +-sqrt(6 / (rows + columns)) (Glorot and Bengio 2010; the three
        projections of the attention as one matrix of 3 D rows, as SigLIP has it; the probe as one of D rows and D
        columns, so that it is about as long as a token after a layer norm is in one direction), all biases zero, the
        layer norm the identity.
        """
        head = cls._empty(width, heads, mlp_width, eps)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in head.named_parameters():
                if parameter.ndim > 1:
                    rows, columns = (width, width) if name == "probe" else parameter.shape
                    bound = math.sqrt(6 / (rows + columns))
                    parameter.uniform_(-bound, bound, generator=generator)
                else:
                    parameter.fill_(1.0 if name == "layernorm.weight" else 0.0)
        return head

    @classmethod
    def _empty(cls, width: int, heads: int, mlp_width: int, eps: float) -> Self:
        """A head whose weights are still to be written; takes nothing from torch's random state."""
        with torch.device("meta"):
            head = cls(width, heads, mlp_width, eps)
        return head.to_empty(device="cpu")

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Embeddings of images, not normalised.

        Args:
            tokens_BTD: the backbone's tokens after its last layer norm, in any floating type. Outside autocast they
                are computed with in the type of the weights, inside it in that of the autocast.

        Returns:
            embedding_BD in the type of the weights (under autocast: the type of the autocast).
        """
        self._check(tokens_BTD)
        return embed_with_all([self], tokens_BTD)[0]

    def attention_BHT(self, tokens_BTD: Tensor) -> Tensor:
        """How much every token counts in each attention head, in at least float32; sums to one over the tokens."""
        self._check(tokens_BTD)
        folded_HD = self._projections().folded_HD()
        return attention_weights(tokens_BTD, folded_HD, self._computed_in(tokens_BTD)).transpose(1, 2)

    def mean_attention_BT(self, tokens_BTD: Tensor) -> Tensor:
        """How much every token counts on average over the attention heads; sums to one over the tokens."""
        return self.attention_BHT(tokens_BTD).mean(dim=1)

    def _check(self, tokens_BTD: Tensor) -> None:
        if tokens_BTD.ndim != 3 or tokens_BTD.shape[-1] != self.width:
            raise ValueError(f"expected tokens of shape (images, tokens, {self.width}), got {tuple(tokens_BTD.shape)}")

    def _computed_in(self, tokens_BTD: Tensor) -> torch.dtype:
        device = tokens_BTD.device.type
        return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.probe.dtype

    def _projections(self) -> "_Projections":
        # Cut once: every cut would cost a copy of the whole matrix in the backward pass.
        weights = self.attention.in_proj_weight.view(3, self.heads, self.width // self.heads, self.width).unbind()
        biases = self.attention.in_proj_bias.view(3, self.width).unbind()
        return _Projections(self.probe, *weights, *biases)

    def _embedding_BD(self, context_BHD: Tensor, projections: "_Projections") -> Tensor:
        """Embeddings from the tokens' averages: values, output projection, MLP."""
        value_HBE = torch.bmm(context_BHD.transpose(0, 1), projections.value_weight_HED.transpose(1, 2))
        value_BD = value_HBE.transpose(0, 1).reshape(-1, self.width) + projections.value_bias_D
        # The key bias has no effect; distributed training still needs a gradient, a zero, for every parameter.
        output_bias_D = self.attention.out_proj.bias + 0.0 * projections.key_bias_D.sum()
        pooled_BD = linear(value_BD, self.attention.out_proj.weight, output_bias_D)
        return pooled_BD + self.mlp(self.layernorm(pooled_BD))


def embed_with_all(heads: Sequence[AttentionPoolingHead], tokens_BTD: Tensor) -> list[Tensor]:
    """embedding_BD by each of several heads of one token width, not normalised; the tokens are read once for all.

    Raises:
        ValueError: there is no head, or they are not of one token width and type.
    """
    if len({(head.width, head.probe.dtype) for head in heads}) != 1:
        said = "; ".join(f"width {head.width}, {head.probe.dtype}" for head in heads)
        raise ValueError(f"expected heads of one width and type, got {said or 'none'}")
    heads[0]._check(tokens_BTD)
    if len(heads) > 1 and _small_and_alike(heads):
        return list(_embedded_at_once(heads, tokens_BTD).unbind())
    projections = [head._projections() for head in heads]
    folded_HD = torch.cat([part.folded_HD() for part in projections])
    context_BHD = pool_tokens(tokens_BTD, folded_HD, heads[0]._computed_in(tokens_BTD))
    contexts = context_BHD.split([head.heads for head in heads], dim=1)
    return [head._embedding_BD(own_BHD, part) for head, own_BHD, part in zip(heads, contexts, projections, strict=True)]


_SMALL_MLP = 1 << 18
"""Weights of an MLP's matrix up to which several heads are computed at once on a CPU: starting an operation then costs
more than what it computes. Larger ones gain nothing and would have to be copied beside each other."""


def _small_and_alike(heads: Sequence[AttentionPoolingHead]) -> bool:
    first = heads[0]
    same = all((head.heads, head.mlp_width, head.eps) == (first.heads, first.mlp_width, first.eps) for head in heads)
    return same and first.probe.device.type == "cpu" and first.width * first.mlp_width <= _SMALL_MLP


def _embedded_at_once(heads: Sequence[AttentionPoolingHead], tokens_BTD: Tensor) -> Tensor:
    """embedding_RBD by R heads of one shape, each matrix product being one for all of them."""
    first, count = heads[0], len(heads)
    width, images = first.width, len(tokens_BTD)
    states = [dict(head.named_parameters()) for head in heads]

    def stacked(name: str) -> Tensor:
        return torch.stack([state[name] for state in states])

    def apply(input_RBD: Tensor, name: str) -> Tensor:
        weight_RED, bias_RE = stacked(f"{name}.weight"), stacked(f"{name}.bias")
        return torch.baddbmm(bias_RE[:, None], input_RBD, weight_RED.transpose(1, 2))

    query_RDD, key_RDD, value_RDD = stacked("attention.in_proj_weight").view(count, 3, width, width).unbind(1)
    query_bias_RD, _, value_bias_RD = stacked("attention.in_proj_bias").view(count, 3, width).unbind(1)
    with torch.autocast("cpu", enabled=False):
        dtype = torch.promote_types(first.probe.dtype, torch.float32)
        probe_RD1 = stacked("probe").view(count, width, 1).to(dtype)
        query_RD1 = torch.baddbmm(query_bias_RD[..., None].to(dtype), query_RDD.to(dtype), probe_RD1)
        query_X1E = query_RD1.view(count * first.heads, 1, -1) / math.sqrt(width // first.heads)
        folded_XD = torch.bmm(query_X1E, key_RDD.to(dtype).reshape(count * first.heads, -1, width))[:, 0]
    context_BXD = pool_tokens(tokens_BTD, folded_XD, first._computed_in(tokens_BTD))
    value_XED = value_RDD.reshape(count * first.heads, -1, width)
    value_XBE = torch.bmm(context_BXD.transpose(0, 1), value_XED.transpose(1, 2))
    value_RBD = value_XBE.view(count, first.heads, images, -1).transpose(1, 2).reshape(count, images, width)
    pooled_RBD = apply(value_RBD + value_bias_RD[:, None], "attention.out_proj")
    normal_RBD = functional.layer_norm(pooled_RBD, (width,), eps=first.eps)
    normal_RBD = normal_RBD * stacked("layernorm.weight")[:, None] + stacked("layernorm.bias")[:, None]
    hidden_RBM = functional.gelu(apply(normal_RBD, "mlp.fc1"), approximate="tanh")
    return pooled_RBD + apply(hidden_RBM, "mlp.fc2")


@dataclass(frozen=True)
class _Projections:
    """A head's probe and the cut weights of its attention."""

    probe_11D: Tensor
    query_weight_HED: Tensor
    key_weight_HED: Tensor
    value_weight_HED: Tensor
    query_bias_D: Tensor
    key_bias_D: Tensor
    value_bias_D: Tensor

    def folded_HD(self) -> Tensor:
        """What the tokens are compared with, u_h, in at least float32: its rounding would be that of all scores."""
        heads, head_width, width = self.key_weight_HED.shape
        dtype = torch.promote_types(self.probe_11D.dtype, torch.float32)
        with torch.autocast(self.probe_11D.device.type, enabled=False):
            weight_DD = self.query_weight_HED.reshape(width, width).to(dtype)
            query_D = functional.linear(self.probe_11D.view(width).to(dtype), weight_DD, self.query_bias_D.to(dtype))
            query_H1E = query_D.view(heads, 1, head_width) / math.sqrt(head_width)
            return torch.bmm(query_H1E, self.key_weight_HED.to(dtype))[:, 0]


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        hidden_BM = functional.gelu(linear(embedding_BD, self.fc1.weight, self.fc1.bias), approximate="tanh")
        return linear(hidden_BM, self.fc2.weight, self.fc2.bias)
