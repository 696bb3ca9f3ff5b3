"""What the Qwen-Image engines share: the parts beside the base model, the Lightning LoRA, guidance, noise by row."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.synthesis.engine import EngineRequest
from nearid_ray.synthesis.engines import loading
from nearid_ray.synthesis.engines.diffusion import DiffusionEngine, DiffusionSettings

if TYPE_CHECKING:
    import torch

LIGHTNING = "lightx2v/Qwen-Image-Lightning"
"""Hub id of the LoRAs that were distilled to 4 and 8 steps without guidance."""

LIGHTNING_SCHEDULER: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": math.log(3),
    "invert_sigmas": False,
    "max_image_seq_len": 8192,
    "max_shift": math.log(3),
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": None,
    "stochastic_sampling": False,
    "time_shift_type": "exponential",
    "use_beta_sigmas": False,
    "use_dynamic_shifting": True,
    "use_exponential_sigmas": False,
    "use_karras_sigmas": False,
}
"""What Lightning was distilled with: the same shift of 3 at every resolution, and steps down to no noise."""

_WEIGHT_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")


def lora_options(file_name: str) -> dict[str, Any]:
    """The options of a Lightning LoRA.

    `lora`: hub id, a .safetensors file, or a folder with `lora_file`; empty for none, and the model's own scheduler.
    `lora_revision`: branch, tag or commit on the hub. `lora_file`: which file of the hub's or of the folder.
    """
    return {"lora": LIGHTNING, "lora_revision": "", "lora_file": file_name}


class QwenEngine(DiffusionEngine):
    """Common to engines on Qwen-Image.

    `guidance` is the classifier-free one (`true_cfg_scale`); above 1 it takes a second pass a step with the negative
    prompt. Their `guidance_scale` has no effect on the published weights.
    """

    multiple_px = 16
    licence = "apache-2.0"
    supports = frozenset({"negative_prompt", "compile", "attention"})
    defaults: ClassVar[dict[str, Any]]
    """Every option of the family with its default."""

    def __init__(self, settings: DiffusionSettings) -> None:
        unknown = sorted(set(settings.options) - set(self.defaults))
        if unknown:
            raise UsageError(
                f"{settings.name}: options has no {', '.join(unknown)}; it has {', '.join(sorted(self.defaults))}"
            )
        super().__init__(replace(settings, options=self.defaults | settings.options))
        self._part_names: dict[str, str] = {}
        if settings.guidance < 1:
            raise UsageError(
                f"{settings.name}: guidance is {settings.guidance}; expected 1 (none, as Lightning wants it) or more"
            )
        if settings.negative_prompt and settings.guidance == 1:
            raise UsageError(
                f"{settings.name}: negative_prompt is set, but has no effect at guidance 1; raise guidance, or leave "
                "it out"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """Every value that changes pixels; after `check`, parts from paths by their names and contents."""
        values = super().settings
        return values | {"options": values["options"] | self._part_names}

    def check(self) -> None:
        """As every engine, and the parts beside the base model."""
        super().check()
        self.check_parts()

    def check_parts(self) -> None:
        """Find the LoRA, and fix which one is meant; families with more parts add theirs."""
        options = self.config.options
        if not options["lora"]:
            return
        self.need_peft()
        file = self._local_lora()
        if file is None:
            self.fix_on_hub("lora", options["lora_file"])
        elif not file.is_file():
            raise UsageError(
                f"{self.name}: options.lora {file}: there is no such file; copy it there, or get it with "
                f"`hf download {LIGHTNING} {self.defaults['lora_file']} --local-dir FOLDER`"
            )
        else:
            self.fix_here("lora", file, _digest(file))

    def need_peft(self) -> None:
        loading.need_packages(f"{self.name} (its LoRA)", "peft")

    def fix_here(self, part: str, path: Path, fingerprint: str) -> None:
        """Remember a part's absolute path, and what lies there."""
        if self.config.options[f"{part}_revision"]:
            raise UsageError(f"{self.name}: options.{part}_revision is set, but {part} is a path; leave it out")
        self._set(part, str(path.resolve()))
        self._part_names[part] = f"{path.name}@{fingerprint}"

    def fix_on_hub(self, part: str, file_name: str) -> None:
        """Ask the hub for the commit that is meant; nothing is fetched."""
        from huggingface_hub import hf_hub_download

        spec, revision = self.config.options[part], self.config.options[f"{part}_revision"]
        try:
            found = hf_hub_download(spec, file_name, revision=revision or None, dry_run=True)
        except Exception as error:  # its client raises errors of its own, of its transport and of the file system
            raise UsageError(
                f"{self.name}: options.{part} {spec} is no path here, and its {file_name} cannot be had from the hub: "
                f"{hub.in_words(error, spec)}"
            ) from error
        self._set(f"{part}_revision", found.commit_hash)

    def refuse_other(self, part: str, path: Path, fingerprint: Callable[[Path], str]) -> None:
        """UsageError where a path holds something else here than where `check` ran."""
        if part in self._part_names and self._part_names[part] != f"{path.name}@{fingerprint(path)}":
            raise UsageError(
                f"{self.name}: options.{part} {path} holds something else here than on the driver; give a path that "
                "all nodes share, or a hub id"
            )

    def with_lightning(self, pipeline: Any) -> Any:
        """The pipeline with the LoRA fused into its transformer, and the scheduler that it wants."""
        options = self.config.options
        if not options["lora"]:
            return pipeline
        from diffusers import FlowMatchEulerDiscreteScheduler
        from huggingface_hub import hf_hub_download

        self.need_peft()
        file = self._local_lora()
        if file is None:
            revision = options["lora_revision"] or None
            file = Path(hf_hub_download(options["lora"], options["lora_file"], revision=revision))
        elif file.is_file():
            self.refuse_other("lora", file, _digest)
        loading.fuse_lora(pipeline, file, f"{self.name}: options.lora")
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler.from_config(LIGHTNING_SCHEDULER)
        return pipeline

    def guided(self, requests: Sequence[EngineRequest]) -> dict[str, Any]:
        """Arguments of the pipeline for prompts, guidance and steps."""
        arguments = {
            "prompt": [request.prompt for request in requests],
            "true_cfg_scale": self.config.guidance,
            "num_inference_steps": self.config.steps,
        }
        if self.config.guidance > 1:
            # A single space is the model's own way to want nothing in particular; an empty text has no tokens.
            arguments["negative_prompt"] = [request.negative_prompt or " " for request in requests]
        return arguments

    def _local_lora(self) -> Path | None:
        options = self.config.options
        path = Path(options["lora"]).expanduser()
        if path.suffix == ".safetensors" or path.is_file():
            return path
        if hub.is_folder(options["lora"], f"{self.name}: options.lora", options["lora_file"]):
            return path / options["lora_file"]
        return None

    def _set(self, option: str, value: str) -> None:
        self.config = replace(self.config, options=self.config.options | {option: value})


def fetch_part(spec: str, revision: str) -> Path:
    """The folder of one model on the hub, its weights and their settings alone."""
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(spec, revision=revision or None, allow_patterns=list(_WEIGHT_FILES)))


@contextmanager
def own_noise(vae: Any, generators: "Sequence[torch.Generator]") -> Iterator[None]:
    """Inside, each row's latents are drawn from its generator where a pipeline names none.

    Without it a row would depend on what was drawn before it in this process, and on its place in the batch.
    """
    encode = vae.encode

    def encoded(*args: Any, **kwargs: Any) -> Any:
        output = encode(*args, **kwargs)
        latents = output.latent_dist
        latents.sample = partial(latents.sample, list(generators))
        return output

    vae.encode = encoded  # beside the class's method, not in its place
    try:
        yield
    finally:
        del vae.encode


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]
