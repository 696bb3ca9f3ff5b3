"""The reproduce job: tables and figures of the paper, running what is missing; ours beside the paper's numbers."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from nearid_ray import job
from nearid_ray.cluster import ray_session
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Location, locate
from nearid_ray.errors import UsageError
from nearid_ray.evaluation.measures import read_measures
from nearid_ray.reporting.figures.make import FIGURES
from nearid_ray.reporting.inputs import ReportInputs
from nearid_ray.reporting.report import FIGURES_FOLDER
from nearid_ray.reporting.tables.build import lay_out
from nearid_ray.reporting.tables.measured import Measured, given_rows
from nearid_ray.reporting.tables.model import Table
from nearid_ray.reporting.tables.render import to_csv, to_latex, to_markdown
from nearid_ray.reporting.tables.rows import DREAMBENCH, TITLES
from nearid_ray.reporting.tables.verdicts import (
    Finding,
    closing_sentence,
    judge_cells,
    judge_claims,
    judge_order,
    verdict_rows,
)
from nearid_ray.settings import to_dict
from nearid_ray.stages.evaluate import Evaluate, run_evaluate
from nearid_ray.stages.reproduce_data import PaperData, Step, ToyboxSizes, command, paper_steps, toybox_steps
from nearid_ray.stages.reproduce_figures import NEEDS_PEOPLE, Pictures, calibrated, draw, figure_inputs
from nearid_ray.stages.reproduce_heads import (
    PEOPLE,
    SUITES,
    Data,
    described_training,
    heads_of,
    train_missing,
    trained_engines,
)
from nearid_ray.text_tables import aligned
from nearid_ray.tracking import TrackingSettings
from nearid_ray.training.outputs import BEST
from nearid_ray.training.settings import TrainSettings, WorkerSettings

TABLES_FOLDER = "tables"
"""OUTPUT/tables/ holds each table as .md, .csv and .tex, with what is said of it."""

TOY_NOTE = (
    "Toy data and a toy backbone (toybox, toybox-siglip2): these numbers show that the machinery works and which way "
    "it moves, nothing about photographs."
)
_TOY_MTG_NOTE = "Columns MTG are the toybox's engines that change one part of an object (trim, decal, accent)."
_TOY_ROWS_NOTE = "SigLIP2 and NearID are here the toy backbone, frozen and with a head trained on toy data."
_TOY_DATA_NOTE = (
    "NearID stands for the toybox's engines that replace the whole object, MTG for those that change a part, of the "
    "same identities and mixed evenly; the single engine is toybox-redraw."
)


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Make a table or figure of the paper: run what is missing, then show ours beside the published numbers."""

    output: str = "runs/reproduce"
    """Folder or s3://bucket/prefix. All tables share its data and heads, so nothing is made twice."""
    data: Data = "toybox"
    """toybox: everything is made and measured here. paper: the published data sets and backbone; see --dry-run."""
    tokens: tuple[str, ...] = ()
    """Train and measure on these token caches, in place of making data."""
    test_tokens: tuple[str, ...] = ()
    """Measure on these token caches; by default on `tokens`."""
    tuples: str = ""
    """The tuples that the given tokens were made of: views for figures 3, 7 and 8. Data made here is known."""
    distractors: str = ""
    """Its distractors, for the same figures."""
    evaluation: tuple[str, ...] = ()
    """Read these finished evaluations (evaluate, align) and run nothing."""
    embeddings: tuple[str, ...] = ()
    """Pooled embeddings of the same data by other backbones (embed --what pooled), as FOLDER or NAME=FOLDER: further
    rows of tables 1, 5 and 7."""
    judged: tuple[str, ...] = ()
    """Judgements of the same data (judge), as FOLDER or NAME=FOLDER: likewise."""
    alignment: tuple[str, ...] = ()
    """Finished align jobs (DreamBench++) whose M-H stands in the tables, by the same names of scorers."""
    rows: tuple[str, ...] = ()
    """SCORER=ROW: which published row a scorer stands beside, where its name does not say it."""
    dry_run: bool = False
    """Print what would be run, each step with its command and size, and write nothing."""
    toybox: ToyboxSizes = ToyboxSizes()
    published: PaperData = PaperData()
    max_steps: int = 0
    """Training steps of every head; 0 takes the preset's, 400 on the toybox and 11 epochs on the published data."""
    where: WorkerSettings = WorkerSettings()
    run_workers: int | None = None
    """Workers of the jobs that make data and embeddings; by default one a GPU, or one a CPU."""
    break_lock: bool = False
    """Take over an output whose other writer, on another machine, has certainly ended."""
    tracking: TrackingSettings = TrackingSettings()

    def __post_init__(self) -> None:
        if self.evaluation and (self.tokens or self.test_tokens):
            raise ValueError("evaluation is what is finished, tokens what is still to be measured; give one of them")
        if (self.tuples or self.distractors) and not self.tokens:
            raise ValueError("tuples and distractors are the pictures of given token caches; give --tokens too")
        if (self.tuples or self.distractors) and len(self.test_tokens or self.tokens) > 1:
            raise ValueError("tuples and distractors are those of one token cache that is measured, here are several")
        if self.test_tokens and not self.tokens:
            raise ValueError("test_tokens goes with tokens, on which heads are trained; give --tokens too")
        if self.max_steps < 0:
            raise ValueError(f"max_steps is {self.max_steps}; expected 0 or more")
        given_rows(self.rows)

    @property
    def run(self) -> RunSettings:
        """For the jobs that are run."""
        return RunSettings(workers=self.run_workers, break_lock=self.break_lock)

    def suite_heads(self, suite: str, left_out: tuple[str, ...] = ()) -> dict[str, TrainSettings]:
        """The heads of a suite; on given tokens they are trained on all engines there are."""
        trained = trained_engines(self.tokens) if self.tokens and self.data == "toybox" else ()
        return heads_of(suite, self.data, max_steps=self.max_steps, left_out=left_out, trained=trained)


