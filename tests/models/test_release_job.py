"""The release job: what it writes, what it refuses."""

import json
from pathlib import Path

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.models.backbone import TOYBOX_BACKBONE, load_backbone
from nearid_ray.models.checkpoint import HeadCard, save_head
from nearid_ray.models.release import FILES, load
from nearid_ray.models.release_card import CardText
from nearid_ray.stages.release import Release, run_release
from nearid_ray.tracking import TrackingSettings

OFF = TrackingSettings(tracking_uri="off")
ROWS = [{"scorer": name, "condition": "full", "name": "all", "ssr": ssr} for name, ssr in (("a", 0.25), ("b", 0.75))]


@pytest.fixture
def head_folder(tmp_path: Path) -> Path:
    """A head as training keeps it, .../NAME/best."""
    backbone, folder = load_backbone(TOYBOX_BACKBONE), tmp_path / "heads" / "b" / "best"
    save_head(str(folder), backbone.head(), HeadCard.of(backbone.head(), TOYBOX_BACKBONE, backbone.fingerprint))
    return folder


def test_the_folder_holds_the_checkpoint_and_nothing_else(tmp_path: Path, head_folder: Path) -> None:
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps({"rows": ROWS}))
    output = tmp_path / "out" / "release"
    settings = Release(
        head=str(head_folder),
        output=str(output),
        metrics=str(evaluation),
        card=CardText(licence="cc-by-4.0"),
        tracking=OFF,
    )
    assert run_release(settings).summary["backbone"] == TOYBOX_BACKBONE
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    assert [path.name for path in output.parent.iterdir()] == ["release"]
    card = (output / "README.md").read_text()
    # The head's name is known from its folder.
    assert "75.00" in card and "25.00" not in card and "license: cc-by-4.0" in card
    assert load(str(output)).head.width == 128
    run_release(settings)


def test_its_run_is_tracked_beside_the_folder(tmp_path: Path, head_folder: Path) -> None:
    output = tmp_path / "out" / "release"
    run_release(Release(head=str(head_folder), output=str(output)))
    assert (output.parent / "mlflow.db").exists()
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)


def test_wrong_inputs_are_refused_before_anything_is_written(tmp_path: Path, head_folder: Path) -> None:
    output = str(tmp_path / "out" / "release")
    numbers = tmp_path / "numbers.json"
    numbers.write_text("[1]")
    with pytest.raises(UsageError, match="holds no head"):
        run_release(Release(head=str(tmp_path / "nowhere"), output=output, tracking=OFF))
    with pytest.raises(UsageError, match=r"metrics: .*nowhere.* cannot be read"):
        run_release(Release(head=str(head_folder), output=output, metrics=str(tmp_path / "nowhere"), tracking=OFF))
    with pytest.raises(UsageError, match="holds no JSON object"):
        run_release(Release(head=str(head_folder), output=output, metrics=str(numbers), tracking=OFF))
    with pytest.raises(UsageError, match="there is no such folder"):
        run_release(Release(head=str(head_folder), output=output, backbone="/no/such/model", tracking=OFF))
    with pytest.raises(UsageError, match="is not empty"):
        run_release(Release(head=str(head_folder), output=str(tmp_path), tracking=OFF))
    assert not (tmp_path / "out").exists()
