"""What can be set about training, and where it runs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from nearid_ray.errors import UsageError
from nearid_ray.settings import to_dict
from nearid_ray.training.losses import (
    OBJECTIVE_NAMES,
    Objective,
    ObjectiveName,
    ObjectiveOptions,
    Reduction,
    make_objective,
)
from nearid_ray.training.objectives.make import options_of
from nearid_ray.training.selection import DistractorScope, SelectionSettings

Precision = Literal["fp32", "bf16", "fp16"]

OPTIONS = tuple(field.name for field in fields(ObjectiveOptions))
"""Settings that belong to the objective."""

PER_HEAD = frozenset(
    {"objective", *OPTIONS, "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "clip", "warmup_steps"}
)
"""Settings in which heads that are trained together may differ: the others decide what is read, and when."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """The recipe: all that decides what a head learns from a token cache. Defaults are the paper's."""

    objective: ObjectiveName = "nearid"
    """What is minimised. An option below that is None is the objective's own default; one that the objective does not
    have is refused."""
    alpha: float | None = None
    """Weight of the ranking term, that distractors stay above other identities, at least 0; 0.5 by default. With an
    oracle objective the weight of the oracle ranking; 1 by default."""
    beta: float | None = None
    """Weight of the cohesion term, that an identity's views stay together; at least 0. By default nearid 0,
    nearid-cohesion 0.1."""
    temperature: float | None = None
    """What cosines are divided by to give logits; above 0; 0.07 by default."""
    reduction: Reduction | None = None
    """How slots are averaged. paper (default): mean of each slot over the anchors that have it, then over slots. pairs:
    mean over all filled slots. They differ where identities have different numbers of views."""
    mode: Literal["exact", "reference"] | None = None
    """exact (default): missing slots are absent everywhere. reference: what the released implementation does, blank
    pictures in empty slots included. NearID objectives only."""
    margin: float | None = None
    """Margin on cosines, 0 to 2; oracle ranking 0.05, circle-rank 0.25 by default."""
    gamma: float | None = None
    """Scale of circle-rank; above 0; 64 by default."""
    bias: float | None = None
    """Bias of siglip-rank; -10 by default."""
    hinge: Literal["largest", "mean"] | None = None
    """What circle-rank's hinge compares with: the largest batch negative (default) or the mean over all."""
    chunk: int | None = None
    """Pool entries handled at once, 1 or more; 8192 by default. Changes memory, not the result."""
    sources: tuple[str, ...] = ()
    """Sources whose identities are trained on (what an identity's name has before the colon); all when empty."""
    validation_sources: tuple[str, ...] = ()
    """Sources whose identities choose the best step; all when empty."""
    engines: tuple[str, ...] = ()
    """Engines whose distractors are trained on; all of the train split when empty."""
    distractors: DistractorScope = "views"
    """views: one distractor a view of the identity, the anchor's own background first. anchor: several engines, all in
    the anchor's own background."""
    positives: int = 2
    """Positive slots a sample; 1 or more. Identities with fewer other views leave slots empty."""
    distractor_slots: int = 3
    """Distractor slots a sample; 0 or more."""
    anchor_mask_probability: float = 0.5
    """Chance that an anchor's background is blacked out, 0 to 1; without effect on a cache without masked items."""
    positive_mask_probability: float = 0.2
    """The same for a positive."""
    distractor_mask_probability: float = 0.6
    """The same for a distractor."""
    repeats: tuple[str, ...] = ()
    """SOURCE=N: an epoch goes N times through the identities of a source, as in `mtg=4`; once where not named."""
    learning_rate: float = 1e-4
    """Learning rate after warm-up; above 0."""
    weight_decay: float = 1e-4
    """AdamW's weight decay; at least 0."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient; 0 to below 1."""
    adam_beta2: float = 0.999
    """AdamW's decay of the mean squared gradient; 0 to below 1."""
    clip: float = 1.0
    """Largest norm of the gradient of all parameters; 0 clips nothing."""
    warmup_steps: int = 100
    """Steps in which the learning rate rises; it falls to zero along a cosine afterwards. Fewer than all steps."""
    global_batch: int = 128
    """Samples of a step, over all workers; 1 or more."""
    epochs: int = 11
    """How often training goes through the train split; 1 or more."""
    max_steps: int = 0
    """Number of steps instead of epochs; 0 takes `epochs`."""
    evaluate_every: int = 50
    """Steps between validations, by which the best head is kept; 0 validates never and keeps the last head."""
    checkpoint_every: int = 200
    """Steps between checkpoints, from which an interrupted run goes on; 0 writes one at the end alone."""
    precision: Precision = "fp32"
    """What the head computes in; the loss is always float32. bf16 and fp16 pay on GPUs; fp16 reads float16 tokens as
    they are, and scales the loss so that small gradients survive."""
    seed: int = 0
    """Names every random choice of the data; 0 or more."""

    def __post_init__(self) -> None:
        for name in ("weight_decay", "clip"):
            _check(name, getattr(self, name), "a number of at least 0", lambda v: math.isfinite(v) and v >= 0)
        _check("learning_rate", self.learning_rate, "a number above 0", lambda v: math.isfinite(v) and v > 0)
        for name in ("anchor_mask_probability", "positive_mask_probability", "distractor_mask_probability"):
            _check(name, getattr(self, name), "a probability from 0 to 1", lambda v: 0 <= v <= 1)
        for name in ("adam_beta1", "adam_beta2"):
            _check(name, getattr(self, name), "a number from 0 to below 1", lambda v: 0 <= v < 1)
        for name in ("positives", "global_batch", "epochs"):
            _check(name, getattr(self, name), "1 or more", lambda v: v >= 1)
        for name in ("distractor_slots", "warmup_steps", "max_steps", "evaluate_every", "checkpoint_every", "seed"):
            _check(name, getattr(self, name), "0 or more", lambda v: v >= 0)
        _check("objective", self.objective, ", ".join(OBJECTIVE_NAMES), lambda v: v in OBJECTIVE_NAMES)
        _check("distractors", self.distractors, "views or anchor", lambda v: v in ("views", "anchor"))
        _check("precision", self.precision, "fp32, bf16 or fp16", lambda v: v in ("fp32", "bf16", "fp16"))
        for name in ("engines", "sources", "validation_sources"):
            _check(name, getattr(self, name), "different names", lambda v: len(set(v)) == len(v) and all(v))
        self.repeats_by_source()
        self.make_objective()

    def repeats_by_source(self) -> dict[str, int]:
        """`repeats` as {source: times}."""
        result: dict[str, int] = {}
        for entry in self.repeats:
            source, _, times = entry.partition("=")
            if not source or not times.isdecimal() or int(times) < 1 or source in result:
                raise UsageError(f"repeats: {entry!r} is not SOURCE=N with N of at least 1, each source once")
            result[source] = int(times)
        return result

    def selection(self) -> SelectionSettings:
        """The part that decides what a step reads."""
        return SelectionSettings(
            seed=self.seed,
            positives=self.positives,
            distractor_slots=self.distractor_slots,
            distractors=self.distractors,
            anchor_mask_probability=self.anchor_mask_probability,
            positive_mask_probability=self.positive_mask_probability,
            distractor_mask_probability=self.distractor_mask_probability,
            repeats=self.repeats_by_source(),
        )

    def make_objective(self) -> Objective:
        """What a step minimises; UsageError where an option is out of range or not one of the objective's."""
        return make_objective(self.objective, ObjectiveOptions(**{name: getattr(self, name) for name in OPTIONS}))

    def resolved(self) -> dict[str, Any]:
        """All settings as a JSON-like dictionary, the objective's options with the values they have, others None."""
        objective, mine = self.make_objective(), options_of(self.objective)
        return to_dict(self) | {name: getattr(objective, name) if name in mine else None for name in OPTIONS}

    def check_same(self, saved: Mapping[str, Any]) -> None:
        """Raises UsageError when saved settings (`resolved`) differ from these, naming the fields."""
        mine = self.resolved()
        changed = sorted(name for name in mine.keys() | saved.keys() if mine.get(name) != saved.get(name))
        if changed:
            said = ", ".join(f"{name} {saved.get(name)!r} then, {mine.get(name)!r} now" for name in changed)
            raise UsageError(f"the checkpoint is of a run with other settings ({said}); use a new output folder")

    def planned_steps(self, batches_per_epoch: int) -> int:
        """Number of steps of the whole run.

        Raises:
            UsageError: warm-up would not end before the run does.
        """
        steps = self.max_steps or self.epochs * batches_per_epoch
        if self.warmup_steps >= steps:
            raise UsageError(
                f"warmup_steps {self.warmup_steps} must be below the number of steps, which is {steps}; lower it, or "
                "train longer with epochs or max_steps"
            )
        return steps

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step (from 0) of a run of so many: linear warm-up, then a cosine to zero."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / (steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """Where training runs. None of it changes what is learned, up to rounding."""

    workers: int = 2
    """Processes that share every batch; 1 or more. With `min_workers` the largest number of them."""
    min_workers: int = 0
    """Train with as few workers as these where nodes leave, and with more as nodes join; batches stay the same. 1 to
    workers; 0 always waits for all of them."""
    resize_every_s: float = 60.0
    """With `min_workers`: seconds between two looks at whether more workers would fit; more than 0."""
    gpu: bool | None = None
    """Whether each worker takes a GPU; by default where the cluster has one for each of them."""
    threads: int = 1
    """CPU threads (and Ray CPUs) of a worker; 1 or more."""
    max_failures: int = 3
    """How often lost workers are replaced and training goes on from the last checkpoint; 0 or more."""
    micro_batch: int = 0
    """Pictures that a worker's head embeds at a time; 0 embeds all at once. Less memory for one more pass through the
    head; the loss still sees the whole batch."""
    resident: bool = False
    """Hold all training tokens on the device (the GPU's memory, or the host's)."""
    worker_resource: str = ""
    """Custom resource of the nodes that may train, as on_demand in cluster.yaml; any node when empty."""
    profile_steps: int = 0
    """Steps of the first worker that are traced, into OUTPUT/profile (for chrome://tracing); 0 traces none."""

    def __post_init__(self) -> None:
        for name in ("workers", "threads"):
            _check(name, getattr(self, name), "1 or more", lambda v: v >= 1)
        for name in ("max_failures", "micro_batch", "profile_steps"):
            _check(name, getattr(self, name), "0 or more", lambda v: v >= 0)
        _check("min_workers", self.min_workers, f"0 to workers ({self.workers})", lambda v: 0 <= v <= self.workers)
        _check("resize_every_s", self.resize_every_s, "a number above 0", lambda v: math.isfinite(v) and v > 0)

    @property
    def fewest(self) -> int:
        """The smallest number of workers that may train."""
        return self.min_workers or self.workers


def grouped(runs: Mapping[str, TrainSettings]) -> list[dict[str, TrainSettings]]:
    """The runs in groups that can be trained together, in the order in which they are first named."""
    groups: dict[str, dict[str, TrainSettings]] = {}
    for name, settings in runs.items():
        groups.setdefault(repr(_shared(settings)), {})[name] = settings
    return list(groups.values())


def check_stackable(runs: Mapping[str, TrainSettings]) -> TrainSettings:
    """The settings that all runs share, as those of the first; UsageError where they differ in what is read."""
    if not runs:
        raise UsageError("there is nothing to train: no settings were given")
    first_name, first = next(iter(runs.items()))
    for name, settings in runs.items():
        mine, other = _shared(first), _shared(settings)
        if differing := sorted(key for key in mine if mine[key] != other[key]):
            raise UsageError(f"{first_name} and {name} cannot be trained together: they differ in {differing}")
    return first


def _shared(settings: TrainSettings) -> dict[str, Any]:
    shared = {name: value for name, value in to_dict(settings).items() if name not in PER_HEAD}
    return shared | {"blank slots": getattr(settings.make_objective(), "reference", False)}


def _check(name: str, value: object, expected: str, holds: Callable[[Any], bool]) -> None:
    if not holds(value):
        raise UsageError(f"{name} is {value!r}; expected {expected}")
