"""The align job: how far scorers agree with people on generated pictures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from nearid_ray import job
from nearid_ray.data.card import licence_of, write_card
from nearid_ray.data.light import check_complete
from nearid_ray.data.masking import MaskSettings
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.align import ALL, PEOPLE, Aligned, AlignSettings, measure_alignment
from nearid_ray.evaluation.align_records import (
    GENERATED_COLUMNS,
    RATING_COLUMNS,
    People,
    alignment_records,
    judged_similarities,
    read_people,
    similarities_of,
)
from nearid_ray.evaluation.measures import Measure, find, write_measures
from nearid_ray.retrieving.embed import (
    NamedScorer,
    PictureTask,
    embed_pictures,
    known_scorers,
    named_scorers,
    needs_ray,
    plan_pictures,
)
from nearid_ray.retrieving.places import places_of
from nearid_ray.retrieving.records import csv_bytes, write_records
from nearid_ray.retrieving.vectors import scorers_in
from nearid_ray.settings import dump_json, to_dict
from nearid_ray.stages.outputs import refuse_others
from nearid_ray.text_tables import aligned as columns
from nearid_ray.tracking import TrackingSettings
from schemas import ALIGNMENT, GENERATED_SIMILARITIES

_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Align:
    """Compare scorers with people on generated pictures: M-H by method and by category, with intervals."""

    ratings: str
    """Ratings dataset (`jobs/ingest.py dreambench-ratings`). Metrics in it become columns of the table too."""
    output: str
    """Folder or s3://bucket/prefix for embeddings, records, measures and the table."""
    tuples: str = ""
    """Tuples dataset of the references; needed with scorers."""
    generated: str = ""
    """Dataset of the generated pictures; needed with scorers and embeddings."""
    scorers: tuple[str, ...] = ()
    """What embeds the pictures, as NAME=SPEC: folder of a trained head, folder or hub id of a release or backbone, or
    module:function."""
    embeddings: tuple[str, ...] = ()
    """Datasets of embeddings that hold the references' views and the generated pictures; each scorer in them counts."""
    judged: tuple[str, ...] = ()
    """Datasets of judged generated pictures (`jobs/judge.py`), or `generated_similarities` of another run."""
    align: AlignSettings = AlignSettings()
    masking: MaskSettings = MaskSettings(mask_method="none")
    run: RunSettings = RunSettings()
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if self.scorers and not (self.tuples and self.generated):
            raise ValueError("scorers need pictures: give --tuples (the references) and --generated")
        if self.embeddings and not self.generated:
            raise ValueError("embeddings need --generated, which says what prompt each generated picture is of")
        if "foreground" in self.align.conditions and self.scorers and self.masking.mask_method == "none":
            raise ValueError(
                "the condition foreground needs masks, and generated pictures have none: let them be found with "
                "--mask-method birefnet (or sam2, grabcut), or leave foreground out"
            )


