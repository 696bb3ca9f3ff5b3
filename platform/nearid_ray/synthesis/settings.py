"""What is synthesized, and which part of it a run makes."""

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nearid_ray.synthesis.gate import GateSettings
from schemas import SPLITS

GROUPS = ("train", "unseen", "extra", "part", "context", "simulation")


@dataclass(frozen=True, kw_only=True)
class SynthesisSettings:
    """Which distractors to make."""

    engines: tuple[str, ...] = ("toybox",)
    """Engine configurations: a name, a family (toybox) or FAMILY:GROUP (toybox:train); --list-engines shows all."""
    engine_options: tuple[str, ...] = ()
    """NAME.field=value each, e.g. sdxl-512.steps=20 flux-fill-512.weights=/models/fill; NAME.batch=4 sets the rows
    given to one engine at once."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of engines with a model. auto: what the output's plan has, else bfloat16 where the cluster has GPUs,
    else float32."""
    control: bool = False
    """Make an artefact control of each engine that can as well: the same object painted anew into its background."""
    control_strength: float = 0.3
    """How far a control may go from its object, where the engine can choose; above 0, to 1."""
    run_seed: int = 0
    """Seed of the run; another one gives another picture for every row."""
    splits: tuple[str, ...] = SPLITS
    """Splits to make distractors for."""
    eval_only_groups: tuple[str, ...] = ("unseen", "extra", "part")
    """Engine groups made for val and test alone: they never train. Artefact controls never do."""
    feather_px: float = 0.0
    """Width of the soft edge inside the painted region, in canonical pixels; outside of it nothing changes ever."""
    rows_per_shard: int = 0
    """Rows a shard; 0 chooses by the size of the pictures."""
    engine_batch: int = 8
    """Rows given to an engine at once, as the plan fixes it for new rows; a worker whose GPU's memory is too small
    halves it."""
    gate: GateSettings = GateSettings()

    def __post_init__(self) -> None:
        if not self.engines:
            raise ValueError("engines is empty; expected at least one engine, e.g. exemplar")
        unknown = sorted(set(self.splits) - set(SPLITS))
        if unknown or not self.splits:
            raise ValueError(f"splits holds {unknown or 'nothing'}; expected some of {', '.join(SPLITS)}")
        if set(self.eval_only_groups) - set(GROUPS):
            raise ValueError(f"eval_only_groups is {self.eval_only_groups}; expected some of {', '.join(GROUPS)}")
        for name, low in (("feather_px", 0), ("rows_per_shard", 0), ("engine_batch", 1)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {low}")
        if not 0 < self.control_strength <= 1:
            raise ValueError(f"control_strength is {self.control_strength}; expected above 0, at most 1")

    def content(self) -> dict[str, Any]:
        """What decides every row, beside the engines' own settings, which are in each row."""
        return {
            "run_seed": self.run_seed,
            "feather_px": self.feather_px,
            **asdict(self.gate),
        }


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which of the planned shards this run makes; the plan stays the same."""

    only_engine: tuple[str, ...] = ()
    """Make these engines' rows alone, by their name in the column `engine`."""
    max_rows: int | None = None
    """Make no more shards once so many rows are made; at least 1."""
    shard: str = ""
    """I/N, e.g. 2/4: make the second of four parts, for runs that share a plan."""

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows is {self.max_rows}; expected at least 1")
        if self.shard:
            part, parts = self.part()
            if not 1 <= part <= parts:
                raise ValueError(f"shard is {self.shard!r}; expected I/N with I from 1 to N, e.g. 2/4")

    def part(self) -> tuple[int, int]:
        """(I, N); (1, 1) without `shard`."""
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        return (int(found[1]), int(found[2])) if found else (0, 0)
