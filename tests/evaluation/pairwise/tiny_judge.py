"""A tiny Qwen3-VL with random weights, of the real classes, in the layout that hubs have.

Its vocabulary holds every byte and, one token each, the parts of our prompt, so that two pictures are a good part of
what it reads, and whole answers: all eleven scores, and one that is no JSON. With `only_answers` the last layer can
name these alone, so that with one new token it answers what was asked for.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from nearid_ray.evaluation.pairwise.answers import INSTRUCTIONS, SYSTEM_PROMPT
from nearid_ray.evaluation.pairwise.vlm import VlmScorer

MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
REFUSAL = "I would rather not say."
ANSWERS = (
    *(
        json.dumps({"matching_cues": ["shape"], "conflicting_cues": [], "confident": score % 2 == 0, "score": score})
        for score in range(11)
    ),
    REFUSAL,
)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> Qwen2Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    vocabulary |= {mark: len(vocabulary) + number for number, mark in enumerate(MARKS)}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], extra_special_tokens=list(MARKS[1:]))
    made.add_tokens([SYSTEM_PROMPT, INSTRUCTIONS, *ANSWERS])
    made.chat_template = TEMPLATE
    return made


def write_judge(folder: Path, *, only_answers: bool = False, seed: int = 1, **changes: Any) -> Path:
    words = tokenizer()
    ids = {mark: words.convert_tokens_to_ids(mark) for mark in MARKS}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 8192,
        "rope_parameters": rope,
        "eos_token_id": ids["<|im_end|>"],
        "bos_token_id": None,
        "pad_token_id": ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        **changes,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Of a size at which pictures move the answer.
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * (1.0 if "embed" in name else 0.25))
    # As published ones do: without care an answer is drawn at random, and words that were said are avoided.
    model.generation_config.update(do_sample=True, temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.5)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    Qwen2VLImageProcessorPil(patch_size=16, merge_size=2, temporal_patch_size=2, size=size).save_pretrained(folder)
    if only_answers:
        _name_answers_alone(model, folder)
    return folder


@torch.no_grad()
def _name_answers_alone(model: Any, folder: Path) -> None:
    """Zero for every other token, and for what all pictures have in common: how they differ decides the answer."""
    scorer = VlmScorer(str(folder))
    scorer.check()
    scorer.load("cpu")
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(16)]
    pairs = [[images[n], images[n - 1]] for n in range(16)]
    inputs = scorer._processor(text=[scorer._prompt()] * 16, images=pairs, return_tensors="pt")
    state_BD = model.model(**inputs).last_hidden_state[:, -1]
    common_D = torch.nn.functional.normalize(state_BD.mean(dim=0), dim=0)
    weight_VD = model.lm_head.weight
    weight_VD[: len(scorer._processor.tokenizer) - len(ANSWERS)] = 0
    weight_VD -= (weight_VD @ common_D)[:, None] * common_D
    model.save_pretrained(folder)
