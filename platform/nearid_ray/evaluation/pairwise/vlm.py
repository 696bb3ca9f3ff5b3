"""A vision-language model as a judge of pairs: Qwen3-VL, or any model of transformers that reads pictures and writes.

Batches are padded on the left whatever the model's files say: their default, the right, makes generation wrong. Each
row's two pictures go to the processor as a list of their own, since a flat list is taken for one row's. Video is never
read, so that processors are built without their video part, which would ask for torchvision.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from nearid_ray import hub
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.answers import (
    BEFORE_FIRST,
    BEFORE_SECOND,
    INSTRUCTIONS,
    SYSTEM_PROMPT,
    UnreadableAnswer,
    similarity_of,
)
from nearid_ray.evaluation.pairwise.scorer import Judgement, Pair
from nearid_ray.gpu_batches import is_out_of_memory
from nearid_ray.models.files import ModelFiles

WHAT = "judge"


@dataclass(frozen=True, kw_only=True)
class VlmSettings:
    """How a vision-language judge answers."""

    revision: str | None = None
    """Judge: branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Judge: precision of its weights; auto: bfloat16 where the hardware has it, else float32."""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """Judge: auto takes FlashAttention-2 where it is installed and the model is on a GPU, else PyTorch's own (sdpa)."""
    max_new_tokens: int = 512
    """Judge: longest answer in tokens; one that is cut off there cannot be read. At least 1."""
    trust_remote_code: bool = False
    """Judge: run Python code that the model's repository brings along. It can do anything to this machine: read it
    first."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1")


@dataclass
class VlmScorer:
    """Scores by the answer of a vision-language model: its score from 0 to 10, divided by 10."""

    model: str
    """A folder or a hub id."""
    settings: VlmSettings = VlmSettings()
    batch_size: int = 8
    uses_masks: bool = False
    _fingerprint: str = field(default="", repr=False)
    _model: Any = field(default=None, repr=False)
    _processor: Any = field(default=None, repr=False)
    _ends: frozenset[int] = field(default=frozenset(), repr=False)

    def check(self) -> None:
        """See that there is such a model, that it answers on pictures, and which one it is; nothing large is read."""
        files = self._files()
        config = files.json("config.json")
        if config is None:
            raise UsageError(f"{WHAT} {self.model} holds no model: config.json is missing")
        self._check_kind(config)
        local = Path(files.source)
        self._fingerprint = hub.fingerprint(local) if files.local else (files.commit() or self.settings.revision or "")

    def described(self) -> dict[str, Any]:
        name = Path(self.model).name if self._files().local else self.model
        return {
            "kind": "vlm",
            "model": name,
            "fingerprint": self._fingerprint,
            "dtype": self.settings.dtype,
            "max_new_tokens": self.settings.max_new_tokens,
            "system_prompt": SYSTEM_PROMPT,
            "instructions": INSTRUCTIONS,
        }

    def load(self, device: str) -> None:
        """Load model and processor.

        Raises:
            UsageError: files are missing, damaged or not those that the plan was made with, or a package is missing.
        """
        import torch

        from nearid_ray.models.backbone import resolve_dtype

        planned = self._fingerprint
        self.check()
        if planned and planned != self._fingerprint:
            raise UsageError(
                f"the {WHAT} {self.model} of this worker has the fingerprint {self._fingerprint}, that of the driver "
                f"{planned}; give a path that all nodes share, or a hub id with a revision"
            )
        dtype = getattr(torch, resolve_dtype(self.settings.dtype, device))
        with hub.quiet_transformers():
            self._processor = self._load_processor()
            self._model = self._load_model(device, dtype)
        self._prepare_generation()

    def score(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """One answer a pair, written greedily, all pairs in one pass."""
        import torch
        from PIL import Image

        if self._model is None:
            raise RuntimeError("the judge is not loaded yet; call load first")
        pictures = [[Image.fromarray(side.image_HW3) for side in (pair.first, pair.second)] for pair in pairs]
        inputs = self._processor(
            text=[self._prompt()] * len(pairs),
            images=pictures,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            written = self._model.generate(**inputs, do_sample=False, max_new_tokens=self.settings.max_new_tokens)
        answers = written[:, inputs["input_ids"].shape[1] :].tolist()
        return [self._judged(tokens) for tokens in answers]

    def _judged(self, tokens: list[int]) -> Judgement:
        end = next((place for place, token in enumerate(tokens) if token in self._ends), None)
        kept = tokens if end is None else tokens[:end]
        answer = self._processor.tokenizer.decode(kept, skip_special_tokens=True).strip()
        try:
            return Judgement(similarity=similarity_of(answer), answer=answer)
        except UnreadableAnswer as error:
            cut = f"; it was cut off after {len(tokens)} tokens (max_new_tokens)" if end is None else ""
            return Judgement(answer=answer, error=f"the answer cannot be read: {error}{cut}")

    def _prompt(self) -> str:
        asked = [
            {"type": "text", "text": BEFORE_FIRST},
            {"type": "image"},
            {"type": "text", "text": BEFORE_SECOND},
            {"type": "image"},
            {"type": "text", "text": INSTRUCTIONS},
        ]
        messages = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM_PROMPT}]},
            {"role": "user", "content": asked},
        ]
        return self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _files(self) -> ModelFiles:
        return ModelFiles.find(self.model, self.settings.revision, what=WHAT)

    def _check_kind(self, config: dict[str, Any]) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as KNOWN

        kind = config.get("model_type")
        if kind in KNOWN:
            return
        if "auto_map" in config and self.settings.trust_remote_code:
            return
        own = " (or trust its own code with --trust-remote-code)" if "auto_map" in config else ""
        raise UsageError(
            f"{WHAT} {self.model} is a {kind} model, which does not answer questions on pictures; expected a "
            f"vision-language model, e.g. Qwen/Qwen3-VL-8B-Instruct{own}"
        )

    def _load_processor(self) -> Any:
        files = self._files()
        given = {"revision": files.revision or "main", "local_files_only": files.local}
        given["trust_remote_code"] = self.settings.trust_remote_code
        try:
            processor = self._processor_class(files).from_pretrained(files.source, **given)
        except Exception as error:  # of the libraries
            raise UsageError(
                f"{WHAT} {self.model}: its processor cannot be loaded: {hub.in_words(error, self.model)} Expected the "
                "tokenizer's files, preprocessor_config.json and a chat template beside the weights"
            ) from error
        if not processor.chat_template and not processor.tokenizer.chat_template:
            raise UsageError(f"{WHAT} {self.model} has no chat template; expected a model that follows instructions")
        words = processor.tokenizer
        if _letters(words.decode(words(INSTRUCTIONS)["input_ids"], skip_special_tokens=True)) != _letters(INSTRUCTIONS):
            # transformers makes an empty one where files are missing, and says nothing.
            raise UsageError(
                f"{WHAT} {self.model}: its tokenizer does not give back the text that it is given; are its files "
                "(tokenizer.json) missing?"
            )
        return processor

    def _processor_class(self, files: ModelFiles) -> Any:
        import transformers
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

        kind = (files.json("config.json") or {}).get("model_type", "")
        found = getattr(transformers, PROCESSOR_MAPPING_NAMES.get(kind) or "", None)
        if self.settings.trust_remote_code or found is None:
            return transformers.AutoProcessor
        attributes = found.get_attributes()
        if "video_processor" not in attributes:
            return found
        kept = [name for name in attributes if name != "video_processor"]
        return type(found.__name__, (found,), {"get_attributes": classmethod(lambda _: kept)})

    def _load_model(self, device: str, dtype: Any) -> Any:
        from transformers import AutoModelForImageTextToText

        files = self._files()
        straight = device != "cpu" and find_spec("accelerate") is not None  # no second copy in the main memory
        try:
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                files.source,
                revision=files.revision or "main",
                local_files_only=files.local,
                trust_remote_code=self.settings.trust_remote_code,
                dtype=dtype,
                attn_implementation=self._attention(device, dtype),
                output_loading_info=True,
                **({"device_map": {"": device}} if straight else {}),
            )
        except Exception as error:  # of the libraries, of safetensors, of torch
            if is_out_of_memory(error):
                said = "it does not fit the memory of one GPU; take a smaller model or a larger GPU"
                raise UsageError(f"{WHAT} {self.model}: {said}") from error
            raise UsageError(
                f"{WHAT} {self.model}: its weights cannot be read: {hub.in_words(error, self.model)}"
            ) from error
        model, report = loaded
        missing = sorted(report["missing_keys"])
        if missing:
            raise UsageError(f"{WHAT} {self.model}: its weights lack {len(missing)} tensor(s), e.g. {missing[0]}")
        return (model if straight else model.to(device)).eval().requires_grad_(False)

    def _attention(self, device: str, dtype: Any) -> str:
        import torch
        from transformers.utils import is_flash_attn_2_available

        if self.settings.attention != "auto":
            return self.settings.attention
        flash = device != "cpu" and dtype in (torch.float16, torch.bfloat16) and is_flash_attn_2_available()
        return "flash_attention_2" if flash else "sdpa"

    def _prepare_generation(self) -> None:
        """Keep of the model's own generation settings the end marks alone: published ones sample, with penalties."""
        from transformers import GenerationConfig

        own, tokenizer = self._model.generation_config, self._processor.tokenizer
        ends = own.eos_token_id if own.eos_token_id is not None else tokenizer.eos_token_id
        ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else own.pad_token_id
        if not ends:
            raise UsageError(f"{WHAT} {self.model} names no token that ends an answer (eos_token_id)")
        self._ends = frozenset(ends)
        self._model.generation_config = GenerationConfig(
            eos_token_id=ends, pad_token_id=ends[0] if padding is None else padding, bos_token_id=own.bos_token_id
        )


def _letters(text: str) -> str:
    return "".join(text.split())
