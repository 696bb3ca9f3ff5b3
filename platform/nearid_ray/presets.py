"""Named presets: functions that return {flat setting: value}. Later sources (YAML file, flags) override them."""

from collections.abc import Mapping
from typing import Any

from nearid_ray.settings import Preset


def paper() -> dict[str, Any]:
    """The paper's training recipe, which is also the default: written out so that it can be asked for by name."""
    return {
        "alpha": 0.5,
        "beta": 0.0,
        "temperature": 0.07,
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


def toybox() -> dict[str, Any]:
    """For the million-parameter toy backbone: a larger learning rate, smaller batches, fewer steps."""
    return {
        **paper(),
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


TRAIN: Mapping[str, Preset] = {"paper": paper, "toybox": toybox}
EMBED: Mapping[str, Preset] = {"paper": paper_backbone, "toybox": toybox_backbone}
