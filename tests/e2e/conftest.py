"""Drive the job scripts as a person does: `run_job("ingest", "toybox", "--output", ...)`."""

import json
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

JOBS = Path(__file__).resolve().parents[2] / "jobs"


@dataclass(frozen=True)
class Ended:
    """How a job ended, and what it said."""

    code: int
    out: str
    err: str


RunJob = Callable[..., Ended]


@pytest.fixture
def run_job(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunJob:
    """Runs the script itself, in this process: a Ray session that is there is used, as the jobs do."""

    def run(name: str, *argv: object) -> Ended:
        script = JOBS / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, argv)])
        monkeypatch.syspath_prepend(str(JOBS))
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        out, err = capfd.readouterr()
        return Ended(int(ended.value.code or 0), out, err)

    return run


def summary_of(output: Path) -> dict[str, Any]:
    """What the job wrote beside its output."""
    return json.loads((output / "summary.json").read_text())


def photo(path: Path, *, seed: int, size: tuple[int, int] = (96, 80)) -> None:
    """A small picture of a coloured disc on a gradient, with its exact mask in `masks/` beside it."""
    rng = np.random.default_rng(seed)
    width, height = size
    y, x = np.mgrid[:height, :width]
    inside = (x - width * rng.uniform(0.4, 0.6)) ** 2 + (y - height * rng.uniform(0.4, 0.6)) ** 2 < (height * 0.25) ** 2
    ground = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, rng.integers(256))], axis=2)
    colour = rng.integers(0, 256, 3)
    image = np.where(inside[..., None], colour, ground).astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    (path.parent / "masks").mkdir(exist_ok=True)
    Image.fromarray(image).save(path)
    Image.fromarray((inside * 255).astype(np.uint8)).save(path.parent / "masks" / f"{path.stem}.png")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three mugs with two photos each and one lonely car, with masks and a csv of categories."""
    root = tmp_path / "my photos"
    for number, name in enumerate(("mug a", "mug b", "mug c", "car")):
        for view in range(2):
            photo(root / name / f"{view}.png", seed=10 * number + view)
    (tmp_path / "kinds.csv").write_text("name,kind\nmug a,mug\nmug b,mug\nmug c,mug\ncar,car\n")
    return root