@job.owning_output("align")
def run_align(settings: Align) -> job.Job:
    """Embed what is missing, join by key, measure."""
    output = job.output_of(settings.output, settings.tracking)
    refuse_others(output, "align")
    planned = _planned(settings, output)
    with job.running(
        "align",
        output,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={name: getattr(settings, name) for name in ("tuples", "generated", "ratings")},
        needs_ray=planned.needs_ray(settings.run),
    ) as running:
        embedded = planned.embed(settings, running)
        similarities = planned.similarities(settings, embedded)
        aligned = _measured(settings, planned, similarities, output)
        running.summary["scorers"] = len({one.scorer for one in aligned.measures} - {PEOPLE})
        running.summary["references"] = len(planned.people.categories)
        running.details |= {"notes": aligned.notes, "unmatched": _counted(aligned)}
        text = text_table(aligned.measures)
        output.child("alignment.txt").write_bytes((text + "\n").encode())
        running.tracker.text(text, "alignment.txt")
        running.tracker.metrics(flat_metrics(aligned.measures))
        print(f"\n{text}")
        for line in [*aligned.notes, *described(aligned)]:
            print(f"note: {line}")
    return running


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """What was found good before anything is made."""

    people: People
    ratings: Dataset
    generated: pa.Table | None
    inputs: tuple[Dataset, ...]
    """Whose licence the results carry."""
    scorers: list[NamedScorer]
    embeddings: Dataset
    plan: Plan | None

    def needs_ray(self, run: RunSettings) -> bool:
        return self.plan is not None and needs_ray(self.embeddings, self.plan, run)

    def embed(self, settings: Align, running: job.Job) -> list[Dataset]:
        """Make the planned embeddings; all datasets of embeddings that count."""
        others = [_embeddings(uri) for uri in settings.embeddings]
        if self.plan is None:
            return others
        task = PictureTask(scorers=tuple(self.scorers), masking=_masking(settings))
        made = embed_pictures(task, self.embeddings, self.plan, settings.run, title="embed pictures")
        write_card(
            self.embeddings,
            title="Embeddings of references and generated pictures",
            about="Unit embeddings of the references' views and of what methods generated of them.",
            licence=licence_of(*self.inputs),
            facts={"rows": made.rows, "rows with an error": made.errors},
        )
        job.report_run(running, self.embeddings, made)
        return [self.embeddings, *others]

    def similarities(self, settings: Align, embedded: Sequence[Dataset]) -> pa.Table:
        """Records of every scorer and condition."""
        parts = [GENERATED_SIMILARITIES.schema.empty_table()]
        for dataset in embedded:
            table = dataset.read()
            mine = {one.name for one in self.scorers} if dataset is self.embeddings else None
            for scorer in dict.fromkeys(table["scorer"].to_pylist()):
                if mine is not None and scorer not in mine:
                    continue
                for condition in settings.align.conditions:
                    rows = table.filter((pc.field("scorer") == scorer) & (pc.field("condition") == condition))
                    if rows.num_rows and self.generated is not None:
                        parts.append(similarities_of(self.generated, rows, scorer=scorer, condition=condition))
        for uri in settings.judged:
            judged = _judged(uri)
            parts.append(judged.filter(pc.is_in(judged["condition"], pa.array(list(settings.align.conditions)))))
        return pa.concat_tables(parts)


def _planned(settings: Align, output: Location) -> _Planned:
    ratings = Dataset.open(settings.ratings, "ratings")
    check_complete(ratings)
    align = settings.align
    people = read_people(ratings.read(RATING_COLUMNS), aspect=align.aspect, groups=align.groups)
    specs = named_scorers(settings.scorers, dict.fromkeys(people.metrics, "a metric of the ratings"))
    if not (settings.scorers or settings.embeddings or settings.judged or people.metrics):
        raise UsageError(
            "nothing to compare with people: give --scorers NAME=SPEC, --embeddings or --judged "
            f"({ratings.location.uri} holds no metric)"
        )
    _check_names(settings, specs)
    generated = None
    inputs = [ratings]
    if settings.generated:
        dataset = Dataset.open(settings.generated, "generated")
        check_complete(dataset)
        inputs.append(dataset)
        generated = dataset.read(GENERATED_COLUMNS)
        if align.methods:
            generated = generated.filter(pc.is_in(generated["method"], pa.array(list(align.methods))))
    embeddings, plan, scorers = Dataset(output.child("embeddings")), None, []
    if specs:
        tuples = Dataset.open(settings.tuples, "tuples")
        inputs.append(tuples)
        assert generated is not None
        pictures = places_of(inputs[1])
        pictures = pictures.filter(pc.is_in(pictures["image_id"], generated["generated_id"].combine_chunks()))
        references = places_of(tuples)
        references = references.filter(pc.is_in(references["identity_id"], generated["identity_id"].combine_chunks()))
        if not references.num_rows or not pictures.num_rows:
            raise UsageError(
                f"{settings.tuples} has none of the references of {settings.generated}: it has identities like "
                f"{_examples(places_of(tuples)['identity_id'])}, the generated pictures are of "
                f"{_examples(generated['identity_id'])}"
            )
        scorers = known_scorers(specs)
        plan = plan_pictures(
            pa.concat_tables([references, pictures]),
            scorers,
            embeddings,
            content={"tuples": tuples.digest(), "generated": inputs[1].digest()},
            conditions=align.conditions,
            masking=settings.masking,
        )
    return _Planned(
        people=people, ratings=ratings, generated=generated, inputs=tuple(inputs), scorers=scorers,
        embeddings=embeddings, plan=plan,
    )  # fmt: skip


