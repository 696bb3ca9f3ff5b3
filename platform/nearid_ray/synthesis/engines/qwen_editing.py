"""What the engines on Qwen-Image-Edit share: they see the picture through a vision-language model, at one megapixel."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from nearid_ray.data.images import resize_mask, resize_rgb
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engines import loading, qwen
from nearid_ray.synthesis.engines.diffusion import DiffusionSettings

if TYPE_CHECKING:
    import torch

WEIGHTS = "Qwen/Qwen-Image-Edit"
LORA_FILE = "Qwen-Image-Edit-Lightning-8steps-V1.0.safetensors"
SIDE_PX = 1024
"""Both pipelines bring what they are given to about SIDE_PX x SIDE_PX pixels; other heights and widths they ignore."""

_PROCESSOR = "processor"


class EditEngine(qwen.QwenEngine):
    """Common to engines on Qwen-Image-Edit."""

    model_card = f"https://huggingface.co/{WEIGHTS}"

    def __init__(self, settings: DiffusionSettings) -> None:
        super().__init__(settings)
        if settings.resolution_px != SIDE_PX:
            raise UsageError(
                f"{settings.name}: resolution_px is {settings.resolution_px}; Qwen-Image-Edit works at about one "
                f"megapixel whatever it is given: leave it at {SIDE_PX}"
            )

    def check_folder(self, folder: str) -> None:
        super().check_folder(folder)
        for name in ("preprocessor_config.json", "tokenizer_config.json"):
            if not (Path(folder).expanduser() / _PROCESSOR / name).is_file():
                raise UsageError(
                    f"{self.name}: weights {folder}: {_PROCESSOR}/{name} is missing; get it with "
                    f"`hf download {WEIGHTS} --include '{_PROCESSOR}/*' --local-dir FOLDER`"
                )

    def build_with(self, pipeline_class: Any, dtype: "torch.dtype") -> Any:
        """The pipeline with its LoRA, and a text encoder that is told which tokens are the picture's."""
        what = f"{self.name}: weights"
        folder = loading.pipeline_folder(self.config.weights, self.config.revision, what)
        processor = picture_processor(folder / _PROCESSOR, what)
        pipeline = self.load_pipeline(pipeline_class, dtype, processor=processor)
        name_picture_tokens(pipeline.text_encoder, processor.image_token_id)
        return self.with_lightning(pipeline)


def at_one_megapixel(picture: np.ndarray) -> Image.Image:
    """A picture (h, w, 3) or a mask (h, w) at the size that the pipelines work at.

    Given another size they resize for the transformer alone: in a batch the vision model would see the larger picture.
    """
    from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions

    height, width = picture.shape[:2]
    size = calculate_dimensions(SIDE_PX * SIDE_PX, width / height)[:2]
    return Image.fromarray((resize_rgb if picture.ndim == 3 else resize_mask)(picture, *size))


def picture_processor(folder: Path, what: str) -> Any:
    """Qwen2VLProcessor without its video half, which needs torchvision and is not used for pictures.

    Pictures are resized by Pillow whether torchvision is installed or not: the same pixels on every machine.

    Raises:
        UsageError: the folder has no preprocessor_config.json or no tokenizer.
    """
    from transformers import Qwen2Tokenizer, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.processing_utils import ProcessorMixin

    class PictureProcessor(Qwen2VLProcessor):
        # transformers reads from this signature what a processor is made of.
        def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
            self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
            self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
            self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
            ProcessorMixin.__init__(self, image_processor, tokenizer)

    try:
        pictures = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
        tokenizer = Qwen2Tokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{what} {folder.parent}: {folder.name}/ cannot be read ({error}); expected preprocessor_config.json and "
            "a tokenizer"
        ) from error
    return PictureProcessor(pictures, tokenizer)


def name_picture_tokens(text_encoder: Any, picture_token: int) -> None:
    """From now on the text encoder is told which tokens are a picture's, whoever calls it.

    transformers 5 gives a picture's tokens their places in two dimensions only where `mm_token_type_ids` names them
    (1 = picture); transformers 4 found them itself. diffusers 0.42 does not name them: every place of the prompt after
    the first row of patches would be another than in training, without a word.
    """

    def named(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        tokens = kwargs.get("input_ids")
        if tokens is not None and kwargs.get("mm_token_type_ids") is None:
            kwargs["mm_token_type_ids"] = (tokens == picture_token).int()
        return args, kwargs

    text_encoder.register_forward_pre_hook(named, with_kwargs=True)
