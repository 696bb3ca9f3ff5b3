"""A trained head on disk: `head.safetensors` beside `head.json`, which says what it is and which backbone it fits."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch

from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.models.head import AttentionPoolingHead

WEIGHTS_FILE = "head.safetensors"
CARD_FILE = "head.json"
CALIBRATION_FILE = "calibration.json"
"""What may lie beside a head, or in a release: from its similarities to probabilities (`scoring.calibrated`)."""
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class HeadCard:
    """What a head is, apart from its weights."""

    width: int
    heads: int
    mlp_width: int
    eps: float
    backbone: str
    """Name of the backbone whose tokens it pools."""
    backbone_fingerprint: str
    """Fingerprint of that backbone's weights; tokens of any other are refused."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings it was trained with; empty for a backbone's own head."""
    metrics: dict[str, float | int | None] = field(default_factory=dict)
    """What was measured, e.g. step, val_ssr, val_pa."""

    @classmethod
    def of(cls, head: AttentionPoolingHead, backbone: str, backbone_fingerprint: str) -> "HeadCard":
        """The card of a head as it is."""
        return cls(
            width=head.width,
            heads=head.heads,
            mlp_width=head.mlp_width,
            eps=head.eps,
            backbone=backbone,
            backbone_fingerprint=backbone_fingerprint,
        )

    def check_backbone(self, fingerprint: str, what: str = "these tokens") -> None:
        """Raises UsageError when something was made by another backbone than this head's."""
        if fingerprint != self.backbone_fingerprint:
            raise UsageError(
                f"the head belongs to backbone {self.backbone} (fingerprint {self.backbone_fingerprint}), {what} to "
                f"one with fingerprint {fingerprint}; embed with the head's backbone or train a head for this one"
            )


def save_head(folder: str | Location, head: AttentionPoolingHead, card: HeadCard) -> None:
    """Write a head, whole: weights first, then the card, which names the weights it goes with.

    Raises:
        ValueError: the card's sizes are not the head's.
    """
    if (card.width, card.heads, card.mlp_width) != (head.width, head.heads, head.mlp_width):
        raise ValueError(f"the card {card} does not describe a head of {head.width}, {head.heads}, {head.mlp_width}")
    place = folder if isinstance(folder, Location) else locate(folder)
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    content = {"format": _FORMAT, **dataclasses.asdict(card), "weights": hashlib.sha256(weights).hexdigest()}
    place.child(WEIGHTS_FILE).write_bytes(weights)
    place.child(CARD_FILE).write_bytes((json.dumps(content, indent=2) + "\n").encode())


def load_head(folder: str | Location, backbone_fingerprint: str | None = None) -> tuple[AttentionPoolingHead, HeadCard]:
    """Read a head written by `save_head`.

    Args:
        folder: where it was written, local or on S3.
        backbone_fingerprint: fingerprint of the backbone it is wanted for; not checked when left out.

    Raises:
        UsageError: there is no head, it is damaged, or it belongs to another backbone.
    """
    place = folder if isinstance(folder, Location) else locate(folder)
    card, expected = _read_card(place)
    if backbone_fingerprint is not None:
        card.check_backbone(backbone_fingerprint, "what it is wanted for")
    weights = place.child(WEIGHTS_FILE)
    data = weights.read_bytes() if weights.exists() else b""
    if hashlib.sha256(data).hexdigest() != expected:
        said = f"not the one that {CARD_FILE} describes" if data else "missing"
        raise UsageError(f"{place.uri}: {WEIGHTS_FILE} is {said}; write the head again")
    head = AttentionPoolingHead.from_state_dict(safetensors.torch.load(data), card.heads, card.eps)
    return head, card


def _read_card(place: Location) -> tuple[HeadCard, str]:
    path = place.child(CARD_FILE)
    if not path.exists():
        raise UsageError(
            f"{place.uri} holds no head ({CARD_FILE} is missing); give a folder that training wrote, "
            "OUTPUT/heads/NAME/best or last"
        )
    try:
        content = json.loads(path.read_bytes())
        written, weights = content.pop("format"), content.pop("weights")
        if written != _FORMAT:
            raise UsageError(f"{path.uri} has format {written}; this version reads format {_FORMAT}")
        return HeadCard(**content), weights
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"{path.uri} is not the description of a head: {error!r}") from error
