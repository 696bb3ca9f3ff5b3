"""What every family of vision models offers to `Backbone`.

Axes: B images, S the model's image side, T tokens, D token width, P width of the pooled embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from nearid_ray.errors import UsageError
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.models.pixels import PixelSettings

ARCHITECTURE = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
"""The values of a vision transformer's config that decide what its weights compute."""


@dataclass(kw_only=True)
class Tower:
    """A loaded vision model, taken apart."""

    model: nn.Module
    """Gives tokens_BTD of pixels_B3SS: after the last layer norm, `prefix_tokens` first, then the grid row by row."""
    weights: Mapping[str, Tensor]
    """All that decides its tokens and its pooled embedding."""
    architecture: dict[str, Any]
    """The values of its config that decide what the weights compute."""
    pixels: PixelSettings
    commit: str
    """The hub's commit; empty for a folder."""
    width: int
    heads: int
    mlp_width: int
    layer_norm_eps: float
    patch_px: int
    """0 where there is no grid: the only token is then the embedding itself."""
    prefix_tokens: int
    """Tokens before those of the patches: 1 where there is a class token."""
    pooling: "AttentionPoolingHead | ClsPooling"
    """The frozen model's own way from tokens to one embedding."""
    taken: str = ""
    """What the embedding of a model without a grid is in transformers."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        side = self.pixels.image_px // self.patch_px if self.patch_px else 0
        return side, side

    @property
    def head_state(self) -> dict[str, Tensor]:
        """Weights of the attention-pooling head that training starts from: the model's own or, of one that has none, a
        new one by seed 0 (`AttentionPoolingHead.initialised`), of the model's own sizes. None of a model without a
        grid."""
        head = self.pooling
        if not self.patch_px:
            return {}
        if not isinstance(head, AttentionPoolingHead):
            head = AttentionPoolingHead.initialised(self.width, self.heads, self.mlp_width, self.layer_norm_eps)
        return {name: value.detach().clone() for name, value in head.state_dict().items()}


class ClsPooling(nn.Module):
    """The class token, which must be the first of an image's tokens, projected where the model projects it."""

    def __init__(self, projection_PD: Tensor | None = None) -> None:
        super().__init__()
        self.projection_PD: Tensor | None
        self.register_buffer("projection_PD", None if projection_PD is None else projection_PD.detach().clone())

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor]) -> Self:
        """A pooling holding `state`.

        Raises:
            UsageError: `state` is not that of such a pooling.
        """
        if set(state) - {"projection_PD"}:
            raise UsageError(f"these weights are not those of a class token's projection: {', '.join(sorted(state))}")
        return cls(state.get("projection_PD"))

    def forward(self, tokens_BTD: Tensor) -> Tensor:
        """embedding_BP, not normalised; P = D where nothing is projected."""
        cls_BD = tokens_BTD[:, 0]
        return cls_BD if self.projection_PD is None else cls_BD.to(self.projection_PD.dtype) @ self.projection_PD.t()


def check_square(spec: str, what: str, value: Any) -> int:
    """A size that configs may give as one number or as two.

    Raises:
        UsageError: they are two different numbers.
    """
    if isinstance(value, list | tuple):
        if len(set(value)) != 1:
            raise UsageError(f"backbone {spec}: its {what} is {list(value)}; expected a square")
        return int(value[0])
    return int(value)
