"""The attention-pooling head of SigLIP, computed without ever forming keys and values.

Axes: B images, T tokens, D token width, H attention heads, E = D / H width of one attention head.

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
from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from nearid_ray.errors import UsageError


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
        """A head holding `state`, its widths read from the weights; float32.

        Raises:
            UsageError: `state` is not the state of such a head.
        """
        try:
            width, mlp_width = state["probe"].shape[-1], state["mlp.fc1.weight"].shape[0]
            head = cls(width, heads, mlp_width, eps)
            head.load_state_dict(dict(state))
        except (KeyError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"these weights are not those of an attention-pooling head with {heads} heads: {error}"
            ) from error
        return head

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """Embeddings of images, not normalised.

        Args:
            tokens_BTD: the backbone's tokens after its last layer norm, in any floating type. Outside autocast they
                are brought to the type of the weights; inside it they are left to autocast.

        Returns:
            embedding_BD in the type of the weights (under autocast: the type of the autocast).
        """
        tokens_BTD = self._matched(tokens_BTD)
        weight_BTH = self._attention_BTH(tokens_BTD)
        context_BHD = torch.matmul(weight_BTH.transpose(1, 2).to(tokens_BTD.dtype), tokens_BTD)
        _, _, value_weight_DD = self.attention.in_proj_weight.chunk(3)
        _, key_bias_D, value_bias_D = self.attention.in_proj_bias.chunk(3)
        value_weight_HED = value_weight_DD.view(self.heads, self.width // self.heads, self.width)
        value_BHE = torch.einsum("bhd,hed->bhe", context_BHD, value_weight_HED)
        value_BD = value_BHE.reshape(-1, self.width) + value_bias_D
        # The key bias has no effect; distributed training still needs a gradient, a zero, for every parameter.
        pooled_BD = self.attention.out_proj(value_BD) + 0.0 * key_bias_D.sum()
        return pooled_BD + self.mlp(self.layernorm(pooled_BD))

    def attention_BHT(self, tokens_BTD: Tensor) -> Tensor:
        """How much every token counts in each attention head; sums to one over the tokens."""
        return self._attention_BTH(self._matched(tokens_BTD)).transpose(1, 2)

    def _attention_BTH(self, tokens_BTD: Tensor) -> Tensor:
        head_width = self.width // self.heads
        query_weight_DD, key_weight_DD, _ = self.attention.in_proj_weight.chunk(3)
        query_bias_D, _, _ = self.attention.in_proj_bias.chunk(3)
        query_D = functional.linear(self.probe.view(self.width), query_weight_DD, query_bias_D)
        query_HE = query_D.view(self.heads, head_width) / math.sqrt(head_width)
        key_weight_HED = key_weight_DD.view(self.heads, head_width, self.width)
        folded_HD = torch.einsum("he,hed->hd", query_HE, key_weight_HED)
        return torch.softmax(torch.matmul(tokens_BTD, folded_HD.t()), dim=1)

    def _matched(self, tokens_BTD: Tensor) -> Tensor:
        if tokens_BTD.ndim != 3 or tokens_BTD.shape[-1] != self.width:
            raise ValueError(f"expected tokens of shape (images, tokens, {self.width}), got {tuple(tokens_BTD.shape)}")
        if torch.is_autocast_enabled(tokens_BTD.device.type):
            return tokens_BTD.to(torch.get_autocast_dtype(tokens_BTD.device.type))
        return tokens_BTD.to(self.probe.dtype)


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, embedding_BD: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(embedding_BD), approximate="tanh"))
