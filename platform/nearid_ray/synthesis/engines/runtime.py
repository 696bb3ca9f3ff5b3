"""Where a diffusers pipeline runs and how fast: device, offload, compilation, attention backend, first-block cache."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nearid_ray.errors import UsageError

if TYPE_CHECKING:
    from nearid_ray.synthesis.engines.diffusion import DiffusionSettings


def device() -> str:
    """cuda where this worker was given a GPU, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def denoiser(pipeline: Any) -> Any:
    """The part that runs at every step: the transformer or the UNet."""
    return pipeline.transformer if getattr(pipeline, "transformer", None) is not None else pipeline.unet


def place(pipeline: Any, settings: "DiffusionSettings") -> None:
    """Bring the pipeline to this worker's device and switch on what the settings ask for.

    Raises:
        UsageError: the denoiser cannot do what is asked, or offload is asked for without a GPU.
    """
    model = denoiser(pipeline)
    try:
        if settings.attention:
            model.set_attention_backend(settings.attention)
        if settings.cache_threshold:
            from diffusers import FirstBlockCacheConfig

            model.enable_cache(FirstBlockCacheConfig(threshold=settings.cache_threshold))
        if settings.compile:
            model.compile_repeated_blocks(fullgraph=True)
    except (AttributeError, ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(f"{settings.name}: {type(model).__name__} cannot run as asked for: {error}") from error
    if settings.offload != "none":
        if device() != "cuda":
            raise UsageError(f"{settings.name}: offload={settings.offload} moves parts to a GPU; this worker has none")
        offload = (
            pipeline.enable_model_cpu_offload if settings.offload == "model" else pipeline.enable_sequential_cpu_offload
        )
        offload()
    else:
        pipeline.to(device())


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without the bars and notices of loading."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        logging.enable_progress_bar()