def _measured(settings: Align, planned: _Planned, similarities: pa.Table, output: Location) -> Aligned:
    people, asked = planned.people, settings.align.methods
    rated = {key[0] for ratings in people.groups.values() for key in ratings}
    scored = {*similarities["method"].to_pylist(), *(key[0] for of in people.metrics.values() for key in of)}
    missing = sorted(set(asked) - rated)
    if missing:
        raise UsageError(f"people rated nothing of {', '.join(missing)}; they rated {', '.join(sorted(rated))}")
    methods = sorted(set(asked) or rated & scored)
    if not methods:
        raise UsageError(
            f"the methods differ: people rated {', '.join(sorted(rated))}; there are scores of "
            f"{', '.join(sorted(scored)) or 'none'}"
        )
    records = alignment_records(similarities, people, methods)
    aligned = measure_alignment(records, settings.align, list(people.groups))
    left = [(sorted(scored - rated), "rated by nobody"), (sorted(rated - scored), "without any picture or score")]
    notes = [f"Left out, {why}: {', '.join(names)}." for names, why in left if names and not asked]
    aligned = replace(aligned, notes=[*notes, *aligned.notes])
    licence = licence_of(*planned.inputs)
    about = "Written by an alignment with people; follows from embeddings, judgements and ratings."
    for table, rows in ((GENERATED_SIMILARITIES, similarities), (ALIGNMENT, records)):
        content = {"align": to_dict(settings.align), "groups": list(people.groups)}
        write_records(output, table, rows, content=content, about=about, licence=licence)
    unmatched = [
        {"method": one.method, "scorers": " ".join(one.scorers), "what": one.what, "key": key}
        for one in aligned.unmatched
        for key in one.keys
    ]
    output.child("unmatched.csv").write_bytes(csv_bytes(unmatched, ["method", "scorers", "what", "key"]))
    output.child("alignment.json").write_bytes(
        dump_json({"groups": list(people.groups), "methods": methods, "notes": aligned.notes,
                   "unmatched": _counted(aligned)})
    )  # fmt: skip
    write_measures(output, aligned.measures)
    return aligned


def text_table(measures: Sequence[Measure]) -> str:
    """M-H in the layout of the paper's table 2, one block a condition, then the categories and the gains."""
    blocks = []
    conditions = list(dict.fromkeys(one.condition for one in measures if one.scorer != PEOPLE))
    for condition in conditions:
        scorers = list(dict.fromkeys(m.scorer for m in measures if m.condition == condition and m.scorer != PEOPLE))
        names = list(dict.fromkeys(m.name for m in measures if m.metric == "m_h" and m.condition == condition))
        groups = {m.name for m in measures if m.is_group}
        order = [*(n for n in names if n not in groups), ALL, *(n for n in names if n in groups and n != ALL)]
        lines = [["method", "H-H", "alpha", *scorers]]
        for name in order:
            said = "Fisher-z mean" if name == ALL else name
            human = [_value(measures, PEOPLE, "full", name, metric) for metric in ("h_h", "krippendorff_alpha")]
            cells = [_pair(measures, scorer, condition, name) for scorer in scorers]
            lines.append([said, *(f"{value:.3f}" if math.isfinite(value) else "-" for value in human), *cells])
        blocks.append(
            f"M-H: correlation with people, +- half the two groups' difference (means: standard error), {condition}\n"
            + columns(lines)
        )
    gains = [one for one in find(measures, metric="m_h_gain", name=ALL) if math.isfinite(one.value)]
    if gains:
        lines = [["scorer", "condition", "gain", "interval", "over"]]
        lines += [
            [m.scorer, m.condition, f"{m.value:+.3f}", f"{m.low:+.3f} to {m.high:+.3f}", m.baseline] for m in gains
        ]
        blocks.append("Gain of the Fisher-z mean, same references drawn for both\n" + columns(lines))
    return "\n\n".join(blocks)


