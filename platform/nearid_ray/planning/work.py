"""Arithmetic of a row: floating-point operations of a backbone's picture and of a painted distractor.

A multiplication and an addition count as two. Sizes are the published architectures'; attention is counted, text
encoders and VAEs are not (below a tenth of what is counted), the utilisation has to cover them.
"""

from dataclasses import dataclass

from nearid_ray.errors import UsageError

_STREAM_PARAMETERS = 113e6
"""Of a block of FLUX or Qwen-Image (width 3072), by token: attention 4 x 3072^2 and MLP 8 x 3072^2; a single-stream
block has as many."""
_WIDTH = 3072
_BRUSHNET = 2.1
"""PowerPaint runs a BrushNet as large as its UNet beside it, and adds its features."""


@dataclass(frozen=True, kw_only=True)
class BackboneSize:
    """What decides how long a backbone looks at a picture, and how large its tokens are."""

    parameters: int
    layers: int
    tokens: int
    width: int

    def picture_flops(self) -> float:
        """Operations of one forward pass: 2 x parameters x tokens, and attention 4 x layers x tokens^2 x width.

        >>> round(SO400M.picture_flops() / 1e9)
        668
        """
        return 2.0 * self.parameters * self.tokens + 4.0 * self.layers * self.tokens**2 * self.width

    def item_bytes(self) -> int:
        """Bytes of one picture's float16 tokens."""
        return 2 * self.tokens * self.width


SO400M = BackboneSize(parameters=412_987_248, layers=27, tokens=729, width=1152)
"""SigLIP 2 so400m patch14 384, without its head."""
TOYBOX = BackboneSize(parameters=1_024_384, layers=4, tokens=64, width=128)
BACKBONES = {"google/siglip2-so400m-patch14-384": SO400M, "toybox-siglip2": TOYBOX}


def engine_flops(engine: str) -> float:
    """Operations that paint one distractor with one of the paper's engine configurations.

    Raises:
        UsageError: the engine's arithmetic is not known.

    >>> f"{engine_flops('flux-fill-1024') / engine_flops('flux-fill-512'):.1f}"
    '3.5'
    """
    if engine not in _ENGINES:
        raise UsageError(
            f"engines has {engine!r}, whose work is not known: {', '.join(_ENGINES)} are. Give its measured rows "
            "(--measured synthesize=FOLDER), where FOLDER holds rows of this engine"
        )
    return _ENGINES[engine]


def _transformer(blocks: int, text_tokens: int, side_px: int, steps: int, beside: float = 1.0) -> float:
    """A diffusion transformer over 16-pixel patches of a square and the text; `beside` counts a ControlNet."""
    tokens = (side_px // 16) ** 2 + text_tokens
    of_tokens = 2.0 * blocks * _STREAM_PARAMETERS * tokens
    of_attention = 4.0 * blocks * tokens**2 * _WIDTH
    return steps * beside * (of_tokens + of_attention)


def _unet(forward_flops: float, steps: int, beside: float = 1.0) -> float:
    """A UNet with classifier-free guidance: two passes a step."""
    return 2.0 * steps * forward_flops * beside


_ENGINES = {
    "flux-fill-512": _transformer(57, 512, 512, 50),
    "flux-fill-1024": _transformer(57, 512, 1024, 50),
    "flux-canny-512": _transformer(57, 512, 512, 28),
    "flux-canny-1024": _transformer(57, 512, 1024, 28),
    "qwen-image-512": _transformer(60, 100, 512, 8, 1.1),
    "qwen-image-1328": _transformer(60, 100, 1328, 8, 1.1),
    "sdxl-512": _unet(1.5e12, 30),
    "sdxl-1024": _unet(6.0e12, 30),
    "powerpaint-512": _unet(1.06e12, 45, _BRUSHNET),
}
"""SDXL's UNet: about 6 x 10^12 operations at 1024 px. SD 1.5's: 0.68 x 10^12 at 512 px, 1.06 at PowerPaint's 640."""
