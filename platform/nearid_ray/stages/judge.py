"""The judge job: scorers that look at pairs of pictures - a vision-language model, VSM, a function of the user's."""

from dataclasses import dataclass
from typing import Any

from nearid_ray import job
from nearid_ray.data.pipeline import RunSettings, shards_to_make
from nearid_ray.data.store import Dataset, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.pairwise.function import FunctionScorer
from nearid_ray.evaluation.pairwise.judge import Inputs, described_judging, outcome_of, plan_judging
from nearid_ray.evaluation.pairwise.plan import PairSettings
from nearid_ray.evaluation.pairwise.scorer import PairScorer
from nearid_ray.evaluation.pairwise.vlm import VlmScorer, VlmSettings
from nearid_ray.evaluation.pairwise.vsm import VsmScorer, VsmSettings
from nearid_ray.settings import to_dict
from nearid_ray.tracking import TrackingSettings

KINDS = "vlm:MODEL, vsm:MODULE:EXTRACTOR, function:MODULE:FUNCTION or function:distance:MODULE:FUNCTION"
_USUAL_BATCH = {"vlm": 8, "vsm": 32, "function": 32}


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Score pairs of pictures with something that looks at both: views with views, and with their distractors."""

    tuples: str
    """The tuples dataset that ingest wrote."""
    judge: str
    """vlm:MODEL (a folder or hub id, e.g. vlm:Qwen/Qwen3-VL-8B-Instruct), vsm:MODULE:EXTRACTOR, or
    function:MODULE:FUNCTION; function:distance:MODULE:FUNCTION where smaller means more alike."""
    output: str
    """Folder or s3://bucket/prefix to write to."""
    distractors: str = ""
    """The distractors dataset that synthesize wrote; empty compares views alone."""
    generated: str = ""
    """Instead of distractors: a dataset of generated pictures, each compared with its identity's reference."""
    name: str = ""
    """The scorer's name in tables; by default made of the judge's."""
    arguments: tuple[str, ...] = ()
    """KEY=VALUE entries passed to the extractor or function, as text."""
    methods: tuple[str, ...] = ()
    """Generated pictures of these methods alone; all when empty."""
    batch_size: int = 0
    """Pairs that the judge is given at once; 0 takes 8 for a vision-language model, else 32. Halved on a GPU that has
    no room for them."""
    rows_per_shard: int = 64
    """Pairs that share a file; what a kill costs is the shards in flight. At least 1."""
    dry_run: bool = False
    """Print what would be asked and how long it takes, and write nothing."""
    seconds_a_row: float = 0.0
    """For --dry-run: seconds of one worker a pair; 0 takes what earlier runs of the output measured."""
    pairs: PairSettings = PairSettings()
    vlm: VlmSettings = VlmSettings()
    vsm: VsmSettings = VsmSettings()
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if self.batch_size < 0 or self.rows_per_shard < 1 or self.seconds_a_row < 0:
            raise ValueError(
                f"batch_size is {self.batch_size}, rows_per_shard {self.rows_per_shard}, seconds_a_row "
                f"{self.seconds_a_row}; expected 0 or more, at least 1, 0 or more"
            )
        if self.kind not in _USUAL_BATCH or (self.kind != "vsm" and not self.what):
            raise ValueError(f"judge is {self.judge!r}; expected {KINDS}")

    @property
    def kind(self) -> str:
        """vlm, vsm or function."""
        return self.judge.partition(":")[0]

    @property
    def what(self) -> str:
        """The model or code."""
        return self.judge.partition(":")[2]

    @property
    def scorer_name(self) -> str:
        """The column `scorer`."""
        last = self.what.rstrip("/").rpartition("/" if self.kind == "vlm" else ":")[2]
        return self.name or (last.lower() if self.kind == "vlm" else "vsm" if self.kind == "vsm" else last)


def scorer_of(settings: Judge) -> PairScorer:
    """The scorer that the settings ask for, neither checked nor loaded."""
    batch_size = settings.batch_size or _USUAL_BATCH[settings.kind]
    if settings.kind == "vlm":
        if settings.arguments:
            raise UsageError("arguments are given, which a vision-language judge does not take; leave them out")
        return VlmScorer(settings.what, settings.vlm, batch_size)
    if settings.kind == "vsm":
        return VsmScorer(settings.what, settings.arguments, settings.vsm, batch_size)
    return FunctionScorer(settings.what, settings.arguments, batch_size)


def plan_judge_job(settings: Judge) -> dict[str, Any]:
    """What `run_judge` would ask, by name; writes nothing."""
    return described_judging(
        Inputs.open(settings.tuples, settings.distractors, settings.generated),
        Dataset(locate(settings.output)),
        scorer_of(settings),
        settings.pairs,
        methods=settings.methods,
        seconds_a_row=settings.seconds_a_row,
    )


@job.owning_output("judge")
def run_judge(settings: Judge) -> job.Job:
    """Plan, and ask what has not been asked."""
    inputs = Inputs.open(settings.tuples, settings.distractors, settings.generated)
    output = Dataset(job.output_of(settings.output, settings.tracking))
    planned = plan_judging(
        inputs,
        output,
        scorer_of(settings),
        settings.scorer_name,
        settings.pairs,
        settings.run,
        rows_per_shard=settings.rows_per_shard,
        methods=settings.methods,
    )
    todo = shards_to_make(output, planned.plan, settings.run)
    with job.running(
        "judge",
        output.location,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={kind: dataset.location.uri for kind, dataset in inputs.by_kind().items()},
        needs_ray=bool(todo),
    ) as running:
        job.report_run(running, output, planned.run(settings.run))
        running.summary |= {"scorer": settings.scorer_name, **outcome_of(output)}
    return running