def described(aligned: Aligned) -> list[str]:
    """What does not match, in words: the number of keys by method and the first few."""
    said = {
        "unrated": "prompts with scores were rated by nobody",
        "unscored": "rated prompts have no picture or score",
        "failed": "rated prompts have pictures, none of which could be scored",
    }
    return [
        f"{one.method}: {len(one.keys)} of {one.of} {said[one.what]} ({', '.join(one.scorers)}), e.g. "
        f"{', '.join(one.keys[:_SHOWN])}; all are in unmatched.csv"
        for one in aligned.unmatched
    ]


def flat_metrics(measures: Sequence[Measure]) -> dict[str, float]:
    """Every M-H, H-H and gain by a name that MLflow accepts."""
    return {
        f"{m.scorer}/{m.name}/{m.condition}/{m.metric}".replace(":", "_"): m.value
        for m in measures
        if math.isfinite(m.value) and m.metric != "m_h_spread"
    }


def _counted(aligned: Aligned) -> list[dict]:
    return [asdict(one) | {"keys": list(one.keys[:_SHOWN]), "count": len(one.keys)} for one in aligned.unmatched]


def _value(measures: Sequence[Measure], scorer: str, condition: str, name: str, metric: str) -> float:
    found = find(measures, scorer=scorer, condition=condition, name=name, metric=metric)
    return found[0].value if found else math.nan


def _pair(measures: Sequence[Measure], scorer: str, condition: str, name: str) -> str:
    value, spread = (_value(measures, scorer, condition, name, metric) for metric in ("m_h", "m_h_spread"))
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" + (f" +-{spread:.3f}" if math.isfinite(spread) else "")


def _masking(settings: Align) -> MaskSettings:
    return settings.masking if "foreground" in settings.align.conditions else MaskSettings(mask_method="none")


def _embeddings(uri: str) -> Dataset:
    dataset = Dataset.open(uri, "embeddings")
    check_complete(dataset)
    return dataset


def _judged(uri: str) -> pa.Table:
    dataset = Dataset.open(uri)
    table = (dataset.settings() or {}).get("table")
    if table not in ("judged_generated", GENERATED_SIMILARITIES.name):
        raise UsageError(f"{uri} holds {table!r}; expected judged_generated or generated_similarities")
    check_complete(dataset)
    return judged_similarities(dataset.read())


def _check_names(settings: Align, specs: Mapping[str, str]) -> None:
    """Refuse two columns of one name before anything is made."""
    seen = dict.fromkeys(specs, "--scorers")
    given = [(uri, scorers_in(_embeddings(uri))) for uri in settings.embeddings]
    given += [(uri, sorted(set(_judged(uri)["scorer"].to_pylist()))) for uri in settings.judged]
    for uri, scorer in ((uri, scorer) for uri, scorers in given for scorer in scorers):
        if seen.setdefault(scorer, uri) != uri:
            raise UsageError(f"the scorer {scorer!r} is in {seen[scorer]} and in {uri}; leave one of them out")


def _examples(column: pa.ChunkedArray) -> str:
    return ", ".join(sorted(set(column.to_pylist()))[:_SHOWN])