def wanted_names(what: str) -> list[str]:
    """The tables and figures that a word stands for: one, or `all`.

    Raises:
        UsageError: it is neither.
    """
    if what == "all":
        return [*TITLES, *FIGURES]
    if what == "table4":
        raise UsageError("table 4 prints formulas; its numbers are those of table3")
    if what not in SUITES:
        raise UsageError(f"{what!r} is no table or figure; expected one of {', '.join(SUITES)}, all")
    return [what]


def check_wanted(settings: Reproduce, names: Sequence[str]) -> list[str]:
    """The tables and figures that can be made of what is given.

    Raises:
        UsageError: none can.
    """
    if [SUITES[name] for name in names] == [PEOPLE] and not (settings.alignment or settings.evaluation):
        raise UsageError(f"{names[0]}: {NEEDS_PEOPLE}")
    if not settings.evaluation:
        return list(names)
    makeable = [name for name in names if name in TITLES or SUITES[name] == PEOPLE]
    if not makeable:
        raise UsageError(
            f"{', '.join(names)}: figures of finished evaluations are drawn by jobs/report.py --evaluation FOLDER "
            f"--figures {' '.join(names)} --figures-only"
        )
    return makeable


def plan_reproduce(settings: Reproduce, names: Sequence[str]) -> dict[str, Any]:
    """What `run_reproduce` would run, by name; writes nothing."""
    output = locate(settings.output)
    names = check_wanted(settings, names)
    made = {key: found for key, found in (("tables", _tables(names)), ("figures", _figures(names))) if found}
    if settings.evaluation or not suites(names):
        return {"read": [*settings.evaluation, *settings.alignment], "run": "nothing", **made}
    steps = data_steps(settings, output)
    plan: dict[str, Any] = {step.name: {"command": step.command, "makes": step.size} for step in steps}
    runs = all_heads(settings, names)
    plan |= described_training(runs)
    for suite in suites(names):
        heads = {name: output.child("heads", name, BEST).uri for name in settings.suite_heads(suite)}
        for place, stage in evaluations(settings, output, suite, heads):
            plan[f"evaluate {place.path.rsplit('/', 1)[-1]}"] = command(["evaluate.py"], stage)
    return plan | made


@job.owning_output("reproduce")
def run_reproduce(settings: Reproduce, names: Sequence[str]) -> job.Job:
    """Run what is missing, then write the tables and figures, and print the tables."""
    output = job.output_of(settings.output, settings.tracking)
    names = check_wanted(settings, names)
    needs_ray = not settings.evaluation and bool(suites(names))
    with ray_session() if needs_ray else nullcontext():
        measured, drawn, notes = _measure(settings, output, names)
    place, figures = output.child(TABLES_FOLDER), output.child(FIGURES_FOLDER)
    with job.running(
        "reproduce",
        place if _tables(names) else figures,
        to_dict(settings),
        tracking=settings.tracking,
        inputs={},
        needs_ray=False,
    ) as running:
        for name in _tables(names):
            mine = measured[SUITES[name]]
            said = [*notes, *table_notes(name, notes, mine)]
            findings = publish(lay_out(name, mine, rows=given_rows(settings.rows), notes=said), place, running)
            running.summary[name] = {word: sum(f.word == word for f in findings) for word in ("agrees", "disagrees")}
        if _figures(names):
            draw(_figures(names), drawn, figures, running)
    return running


