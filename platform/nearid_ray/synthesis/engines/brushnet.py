"""BrushNet: a second UNet that sees the picture with its hole, and whose features are added to those of a stock UNet.

Ju et al., "BrushNet: A Plug-and-Play Image Inpainting Model with Decomposed Dual-Branch Diffusion" (2024), in the form
that PowerPaint v2 has of it: with cross-attention, so that it can be told a task. Both halves, reading features and
adding them, are forward hooks at the same places of diffusers' UNet2DConditionModel.

Axes: B rows, C channels, h and w sides in latent cells, T text tokens, D text width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.modeling_utils import ModelMixin
from torch import nn


class BrushNet(ModelMixin):
    """The layers of a base UNet without its head, and a 1 x 1 convolution for each feature that it gives.

    Its first convolution reads noisy latents, latents of the picture with the hole, and one channel that is 1 where
    the picture is kept. The convolutions start at zero: a fresh BrushNet leaves its base as it is.
    """

    _repeated_blocks = ["BasicTransformerBlock"]

    def __init__(self, base_config: dict[str, Any]) -> None:
        """`base_config` is the `config` of the UNet2DConditionModel that its features are for."""
        super().__init__()
        latent_channels = base_config["in_channels"]
        self.unet = UNet2DConditionModel.from_config(
            {name: value for name, value in base_config.items() if not name.startswith("_")}
            | {"in_channels": 2 * latent_channels + 1}
        )
        self.unet.conv_norm_out = None
        self.unet.conv_out = nn.Identity()
        down, up = _outputs(self.unet.down_blocks), _outputs(self.unet.up_blocks)
        widths = self.unet.config.block_out_channels
        self.brushnet_down_blocks = nn.ModuleList([_zero_conv(widths[0]), *(_zero_conv(_width(one)) for one in down)])
        self.brushnet_mid_block = _zero_conv(widths[-1])
        self.brushnet_up_blocks = nn.ModuleList([_zero_conv(_width(one)) for one in up])

    def forward(
        self, noisy_BChw: torch.Tensor, timestep: torch.Tensor, text_BTD: torch.Tensor, condition_BChw: torch.Tensor
    ) -> list[torch.Tensor]:
        """The features, in the order in which the base UNet comes to their places.

        Args:
            noisy_BChw: what the base UNet is given.
            timestep: of the noise.
            text_BTD: the embedded task.
            condition_BChw: latents of the picture with the hole, then 1 = keep, 0 = hole.
        """
        seen: list[torch.Tensor] = []
        modules = [self.unet.conv_in, *feature_places(self.unet)]
        hooks = [module.register_forward_hook(partial(_read, seen)) for module in modules]
        try:
            self.unet(torch.cat([noisy_BChw, condition_BChw], dim=1), timestep, text_BTD, return_dict=False)
        finally:
            for hook in hooks:
                hook.remove()
        convs = [*self.brushnet_down_blocks, self.brushnet_mid_block, *self.brushnet_up_blocks]
        return [conv(feature) for conv, feature in zip(convs, seen, strict=True)]


def feature_places(unet: Any) -> list[nn.Module]:
    """The modules of a UNet after which a feature is read or added, in the order in which they run.

    They are each layer of each block (its attention, or where it has none its residual), each down- and upsampling,
    and the middle block; the input convolution comes before them.
    """
    return [*_outputs(unet.down_blocks), unet.mid_block, *_outputs(unet.up_blocks)]


@contextmanager
def adding(unet: Any, features: Sequence[torch.Tensor]) -> Iterator[None]:
    """While open, a forward pass of the UNet has the features of a BrushNet added to its own.

    The first feature goes to what the first block is given, but not to the skip connection around all blocks, which
    carries the plain input convolution; the others go to the outputs of `feature_places`, in skip connections as well.

    Raises:
        ValueError: another number of features than the UNet has places.
    """
    places = feature_places(unet)
    if len(features) != 1 + len(places):
        raise ValueError(f"{len(features)} features for a UNet with {1 + len(places)} places for them")
    first, *others = features
    hooks = [unet.down_blocks[0].register_forward_pre_hook(partial(_add_before, first), with_kwargs=True)]
    hooks += [
        place.register_forward_hook(partial(_add_after, feature)) for place, feature in zip(places, others, strict=True)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _outputs(blocks: Any) -> list[nn.Module]:
    found: list[nn.Module] = []
    for block in blocks:
        found += getattr(block, "attentions", None) or block.resnets
        found += getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ()
    return found


def _width(module: Any) -> int:
    return module.out_channels or module.in_channels


def _zero_conv(channels: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, channels, kernel_size=1)
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)
    return conv


def _read(seen: list[torch.Tensor], _module: nn.Module, _given: Any, output: Any) -> None:
    seen.append(output[0] if isinstance(output, tuple) else output)


def _add_after(feature: torch.Tensor, _module: nn.Module, _given: Any, output: Any) -> Any:
    return (output[0] + feature, *output[1:]) if isinstance(output, tuple) else output + feature


def _add_before(feature: torch.Tensor, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
    return args, kwargs | {"hidden_states": kwargs["hidden_states"] + feature}
