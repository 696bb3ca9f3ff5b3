"""PowerPaint v2 as a diffusers pipeline: a stock Stable Diffusion 1.5, a BrushNet and its own text encoder.

Zhuang et al., "A Task is Worth One Word: Learning with Task Prompts for High-Quality Versatile Image Inpainting"
(2023), version 2 of the released code. The base UNet reads the prompt, the BrushNet reads learned task tokens alone.

Axes: B rows, H W sides in pixels, h w in latent cells (an eighth of them), C channels, T text tokens, D text width.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from nearid_ray.synthesis.engines.brushnet import BrushNet, adding
from nearid_ray.synthesis.engines.powerpaint_weights import TASK_TOKENS, TASKS, VECTORS

_BLACK = -1.0


class PowerPaintPipeline(DiffusionPipeline):
    """Paints a region anew from a prompt. The whole picture is returned; its background is near the original only."""

    # The BrushNet runs at every step beside the UNet: it is left out, so that neither drives the other off the GPU.
    model_cpu_offload_seq = "text_encoder->text_encoder_brushnet->unet->vae"  # type: ignore[assignment]

    vae: Any
    text_encoder: Any
    tokenizer: Any
    unet: Any
    scheduler: Any
    brushnet: Any
    text_encoder_brushnet: Any

    def __init__(
        self,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        unet: Any,
        scheduler: Any,
        brushnet: BrushNet,
        text_encoder_brushnet: Any,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            brushnet=brushnet,
            text_encoder_brushnet=text_encoder_brushnet,
        )

    @torch.no_grad()
    def __call__(
        self,
        *,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        images: Sequence[np.ndarray],
        masks: Sequence[np.ndarray],
        generators: Sequence[torch.Generator],
        task: str = "text-guided",
        fitting_degree: float = 1.0,
        conditioning_scale: float = 1.0,
        guidance: float = 7.5,
        strength: float = 1.0,
        steps: int = 45,
    ) -> list[np.ndarray]:
        """One picture a row, (H, W, 3) float32 of 0 to 1.

        Args:
            prompts: what is to be painted.
            negative_prompts: what is not wanted; not read at a guidance of 1 or less.
            images: (H, W, 3) uint8, one size; H and W are multiples of eight.
            masks: (H, W) uint8, above 127 = paint.
            generators: one a row; its noise comes from it alone.
            task: a key of TASKS.
            fitting_degree: 0 to 1; how closely a shape-guided object fills the mask.
            conditioning_scale: factor of the BrushNet's features.
            guidance: classifier-free guidance scale; 1 or less is without.
            strength: above 0, to 1; below 1 the region starts from the picture's own latents with less noise.
            steps: denoising steps, of which the share `strength` is done.
        """
        guided = guidance > 1
        copies = 2 if guided else 1  # in each tensor all rows without the prompt, then all rows with it
        picture_B3HW = self._pixels(images)
        hole_B1HW = torch.from_numpy(np.stack(masks) > 127)[:, None].to(picture_B3HW.device)
        condition_BChw = self._condition(picture_B3HW, hole_B1HW).repeat(copies, 1, 1, 1)
        text_BTD = self.embed_prompts([*(negative_prompts if guided else ()), *prompts])
        # The task is the same with and without the prompt: guidance moves along the prompt alone.
        task_BTD = self.embed_task(task, fitting_degree).expand(len(text_BTD), -1, -1)
        timesteps = self._timesteps(steps, strength)
        latents_BChw = self._start(picture_B3HW, generators, timesteps, from_noise=strength == 1)
        for timestep in self.progress_bar(timesteps):
            noisy_BChw = self.scheduler.scale_model_input(latents_BChw, timestep)
            noisy_BChw = noisy_BChw.to(self.unet.dtype).repeat(copies, 1, 1, 1)
            features = self.brushnet(noisy_BChw, timestep, task_BTD, condition_BChw)
            with adding(self.unet, [feature * conditioning_scale for feature in features]):
                noise_BChw = self.unet(noisy_BChw, timestep, text_BTD, return_dict=False)[0].float()
            if guided:
                without_BChw, with_BChw = noise_BChw.chunk(2)
                noise_BChw = without_BChw + guidance * (with_BChw - without_BChw)
            latents_BChw = self.scheduler.step(noise_BChw, timestep, latents_BChw, return_dict=False)[0]
        painted_B3HW = self._decode(latents_BChw)
        self.maybe_free_model_hooks()
        return list((painted_B3HW.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())

    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """(B, T, D), for the base UNet. What is longer than the text encoder reads is cut."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.text_encoder(tokens.input_ids.to(self._execution_device))[0].to(self.unet.dtype)

    def embed_task(self, task: str, fitting_degree: float = 1.0) -> torch.Tensor:
        """(1, T, D), for the BrushNet: the task's tokens and nothing else.

        Raises:
            ValueError: an unknown task.
        """
        if task not in TASKS:
            raise ValueError(f"task {task!r}; expected one of {', '.join(TASKS)}")
        first, second = TASKS[task]
        ids_BT = torch.tensor([self._task_ids(first), self._task_ids(second)], device=self._execution_device)
        embedded_BTD = self.text_encoder_brushnet(ids_BT)[0]
        blended_BTD = fitting_degree * embedded_BTD[:1] + (1 - fitting_degree) * embedded_BTD[1:]
        return blended_BTD.to(self.brushnet.dtype)

    def _task_ids(self, token: str) -> list[int]:
        vocabulary = self.text_encoder_brushnet.config.vocab_size - VECTORS * len(TASK_TOKENS)
        start = vocabulary + VECTORS * TASK_TOKENS.index(token)
        ids = [self.tokenizer.bos_token_id, *range(start, start + VECTORS), self.tokenizer.eos_token_id]
        return ids + [self.tokenizer.pad_token_id] * (self.tokenizer.model_max_length - len(ids))

    def _pixels(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        pixels_B3HW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return (pixels_B3HW.to(self._execution_device, torch.float32) / 127.5 - 1).to(self.vae.dtype)

    def _condition(self, picture_B3HW: torch.Tensor, hole_B1HW: torch.Tensor) -> torch.Tensor:
        latents_BChw = self._encode(picture_B3HW.masked_fill(hole_B1HW, _BLACK))
        keep_B1hw = torch.nn.functional.interpolate((~hole_B1HW).float(), size=latents_BChw.shape[-2:], mode="nearest")
        return torch.cat([latents_BChw, keep_B1hw], dim=1).to(self.brushnet.dtype)

    def _timesteps(self, steps: int, strength: float) -> torch.Tensor:
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        left_out = steps - max(1, min(steps, int(steps * strength)))
        return self.scheduler.timesteps[left_out:]

    def _start(
        self,
        picture_B3HW: torch.Tensor,
        generators: Sequence[torch.Generator],
        timesteps: torch.Tensor,
        *,
        from_noise: bool,
    ) -> torch.Tensor:
        scale = 2 ** (len(self.vae.config.block_out_channels) - 1)
        height, width = (side // scale for side in picture_B3HW.shape[-2:])
        shape = (self.unet.config.in_channels, height, width)
        noise_BChw = torch.stack([torch.randn(shape, generator=one, device=one.device).cpu() for one in generators])
        noise_BChw = noise_BChw.to(picture_B3HW.device)
        if from_noise:
            return noise_BChw * self.scheduler.init_noise_sigma
        return self.scheduler.add_noise(self._encode(picture_B3HW), noise_BChw, timesteps[:1].repeat(len(noise_BChw)))

    def _encode(self, picture_B3HW: torch.Tensor) -> torch.Tensor:
        # The mode, where the released code draws a sample: it needs no noise, and differs from it by next to none.
        return self.vae.encode(picture_B3HW).latent_dist.mode().float() * self.vae.config.scaling_factor

    def _decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        return self.vae.decode((latents_BChw / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
