"""Tiny tokenizers of the real classes, trained on a few sentences: they save and load as the published ones do.

CLIP and T5 pad and cut as usual. Qwen's knows its prompt templates word by word, because its pipelines cut a fixed
number of template tokens off the front.
"""

import json
from collections.abc import Iterable
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, Qwen2Tokenizer, T5TokenizerFast

SENTENCES = (
    "a photo of a red mug with a white handle on a wooden table",
    "another teapot, similar but not the same, in soft light beside a green plant",
    "text, watermark, blurry, low resolution, worst quality",
)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
_WORD_END = "</w>"
_CLIP_ENDS = ("<|startoftext|>", "<|endoftext|>")
_QWEN_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def clip_tokenizer(pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """SDXL's second one pads with "!", the others with the end mark."""
    vocabulary, merges = _clip_vocabulary()
    return CLIPTokenizer(vocab=dict(vocabulary), merges=list(merges), model_max_length=77, pad_token=pad_token)


def t5_tokenizer() -> T5TokenizerFast:
    return T5TokenizerFast(vocab=list(_t5_vocabulary()), model_max_length=512)


def qwen_tokenizer() -> Qwen2Tokenizer:
    vocabulary, merges = _qwen_vocabulary()
    return Qwen2Tokenizer(
        vocab=dict(vocabulary), merges=list(merges), model_max_length=4096, extra_special_tokens=list(_QWEN_MARKS[1:])
    )


def qwen_template(pipeline_class: Any) -> tuple[str, int]:
    """(text put before a prompt, number of its tokens that are cut off again), as the class has them."""
    from inspect import signature

    bare = pipeline_class(**dict.fromkeys(list(signature(pipeline_class.__init__).parameters)[1:]))
    return bare.prompt_template_encode, bare.prompt_template_encode_start_idx


@cache
def _clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocabulary, merges = _byte_pairs(CLIPTokenizer(), SENTENCES, 800, _WORD_END)
    # Every byte also as the end of a word; the end mark last, because its place is found as the highest id.
    for token in (*(byte + _WORD_END for byte in _BYTES), *_CLIP_ENDS):
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary, merges


@cache
def _t5_vocabulary() -> tuple[tuple[str, float], ...]:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = T5TokenizerFast().backend_tokenizer.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=300,
        show_progress=False,
        unk_token="<unk>",
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=[chr(code) for code in range(33, 127)],
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["vocab"]
    return (*((token, score) for token, score in learned), *((f"<extra_id_{n}>", 0.0) for n in reversed(range(100))))


@cache
def _qwen_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    from diffusers import QwenImageControlNetInpaintPipeline, QwenImageEditPipeline

    templates = [qwen_template(kind)[0] for kind in (QwenImageControlNetInpaintPipeline, QwenImageEditPipeline)]
    for mark in _QWEN_MARKS:
        templates = [template.replace(mark, "") for template in templates]
    # Words seen often are merged whole.
    vocabulary, merges = _byte_pairs(Qwen2Tokenizer(), [*templates * 20, *SENTENCES], 2000)
    for mark in _QWEN_MARKS:
        vocabulary.setdefault(mark, len(vocabulary))
    return vocabulary, merges


def _byte_pairs(
    like: Any, texts: Iterable[str], size: int, word_end: str = ""
) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(vocabulary, merges) trained on text that is split as the class of `like` splits it."""
    ends = {"end_of_word_suffix": word_end} if word_end else {}
    tokenizer = Tokenizer(models.BPE(**ends))
    tokenizer.normalizer = like.backend_tokenizer.normalizer
    tokenizer.pre_tokenizer = like.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=_BYTES, **ends)
    tokenizer.train_from_iterator(texts, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    return learned["vocab"], [tuple(pair.split(" ") if isinstance(pair, str) else pair) for pair in learned["merges"]]
