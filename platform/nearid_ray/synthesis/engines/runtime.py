"""Where a diffusers pipeline runs and how fast: device, offload, compilation, attention backend, first-block cache."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nearid_ray.errors import UsageError

if TYPE_CHECKING:
    from nearid_ray.synthesis.engines.diffusion import DiffusionSettings


def device() -> str:
    """cuda where this worker was given a GPU, else cpu."""
    import ray
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    # A Ray worker that asked for no GPU may still see those of its machine.
    return "cuda" if not ray.is_initialized() or ray.get_gpu_ids() else "cpu"


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
            from diffusers import attention_backend

            # It would stay on for every other model of this worker as well: the context puts back what was before.
            with attention_backend():
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
def caching(pipeline: Any, settings: "DiffusionSettings") -> Iterator[None]:
    """The first-block cache for one call of a pipeline that does not open it itself (those of Flux).

    Whether a step is skipped is decided for the whole batch: with the cache a row's picture depends on its batch.
    """
    if not settings.cache_threshold:
        yield
        return
    with denoiser(pipeline).cache_context("cond"):
        yield


@contextmanager
def quiet_diffusers() -> Iterator[None]:
    """Without the bars and notices of diffusers; what matters in them is checked and said by us."""
    from diffusers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # Of its own doings that will change; what we run on is pinned.
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