def data_steps(settings: Reproduce, output: Location) -> list[Step]:
    """The jobs that make the data; none where token caches are given."""
    if settings.tokens:
        return []
    if settings.data == "paper":
        return paper_steps(settings.published, output, settings.run, settings.tracking)
    return toybox_steps(settings.toybox, output, settings.run, settings.tracking)


def make_data(steps: Sequence[Step]) -> None:
    """Run the steps, or see that they are done.

    Raises:
        UsageError: one of them had too many rows with errors.
    """
    for step in steps:
        print(f"\n=== {step.name} ===", flush=True)
        if step.run().failed:
            raise UsageError(
                f"{step.name} had too many rows with errors, see above; the same command goes on from here"
            )


def training_tokens(settings: Reproduce, output: Location) -> tuple[str, ...]:
    """The token caches that are trained on."""
    names = ("nearid-tokens", "mtg-tokens") if settings.data == "paper" else ("tokens",)
    return settings.tokens or tuple(output.child(name).uri for name in names)


def pictures_of(settings: Reproduce, output: Location, number: int) -> Pictures:
    """What the token cache that is measured as the `number`th was made of."""
    if settings.tokens:
        tokens = (settings.test_tokens or settings.tokens)[number]
        return Pictures(tuples=settings.tuples, distractors=settings.distractors, tokens=tokens)
    made = {
        "toybox": [("tuples", "distractors", "tokens")],
        "paper": [(name, f"{name}-distractors", f"{name}-tokens") for name in ("nearid", "mtg")],
    }
    tuples, distractors, tokens = (output.child(name).uri for name in made[settings.data][number])
    return Pictures(tuples=tuples, distractors=distractors, tokens=tokens)


def suites(names: Sequence[str]) -> list[str]:
    """The evaluations that tables and figures are read from; without what align jobs alone hold."""
    return [suite for suite in dict.fromkeys(SUITES[name] for name in names) if suite != PEOPLE]


def all_heads(settings: Reproduce, names: Sequence[str]) -> dict[str, TrainSettings]:
    """The heads of all suites of these tables; one of several suites stands once."""
    return {name: head for suite in suites(names) for name, head in settings.suite_heads(suite).items()}


def evaluations(
    settings: Reproduce, output: Location, suite: str, heads: Mapping[str, str], caches: Sequence[str] = ()
) -> list[tuple[Location, Evaluate]]:
    """The evaluate jobs of a suite, with their outputs: one a token cache, by default those that tables measure."""
    caches = caches or settings.test_tokens or training_tokens(settings, output)
    embeddings, judged = (settings.embeddings, settings.judged) if suite == "nearid" else ((), ())
    if (embeddings or judged) and len(caches) > 1:
        raise UsageError(
            f"embeddings and judged go with one token cache, here are {len(caches)}; measure them with "
            "jobs/evaluate.py and give its outputs as --evaluation"
        )
    found = []
    for number, tokens in enumerate(caches):
        place = output.child(f"evaluation-{suite}" + (f"-{number + 1}" if len(caches) > 1 else ""))
        stage = Evaluate(
            tokens=tokens,
            output=place.uri,
            heads=tuple(f"{name}={folder}" for name, folder in heads.items()),
            embeddings=embeddings,
            judged=judged,
            run=settings.run,
            tracking=settings.tracking,
        )
        found.append((place, stage))
    return found


def evaluate_suite(
    settings: Reproduce, output: Location, suite: str, heads: Mapping[str, str], caches: Sequence[str] = ()
) -> Measured:
    """Measure heads beside the frozen backbone, or read what was measured; see `evaluations`."""
    found = []
    for place, stage in evaluations(settings, output, suite, heads, caches):
        print(f"\n=== evaluate {place.path.rsplit('/', 1)[-1]} ===", flush=True)
        if run_evaluate(stage).failed:
            raise UsageError(f"{place.uri}: too many pictures could not be embedded, see above")
        found += read_measures(place)
    found += [one for given in settings.alignment for one in read_measures(locate(given))]
    return Measured(found)


