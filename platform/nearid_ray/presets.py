"""Named presets: functions that return {flat setting: value}. Later sources (YAML file, flags) override them.

Published: learning rate, schedule, batch, epochs, masking, engines, repeats (arXiv 2604.01973, its tables 3 and 6). How
often to validate and save is not.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from nearid_ray.settings import Preset
from nearid_ray.training.losses import OBJECTIVE_NAMES, ObjectiveName

TRAINING_ENGINES = ("flux-fill-512", "flux-fill-1024", "qwen-image-512", "qwen-image-1328")
"""The four engine configurations the paper trains on."""
MTG_ENGINE = "mtg-inpaint"
"""The engine of Mind-the-Glitch's inpainted pictures."""


def recipe() -> dict[str, Any]:
    """What all trainings of the paper share."""
    return {
        "distractors": "views",
        "learning_rate": 1e-4,
        "weight_decay": 1e-4,
        "clip": 1.0,
        "warmup_steps": 100,
        "global_batch": 128,
        "epochs": 11,
        "anchor_mask_probability": 0.5,
        "positive_mask_probability": 0.2,
        "distractor_mask_probability": 0.6,
    }


def paper(objective: ObjectiveName = "nearid") -> dict[str, Any]:
    """The paper's training: SigLIP2 so400m 384, NearID with four engines and Mind-the-Glitch four times an epoch."""
    return {
        **recipe(),
        "objective": objective,
        "backbone": "google/siglip2-so400m-patch14-384",
        "sources": ("nearid", "mtg"),
        "validation_sources": ("nearid",),
        "engines": (*TRAINING_ENGINES, MTG_ENGINE),
        "repeats": ("mtg=4",),
        "precision": "fp16",
    }


def nearid_only() -> dict[str, Any]:
    """Table 6: four engines, without Mind-the-Glitch."""
    return {**paper(), "sources": ("nearid",), "engines": TRAINING_ENGINES, "repeats": ()}


def mtg_only() -> dict[str, Any]:
    """Table 6: Mind-the-Glitch alone, eight times an epoch."""
    only = {"sources": ("mtg",), "validation_sources": ("mtg",), "engines": (MTG_ENGINE,), "repeats": ("mtg=8",)}
    return {**paper(), **only}


def single_engine() -> dict[str, Any]:
    """Table 6: one engine, without Mind-the-Glitch."""
    return {**nearid_only(), "engines": TRAINING_ENGINES[:1]}


def toybox() -> dict[str, Any]:
    """For the million-parameter toy backbone: a larger learning rate, smaller batches, fewer steps."""
    return {
        **recipe(),
        "learning_rate": 1e-3,
        "global_batch": 32,
        "warmup_steps": 20,
        "max_steps": 400,
        "evaluate_every": 50,
        "checkpoint_every": 200,
    }


def paper_backbone() -> dict[str, Any]:
    """The paper's backbone."""
    return {"backbone": "google/siglip2-so400m-patch14-384"}


def toybox_backbone() -> dict[str, Any]:
    """The shipped toy backbone, which is also the default."""
    return {"backbone": "toybox-siglip2"}


TRAIN: Mapping[str, Preset] = {
    "paper": paper,
    "toybox": toybox,
    **{f"table3/{objective}": partial(paper, objective) for objective in OBJECTIVE_NAMES},
    "table6/nearid+mtg": paper,
    "table6/nearid-only": nearid_only,
    "table6/mtg-only": mtg_only,
    "table6/single-engine": single_engine,
}
EMBED: Mapping[str, Preset] = {"paper": paper_backbone, "toybox": toybox_backbone}


def paper_size() -> dict[str, Any]:
    """The paper's data: 19,386 identities, 45,215 views, seven engine configurations, Mind-the-Glitch."""
    return {**paper_backbone(), "identities": 19_386, "views": 45_215, "mtg_samples": 5_600}


def all_engines_size() -> dict[str, Any]:
    """The same with FLUX Canny: all nine published configurations."""
    extra = ("flux-canny-512", "flux-canny-1024")
    return {**paper_size(), "engines": (*TRAINING_ENGINES, "powerpaint-512", "sdxl-512", "sdxl-1024", *extra)}


PLAN: Mapping[str, Preset] = {"paper": paper_size, "paper-nine-engines": all_engines_size}
