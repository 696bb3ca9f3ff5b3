"""The Ray side of serving: replicas that hold the scorer and batch the pictures of different requests.

Needs the extra `serve`.
"""

import asyncio
from typing import Any

import cv2
import numpy as np
import ray
import torch
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve

from nearid_ray.models.files import ModelFiles
from nearid_ray.scoring.api import Limits, make_api
from nearid_ray.scoring.embedders import load_function
from nearid_ray.scoring.scorer import everywhere, load
from nearid_ray.scoring.serve import ServeSettings
from nearid_ray.user_code import is_named


@serve.deployment
@serve.ingress()
class ScoringService:
    """One replica."""

    def __init__(self, settings: ServeSettings) -> None:
        threads = max(1, int(settings.num_cpus))
        torch.set_num_threads(threads)
        cv2.setNumThreads(threads)
        self._limits = Limits(
            upload_bytes=int(settings.upload_mib * 2**20),
            pixels=int(settings.megapixels * 1e6),
            images=settings.max_images,
        )
        self.scorer = load(
            settings.scorer,
            device="cuda" if settings.num_gpus and ray.get_gpu_ids() else "cpu",
            name=settings.name,
            dtype=settings.dtype,
            backbone=settings.backbone,
            revision=settings.revision,
            image_px=settings.image_px,
            calibration=settings.calibration,
        )
        if self.scorer.calibration is not None:
            self.scorer.calibration.check(self.scorer.fingerprint, f"the scorer {self.scorer.name}")
        batched: Any = self._batched  # the decorator gives it more than its type says
        batched.set_max_batch_size(settings.max_batch_size)
        batched.set_batch_wait_timeout_s(settings.batch_wait_ms / 1000)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_api(self, self._limits)

    async def embed(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The unit vector of a picture at the model's size; waits for a batch."""
        return await self._batched(image)

    @serve.batch
    async def _batched(self, images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        # In a thread, so that the next requests are received and decoded meanwhile.
        return list(await asyncio.to_thread(self.scorer.embedder.embed, images))


def application(settings: ServeSettings) -> serve.Application:
    """The application with its replicas.

    Raises:
        UsageError: there is no such scorer, as far as its name tells.
    """
    spec = everywhere(settings.scorer)
    if is_named(spec):
        load_function(spec)
    elif "://" not in spec:
        ModelFiles.find(spec, what="scorer")
    values = {**settings.__dict__, "scorer": spec}
    service: Any = ScoringService
    return service.options(
        num_replicas=settings.num_replicas,
        max_ongoing_requests=settings.max_ongoing_requests,
        max_queued_requests=settings.max_queued_requests,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
    ).bind(ServeSettings(**values))
