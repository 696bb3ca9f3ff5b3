"""Several heads on the same tokens: a sweep trains many heads for one read of the tokens.

Axes: N pictures, T tokens, D token width, R heads of the stack, H attention heads of one head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nearid_ray.models.head import AttentionPoolingHead, embed_with_all


class HeadStack(nn.Module):
    """Heads side by side. Each keeps its own parameters; none sees another's gradients.

    Raises:
        ValueError: there is no head, or they differ in width.
    """

    def __init__(self, heads: Sequence[AttentionPoolingHead]) -> None:
        super().__init__()
        widths = {head.width for head in heads}
        if len(widths) != 1:
            raise ValueError(f"a stack needs heads of one width, got {len(heads)} of widths {sorted(widths)}")
        self.heads = nn.ModuleList(heads)

    def __len__(self) -> int:
        return len(self.heads)

    def forward(self, tokens_NTD: Tensor) -> Tensor:
        """embedding_RND, not normalised: what each head says of each picture."""
        heads: list[AttentionPoolingHead] = list(self.heads)  # type: ignore[arg-type]
        return torch.stack(embed_with_all(heads, tokens_NTD))
