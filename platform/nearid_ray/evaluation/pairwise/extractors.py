"""An example of an extractor for VSM: two layers of a DINOv2. Not the features that the published VSM was learned with.

Axes: H, W patches, D width of tokens, S the model's image side.
"""

from dataclasses import replace

import numpy as np
import torch

from nearid_ray.errors import UsageError
from nearid_ray.models.backbones.tower import check_square
from nearid_ray.models.files import ModelFiles
from nearid_ray.models.pixels import CLIP, read_pixel_settings


class TwoLayers:
    """Semantic features from a deep layer, visual ones from a middle one.

    Deep layers of DINOv2 know what a place is part of, middle ones still see its texture and colour.
    """

    def __init__(
        self, device: str, model: str = "facebook/dinov2-base", semantic_layer: str = "-1", visual_layer: str = ""
    ) -> None:
        """Loads the model once.

        Args:
            device: cpu or cuda.
            model: a DINOv2 (with or without registers), a folder or a hub id.
            semantic_layer, visual_layer: numbers of layers, counted from 1, or from the end by -1; the second is the
                one in the middle where it is left out. Text, as they come from a command line.

        Raises:
            UsageError: the model is no DINOv2, cannot be read, or has no such layer.
        """
        from transformers import AutoModel

        files = ModelFiles.find(model, what="the extractor's model")
        config = files.json("config.json") or {}
        if config.get("model_type") not in ("dinov2", "dinov2_with_registers"):
            raise UsageError(f"the extractor's model {model} is a {config.get('model_type')} model; expected a DINOv2")
        self._model, _, missing = files.load(AutoModel)
        missing = [name for name in missing if not name.endswith("mask_token")]
        if missing:
            raise files.lacking(missing)
        self._model = self._model.eval().requires_grad_(False).to(device)
        # Nothing is cut off: a feature map must cover the whole picture, as its mask does.
        self._pixels = replace(read_pixel_settings(files, CLIP, None), resized_px=None, keeps_aspect=False)
        self._device = device
        settings = self._model.config
        self._prefix = 1 + getattr(settings, "num_register_tokens", 0)
        self._side = self._pixels.image_px // check_square(model, "patch_size", settings.patch_size)
        layers = settings.num_hidden_layers
        self._layers = [
            _layer(semantic_layer, layers, "semantic_layer"),
            _layer(visual_layer or str(max(1, layers // 2)), layers, "visual_layer"),
        ]

    @torch.inference_mode()
    def __call__(self, image_HW3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(semantic_HWD, visual_HWD) of a uint8 RGB picture of any size."""
        resized_1SS3 = torch.from_numpy(self._pixels.resized(image_HW3).copy())[None].to(self._device)
        outputs = self._model(self._pixels.normalised(resized_1SS3), output_hidden_states=True)
        tokens = [outputs.hidden_states[layer][0, self._prefix :] for layer in self._layers]
        semantic, visual = (t.view(self._side, self._side, -1).float().cpu().numpy() for t in tokens)
        return semantic, visual


def _layer(text: str, layers: int, name: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= abs(number) <= layers:
        raise UsageError(f"{name} is {text!r}; the model has the layers 1 to {layers} (or -1 to -{layers})")
    return number % (layers + 1)
