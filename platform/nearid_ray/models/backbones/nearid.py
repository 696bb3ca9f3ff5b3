"""NearID checkpoints in their released format: a SigLIP vision model whose attention-pooling head is the trained one.

`config.json` has model_type "nearid" and a `vision_config`, `model.safetensors` the weights of SigLIP's vision model
under `backbone.vision_model.`. The Python files beside them are for transformers' AutoModel; nothing of them is run
here.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from nearid_ray.errors import UsageError
from nearid_ray.models.backbones import siglip
from nearid_ray.models.backbones.tower import ARCHITECTURE, Tower
from nearid_ray.models.files import ModelFiles

MODEL_TYPES = ("nearid",)
WEIGHTS_FILE = "model.safetensors"
PREFIX = "backbone.vision_model."
VISION_FIELDS = (*ARCHITECTURE, "attention_dropout")
"""What `vision_config` holds."""

_PREFIXES = (PREFIX, "backbone.")
"""The second is what transformers 5 makes of the first where it saves such a model itself."""


def load(files: ModelFiles, config: Mapping[str, Any]) -> Tower:
    """The vision model with the trained head as its own.

    Raises:
        UsageError: files are missing, damaged, or not of this format.
    """
    from transformers import SiglipVisionConfig, SiglipVisionModel

    given = config.get("vision_config")
    if not isinstance(given, Mapping):
        raise UsageError(f"{files.what} {files.spec}: its config.json has no vision_config; expected a NearID release")
    vision = SiglipVisionConfig(**{name: given[name] for name in VISION_FIELDS if name in given})
    pixels = siglip.read_pixels(files, vision.to_dict())
    state = _weights(files)
    model, _, missing = files.load(SiglipVisionModel, vision, state)
    if missing:
        raise files.lacking([PREFIX + name for name in missing])
    return siglip.tower(files.spec, model, pixels, files.commit())


def _weights(files: ModelFiles) -> dict[str, Tensor]:
    """The vision model's tensors under their names in transformers."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = files.path(WEIGHTS_FILE)
    if path is None:
        raise UsageError(f"{files.what} {files.spec}: {WEIGHTS_FILE} is missing; copy or download the release again")
    try:
        kept = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"{files.what} {files.spec}: {WEIGHTS_FILE} cannot be read ({error}); copy or download the release again"
        ) from error
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in kept)), None)
    if prefix is None:
        raise UsageError(
            f"{files.what} {files.spec}: {WEIGHTS_FILE} has no tensor under {PREFIX}, but e.g. "
            f"{min(kept, default='nothing')}; expected a NearID release"
        )
    return {name.removeprefix(prefix): value for name, value in kept.items() if name.startswith(prefix)}
