"""The figures of a reproduction: drawn from its own evaluations, with the data and heads that it made for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nearid_ray import job
from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.reporting.figures.make import FIGURES, make_figures
from nearid_ray.reporting.inputs import ReportInputs
from nearid_ray.reporting.report import FIGURES_FOLDER
from nearid_ray.stages.calibrate import Calibrate, run_calibrate
from nearid_ray.stages.evaluate import Evaluate, run_evaluate
from nearid_ray.stages.reproduce_heads import PEOPLE, SUITES

NEEDS_PEOPLE = (
    "it compares scorers with people's ratings of DreamBench++; measure them with jobs/align.py and give its output as "
    "--alignment FOLDER"
)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What an evaluation was made of; empty where it is not known."""

    tuples: str = ""
    distractors: str = ""
    tokens: str = ""


def figure_inputs(
    places: Mapping[str, Pictures], *, heads: Mapping[str, str], measures: Sequence[str]
) -> list[ReportInputs]:
    """What figures are drawn of: one set of folders an evaluation, each with the measures of the others.

    Args:
        places: evaluation -> what it was made of. Without any, the measures alone are drawn.
        heads: trained head -> its folder `best`.
        measures: further folders with measures, of align jobs.
    """
    train = tuple(f"{name}={folder.rpartition('/')[0]}" for name, folder in heads.items())
    if not places:
        return [ReportInputs(evaluation="", measures=tuple(measures))]
    return [
        ReportInputs(
            evaluation=place,
            train=train,
            measures=(*(other for other in places if other != place), *measures),
            **vars(pictures),
        )
        for place, pictures in places.items()
    ]


def calibrated(inputs: ReportInputs, stage: Evaluate, name: str, head: str, output: Location) -> ReportInputs:
    """`inputs` with a calibration of a head, fitted on the validation split; as they are where there is none to fit on.

    Args:
        stage: the evaluation of the test split.
        name: the head's name in it.
        head: its folder `best`.
    """
    place, folder = output.child("evaluation-val").uri, output.child("calibration").uri
    validation = replace(stage.evaluation, split="val")
    stage = replace(stage, output=place, heads=(f"{name}={head}",), embeddings=(), judged=(), evaluation=validation)
    print("\n=== calibrate ===", flush=True)
    try:
        run_evaluate(stage)
        run_calibrate(
            Calibrate(
                scorer=head, records=place, output=folder, name=name, check=inputs.evaluation, tracking=stage.tracking
            )
        )
    except UsageError as error:
        print(f"{name} is not calibrated: {error}")
        return inputs
    return replace(inputs, calibrations=(f"{name}={folder}",))


def draw(names: Sequence[str], drawn: Mapping[str, Sequence[ReportInputs]], output: Location, running: job.Job) -> None:
    """Draw figures into `output`, each from the first of its suite's evaluations that allows it; log and print them.

    Raises:
        UsageError: none of them could be drawn.
    """
    files: dict[str, Location] = {}
    reasons: dict[str, str] = {}
    for suite in dict.fromkeys(SUITES[name] for name in names):
        left = [name for name in names if SUITES[name] == suite]
        for inputs in drawn[suite]:
            if not left:
                break
            made = make_figures(inputs, output, left)
            files |= made.files
            missing = {name: [part for part in made.missing if part.split(" ")[0] == name] for name in left}
            reasons |= {part: made.missing[part] for parts in missing.values() for part in parts}
            left = [name for name in left if len(missing[name]) == len(FIGURES[name])]
        if suite == PEOPLE and left:
            reasons |= dict.fromkeys(left, NEEDS_PEOPLE)
    if not files:
        raise UsageError("; ".join(f"{name} cannot be drawn: {why}" for name, why in reasons.items()))
    for place in files.values():
        running.tracker.text(place.read_bytes().decode(), f"{FIGURES_FOLDER}/{place.path.rpartition('/')[2]}")
    running.summary["figures"] = list(files)
    running.details["not_drawn"] = reasons
    print("\nFigures\n" + "".join(f"  {place.uri}\n" for place in files.values()), end="")
    print("".join(f"{name} was not drawn: {why}\n" for name, why in reasons.items()), end="", flush=True)
