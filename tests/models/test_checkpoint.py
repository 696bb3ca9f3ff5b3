"""Heads on disk come back as they were, and only where they fit."""

from pathlib import Path

import pytest
import torch

from nearid_ray.errors import UsageError
from nearid_ray.models.checkpoint import CARD_FILE, WEIGHTS_FILE, HeadCard, load_head, save_head
from nearid_ray.models.head import AttentionPoolingHead


def written(folder: Path) -> tuple[AttentionPoolingHead, HeadCard]:
    head = AttentionPoolingHead(16, 2, 32, 1e-5)
    card = HeadCard(
        width=16,
        heads=2,
        mlp_width=32,
        eps=1e-5,
        backbone="toy",
        backbone_fingerprint="abc",
        settings={"alpha": 0.5, "engines": ["fill"]},
        metrics={"step": 20, "val_ssr": 0.75},
    )
    save_head(str(folder), head, card)
    return head, card


def test_a_head_comes_back_with_its_weights_and_card(tmp_path: Path) -> None:
    head, card = written(tmp_path / "head")
    again, card_again = load_head(str(tmp_path / "head"), "abc")
    assert card_again == card and again.eps == 1e-5
    for name, value in head.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    assert sorted(path.name for path in (tmp_path / "head").iterdir()) == [CARD_FILE, WEIGHTS_FILE]


def test_the_card_of_a_head_describes_it() -> None:
    card = HeadCard.of(AttentionPoolingHead(16, 2, 32, 1e-5), "toy", "abc")
    assert (card.width, card.heads, card.mlp_width, card.eps, card.settings) == (16, 2, 32, 1e-5, {})


def test_a_folder_without_a_head_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere holds no head"):
        load_head(str(tmp_path / "nowhere"))


def test_a_head_of_another_backbone_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    written(tmp_path)
    with pytest.raises(UsageError, match=r"backbone toy \(fingerprint abc\).*fingerprint xyz"):
        load_head(str(tmp_path), "xyz")


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_weights_that_are_not_those_of_the_card_are_refused(tmp_path: Path, damage: str) -> None:
    written(tmp_path)
    weights = tmp_path / WEIGHTS_FILE
    if damage == "gone":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-10])
    else:
        other = tmp_path / "other"
        written(other)
        weights.write_bytes((other / WEIGHTS_FILE).read_bytes())
    with pytest.raises(UsageError, match="missing" if damage == "gone" else "not the one"):
        load_head(str(tmp_path))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "weights": "x", "colour": 3}'])
def test_a_card_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    written(tmp_path)
    (tmp_path / CARD_FILE).write_text(text)
    with pytest.raises(UsageError, match="not the description of a head"):
        load_head(str(tmp_path))


def test_a_later_format_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    card = tmp_path / CARD_FILE
    card.write_text(card.read_text().replace('"format": 1', '"format": 7'))
    with pytest.raises(UsageError, match="format 7"):
        load_head(str(tmp_path))


def test_a_card_of_other_sizes_is_not_written(tmp_path: Path) -> None:
    card = HeadCard.of(AttentionPoolingHead(16, 2, 32), "toy", "abc")
    with pytest.raises(ValueError, match="does not describe"):
        save_head(str(tmp_path), AttentionPoolingHead(16, 4, 32), card)
    assert not list(tmp_path.iterdir())