def given_measures(settings: Reproduce) -> Measured:
    """What the given finished evaluations hold.

    Raises:
        UsageError: one of `alignment` is no output of an align job.
    """
    for given in settings.alignment:
        if all(one.benchmark != DREAMBENCH for one in read_measures(locate(given))):
            raise UsageError(f"alignment: {given} holds no measures of DreamBench++; give the output of jobs/align.py")
    places = (*settings.evaluation, *settings.alignment)
    return Measured(one for place in places for one in read_measures(locate(place)))


def data_notes(settings: Reproduce, measured: Measured) -> list[str]:
    """What the caption says of the data. Toy data is known by its engines, wherever it comes from."""
    if is_toy(measured):
        return [TOY_NOTE]
    if settings.data == "paper":
        return ["Measured here on the published test sets."]
    return ["Measured here on data of our own: compare the trend, not the numbers."]


def is_toy(measured: Measured) -> bool:
    """Whether any measure is of a toybox engine."""
    return any(one.name.startswith("toybox-") for one in measured.measures())


def table_notes(name: str, notes: Sequence[str], measured: Measured) -> list[str]:
    """What the caption of a table says besides, on toy data."""
    if TOY_NOTE not in notes:
        return []
    said = {
        "table1": [_TOY_ROWS_NOTE, _TOY_MTG_NOTE],
        "table2": [] if measured.measures() else ["Not run: toybox has no human ratings."],
        "table5": [_TOY_ROWS_NOTE],
        "table6": [_TOY_DATA_NOTE],
        "table7": [_TOY_ROWS_NOTE, _TOY_MTG_NOTE],
    }
    return said.get(name, [_TOY_MTG_NOTE])


def publish(table: Table, place: Location, running: job.Job) -> list[Finding]:
    """Write, log and print a table with its verdicts; what was found of its claims and orders."""
    verdicts = judge_cells(table)
    claims = judge_claims(table)
    findings = [*claims, *judge_order(table)]
    lines = verdict_rows(verdicts)
    compared = len(lines) > 1
    said = [aligned([*lines]), "", *(f"{one.word}: {one.says} ({one.numbers})" for one in findings)]
    said += ["", closing_sentence(findings)]
    write_table(table, "\n".join(said) if compared else "", place, running)
    return findings


def write_table(table: Table, said: str, place: Location, running: job.Job) -> None:
    """Write a table and what is said of it to `place` as NAME.md, .csv and .tex, log and print it."""
    markdown = to_markdown(table) + (f"\n```\n{said}\n```\n" if said else "")
    for ending, content in (("md", markdown), ("csv", to_csv(table)), ("tex", to_latex(table))):
        place.child(f"{table.name}.{ending}").write_bytes(content.encode())
        running.tracker.text(content, f"{table.name}.{ending}")
    print(f"\n{to_markdown(table)}\n{said}", flush=True)


def _tables(names: Sequence[str]) -> list[str]:
    return [name for name in names if name in TITLES]


def _figures(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in TITLES]


def _measure(
    settings: Reproduce, output: Location, names: Sequence[str]
) -> tuple[dict[str, Measured], dict[str, list[ReportInputs]], list[str]]:
    """Measures by suite, what figures are drawn of by suite, and the caption's sentences on the data."""
    people = (*settings.evaluation, *settings.alignment)
    given = given_measures(settings)
    drawn = {PEOPLE: figure_inputs({}, heads={}, measures=people)}
    if settings.evaluation or not suites(names):
        return {SUITES[name]: given for name in names}, drawn, data_notes(settings, given)
    make_data(data_steps(settings, output))
    print("\n=== train ===", flush=True)
    trained = train_missing(
        all_heads(settings, names), training_tokens(settings, output), output, settings.where, settings.tracking
    )
    for name, why in trained.refused.items():
        print(f"{name} is not trained: {why}")
    measured = {}
    for suite in suites(names):
        heads = {name: trained.folders[name] for name in settings.suite_heads(suite) if name in trained.folders}
        measured[suite] = evaluate_suite(settings, output, suite, heads)
        stages = evaluations(settings, output, suite, heads)
        places = {place.uri: pictures_of(settings, output, number) for number, (place, _) in enumerate(stages)}
        drawn[suite] = figure_inputs(places, heads=heads, measures=people)
        if "reliability" in names and suite == SUITES["reliability"] and "nearid" in heads:
            drawn[suite][0] = calibrated(drawn[suite][0], stages[0][1], "nearid", heads["nearid"], output)
    notes = data_notes(settings, next(iter(measured.values())))
    return measured | {PEOPLE: given}, drawn, notes
