"""Hours, storage, network and cost of a whole run by stage, from measured rates or stated assumptions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from nearid_ray.errors import UsageError
from nearid_ray.planning.hardware import TERA, Gpu, gpu_named
from nearid_ray.planning.measured import Measured, read_measured
from nearid_ray.planning.settings import PlanSettings
from nearid_ray.planning.work import BACKBONES, BackboneSize, engine_flops
from nearid_ray.training.losses import OBJECTIVE_NAMES

GIB = 2**30
_VIEW_BYTES = 0.45e6
"""A 512 px photograph, losslessly encoded, with its mask."""
_DISTRACTOR_BYTES = 0.45e6
_EMBEDDING_BYTES = 4 * 1152 + 200
_JUDGE_A100_H = 3.0
"""Published: Qwen3-VL 30B, hours of one A100 for one engine configuration of 500 identities."""
_A100_TFLOPS = 312.0
_MTG_REPEATS = 4
_ALPHAS, _BETAS, _OTHER_DATA = 6, 4, 3
"""Rows of tables 8, 9 and 6; one row of 9 stands in 8, one of 8 in 3."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """What one stage takes."""

    name: str
    rows: int
    what: str
    """What a row is."""
    row_s: float
    """Seconds of one GPU (of one CPU where the stage needs no GPU) a row."""
    origin: str
    """measured in FOLDER | assumed: how | published."""
    uses_gpu: bool = True
    gpus: int = 1
    """How many it can use at once."""
    storage_gib: float = 0.0
    network_gib: float = 0.0
    """Read and written over the network where all data lie on S3."""
    part_of_total: bool = True
    """Whether it counts; an alternative does not."""

    @property
    def hours(self) -> float:
        """GPU-hours (CPU-hours where the stage needs no GPU)."""
        return self.rows * self.row_s / 3600

    @property
    def wall_hours(self) -> float:
        """Hours on the clock with that many GPUs, start-up left out."""
        return self.hours / self.gpus


@dataclass(frozen=True, kw_only=True)
class CostPlan:
    """A whole run."""

    settings: PlanSettings
    gpu: Gpu
    price_usd_h: float
    stages: list[StagePlan]
    measured: dict[str, Measured]
    assumptions: list[str] = field(default_factory=list)

    def cost_usd(self, stage: StagePlan) -> float:
        """GPU time and storage of a stage; CPU time is left out (the GPU machines' own CPUs do it)."""
        time = stage.hours * self.price_usd_h if stage.uses_gpu else 0.0
        return time + stage.storage_gib * self.settings.storage_usd_gib_month * self.settings.months

    def total(self) -> dict[str, float]:
        """gpu_hours, wall_hours, storage_gib, network_gib, cost_usd of the stages that count."""
        counted = [stage for stage in self.stages if stage.part_of_total]
        return {
            "gpu_hours": sum(stage.hours for stage in counted if stage.uses_gpu),
            "wall_hours": sum(stage.wall_hours for stage in counted),
            "storage_gib": sum(stage.storage_gib for stage in counted),
            "network_gib": sum(stage.network_gib for stage in counted),
            "cost_usd": sum(self.cost_usd(stage) for stage in counted),
        }


def make_cost_plan(settings: PlanSettings) -> CostPlan:
    """Plan every stage of a run: pictures in, distractors, tokens, training, evaluation, the ablation suite.

    Raises:
        UsageError: a GPU, backbone or engine is not known and nothing measured stands in for it.
    """
    gpu = gpu_named(settings.gpu)
    tflops = settings.gpu_tflops or gpu.bf16_tflops
    price = gpu.price_usd_h if settings.price_per_gpu_hour is None else settings.price_per_gpu_hour
    rate = _Rates(settings, tflops, _backbone(settings), read_measured(settings.measured))
    _check_backbones(rate)
    stages = [
        _ingest(settings, rate),
        *_synthesis(settings, rate),
        _tokens(settings, rate),
        *_training(settings, rate),
        _evaluation(settings, rate),
        *_suite(settings, rate),
    ]
    if settings.judge:
        stages.append(_judge(settings, tflops))
    assumed = [
        f"{tflops:g} TFLOP/s in bf16 ({'given' if settings.gpu_tflops else f'data sheet of {gpu.name}'}), of which "
        f"{settings.utilisation:.0%} is reached (--utilisation)",
        f"{price:g} USD an hour of one GPU "
        + (f"(listed for {gpu.instance}, rounded)" if settings.price_per_gpu_hour is None else "(given)"),
        f"{settings.storage_usd_gib_month:g} USD a GiB and month, kept {settings.months:g} month(s); transfers inside "
        "one region cost nothing",
        f"{settings.read_gib_s:g} GiB/s of tokens read by one training worker (--read-gib-s)",
        "start of machines, loading of models and failed rows are left out",
        "for comparison, published: 6.5 h of one A100 for a training with its evaluations, about 144 A100-hours for "
        "the ablations one by one",
    ]
    return CostPlan(
        settings=settings, gpu=gpu, price_usd_h=price, stages=stages, measured=dict(rate.measured), assumptions=assumed
    )


@dataclass(frozen=True)
class _Rates:
    settings: PlanSettings
    tflops: float
    backbone: BackboneSize
    measured: Mapping[str, Measured]

    def seconds(self, flops: float) -> float:
        return flops / (self.tflops * TERA * self.settings.utilisation)

    def picture(self) -> tuple[float, str]:
        """Seconds of one picture through the backbone, and where that comes from."""
        if found := self.measured.get("embed"):
            return found.row_s, f"measured in {found.uri}"
        flops = self.backbone.picture_flops()
        return self.seconds(flops), f"assumed: {flops / TERA:.2f} TFLOP a picture"

    def painted(self, engine: str) -> tuple[float, str]:
        """The same of one distractor."""
        found = self.measured.get("synthesize")
        if found and engine in found.engine_row_s:
            return found.engine_row_s[engine], f"measured in {found.uri}"
        flops = engine_flops(engine)
        return self.seconds(flops), f"assumed: {flops / TERA:,.0f} TFLOP a picture"

    def bytes_a_row(self, stage: str, otherwise: float) -> float:
        found = self.measured.get(stage)
        return found.bytes_a_row if found and found.bytes_a_row else otherwise


def _check_backbones(rate: _Rates) -> None:
    """Times of another backbone say nothing."""
    for stage, found in rate.measured.items():
        if found.width and found.width != rate.backbone.width:
            raise UsageError(
                f"measured: {stage}={found.uri} is of {found.backbone}, tokens {found.width} wide; the plan is of "
                f"{rate.settings.backbone}, {rate.backbone.width} wide. Give an output of the same backbone, or plan "
                "with --backbone"
            )


def _backbone(settings: PlanSettings) -> BackboneSize:
    given = {name: getattr(settings, name) for name in ("parameters", "layers", "tokens", "width")}
    if all(value is not None for value in given.values()):
        return BackboneSize(**given)
    if settings.backbone in BACKBONES:
        known = BACKBONES[settings.backbone]
    else:
        missing = ", ".join(f"--{name}" for name, value in given.items() if value is None)
        raise UsageError(
            f"the size of backbone {settings.backbone!r} is not known; give {missing} (known: {', '.join(BACKBONES)})"
        )
    return BackboneSize(**{name: getattr(known, name) if value is None else value for name, value in given.items()})


def _ingest(settings: PlanSettings, rate: _Rates) -> StagePlan:
    found = rate.measured.get("ingest")
    size = rate.bytes_a_row("ingest", _VIEW_BYTES * settings.views / settings.identities) * settings.identities / GIB
    return StagePlan(
        name="ingest",
        rows=settings.identities,
        what="identities",
        row_s=found.row_s if found else 0.04 * settings.views / settings.identities,
        origin=f"measured in {found.uri}" if found else "assumed: 40 ms of a CPU a view",
        uses_gpu=False,
        gpus=settings.gpus,
        storage_gib=size,
        network_gib=2 * size,
    )


def _synthesis(settings: PlanSettings, rate: _Rates) -> list[StagePlan]:
    stages = []
    for engine in settings.engines:
        row_s, origin = rate.painted(engine)
        size = rate.bytes_a_row("synthesize", _DISTRACTOR_BYTES) * settings.views / GIB
        stages.append(
            StagePlan(
                name=f"synthesize {engine}",
                rows=settings.views,
                what="distractors",
                row_s=row_s,
                origin=origin,
                gpus=settings.gpus,
                storage_gib=size,
                network_gib=size + _VIEW_BYTES * settings.views / GIB,
            )
        )
    return stages


def _train_pictures(settings: PlanSettings) -> int:
    """Views and distractors of everything that is not measured, Mind-the-Glitch included."""
    views = round(settings.views * (settings.identities - settings.test_identities) / settings.identities)
    return views * (1 + len(settings.train_engines)) + 4 * settings.mtg_samples


def _test_pictures(settings: PlanSettings) -> int:
    views = round(settings.views * settings.test_identities / settings.identities)
    return views * (1 + len(settings.engines))


def _tokens(settings: PlanSettings, rate: _Rates) -> StagePlan:
    # Every picture whole and with its background blacked out.
    items = 2 * (settings.draws * _train_pictures(settings) + _test_pictures(settings))
    row_s, origin = rate.picture()
    size = items * rate.bytes_a_row("embed", rate.backbone.item_bytes()) / GIB
    return StagePlan(
        name="embed tokens",
        rows=items,
        what="pictures",
        row_s=row_s,
        origin=origin,
        gpus=settings.gpus,
        storage_gib=size,
        network_gib=size + items / 2 * _VIEW_BYTES / GIB,
    )


def _samples(settings: PlanSettings) -> int:
    """Samples of a whole training."""
    train = settings.identities - settings.test_identities
    return settings.epochs * (train + _MTG_REPEATS * settings.mtg_samples)


def _pictures_a_sample(settings: PlanSettings) -> float:
    """Filled slots: every view and a distractor for each, at most three views; Mind-the-Glitch has two."""
    train = settings.identities - settings.test_identities
    own, mtg = train * min(3.0, settings.views / settings.identities), 2.0 * _MTG_REPEATS * settings.mtg_samples
    return 2 * (own + mtg) / (train + _MTG_REPEATS * settings.mtg_samples)


def _training(settings: PlanSettings, rate: _Rates, heads: int = 1) -> list[StagePlan]:
    samples, pictures = _samples(settings), _pictures_a_sample(settings)
    read_gib = pictures * rate.backbone.item_bytes() / GIB
    found = rate.measured.get("train")
    steps = math.ceil(samples / settings.global_batch)
    said = f"one training of {steps:,} steps"
    cached = StagePlan(
        name="train from cached tokens",
        rows=samples,
        what=f"samples, {said}",
        row_s=found.row_s if found else read_gib / settings.read_gib_s,
        origin=f"measured in {found.uri}" if found else f"assumed: {1024 * read_gib:.1f} MiB of tokens a sample",
        network_gib=_tokens(settings, rate).storage_gib,
    )
    row_s, origin = rate.picture()
    online = StagePlan(
        name="  or with tokens online",
        rows=samples,
        what=f"samples, {said}",
        row_s=row_s * pictures,
        origin=f"{origin}, {pictures:.1f} pictures a sample",
        part_of_total=False,
    )
    return [cached, online]


def _evaluation(settings: PlanSettings, rate: _Rates) -> StagePlan:
    pictures = 2 * _test_pictures(settings)
    row_s, origin = rate.picture()
    return StagePlan(
        name="evaluate a further backbone",
        rows=pictures,
        what="pictures",
        row_s=row_s,
        origin=origin,
        gpus=settings.gpus,
        storage_gib=pictures * _EMBEDDING_BYTES / GIB,
    )


def _suite(settings: PlanSettings, rate: _Rates) -> list[StagePlan]:
    """Tables 3, 6, 8 and 9: heads that read the same are trained in one pass."""
    single, _ = _training(settings, rate)
    heads = len(OBJECTIVE_NAMES) + _ALPHAS - 1 + _BETAS - 1
    trainings = heads + _OTHER_DATA
    passes = 1 + _OTHER_DATA
    fused = StagePlan(
        name="ablation suite, fused",
        rows=passes * single.rows,
        what=f"samples: {trainings} heads in {passes} passes",
        row_s=single.row_s,
        origin="as one training; heads of one pass share its reading, their own arithmetic is left out",
    )
    apart = StagePlan(
        name="  or one by one",
        rows=trainings * single.rows,
        what=f"samples: {trainings} heads, a pass each",
        row_s=single.row_s,
        origin="as one training",
        part_of_total=False,
    )
    return [fused, apart]


def _judge(settings: PlanSettings, tflops: float) -> StagePlan:
    hours = _JUDGE_A100_H * settings.test_identities / 500 * _A100_TFLOPS / tflops
    return StagePlan(
        name="VLM judge (30B)",
        rows=len(settings.engines),
        what="engines",
        row_s=3600 * hours,
        origin="published: 3 h of an A100 for 500 identities, scaled by TFLOP/s",
        gpus=min(settings.gpus, len(settings.engines)),
    )
