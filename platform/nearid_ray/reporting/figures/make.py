"""Make figures as files: one SVG each, from the folders of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from nearid_ray.data.store import Location
from nearid_ray.errors import UsageError
from nearid_ray.reporting.figures import gather
from nearid_ray.reporting.figures.figure import Figure, standalone
from nearid_ray.reporting.figures.gather import Made
from nearid_ray.reporting.inputs import Opened, ReportInputs
from nearid_ray.reporting.model import ReportSettings

_Builder = Callable[[Opened, ReportSettings], Made]

FIGURES: Mapping[str, tuple[_Builder, ...]] = {
    "alpha": (partial(gather.weight, "alpha"),),
    "beta": (partial(gather.weight, "beta"),),
    "figure3": (gather.attention, gather.properties),
    "figure4": (gather.radar,),
    "figure5": (gather.projection,),
    "figure7": (gather.qualitative,),
    "figure8": (gather.parts,),
    "figure9": (gather.distribution,),
    "reliability": (gather.calibrations,),
}
"""What can be made, in the order of the page: curves, and the paper's figures by number."""


@dataclass(frozen=True, kw_only=True)
class MadeFigures:
    """What was made, and what was not."""

    figures: list[Figure] = field(default_factory=list)
    files: dict[str, Location] = field(default_factory=dict)
    """Figure's name (file name without ending) -> where it was written."""
    missing: dict[str, str] = field(default_factory=dict)
    """Name -> what it would need, in a sentence; a name of `FIGURES`, with a part where it has several."""


def draw_figures(opened: Opened, settings: ReportSettings, which: Sequence[str] = ()) -> MadeFigures:
    """The figures of a run, none written yet.

    Args:
        which: names of `FIGURES`; all when empty.

    Raises:
        UsageError: a name is unknown, or an input folder does not hold what it should.
    """
    unknown = sorted(set(which) - set(FIGURES))
    if unknown:
        raise UsageError(f"figures has {', '.join(unknown)}; expected some of {', '.join(FIGURES)}")
    figures, missing = [], {}
    for name in which or FIGURES:
        for builder in FIGURES[name]:
            made = builder(opened, settings)
            if isinstance(made, Figure):
                figures.append(made)
            else:
                part = f" ({builder.__name__})" if len(FIGURES[name]) > 1 and hasattr(builder, "__name__") else ""
                missing[f"{name}{part}"] = made
    return MadeFigures(figures=figures, missing=missing)


def write_figures(made: MadeFigures, output: Location) -> MadeFigures:
    """Write each figure as NAME.svg into `output`."""
    files = {}
    for figure in made.figures:
        files[figure.name] = output.child(f"{figure.name}.svg")
        files[figure.name].write_bytes(standalone(figure).encode())
    return MadeFigures(figures=made.figures, files=files, missing=made.missing)


def make_figures(
    inputs: ReportInputs, output: Location, which: Sequence[str] = (), settings: ReportSettings | None = None
) -> MadeFigures:
    """Draw figures of a run and write each as an SVG file that stands alone: title, legend, caption.

    Args:
        inputs: the folders; a figure that needs one which is not given is in `missing` of the result, with a sentence.
        output: folder of the files.
        which: names of `FIGURES` (figure3, figure4, figure5, figure7, figure8, figure9, alpha, beta, reliability); all
            when empty.
        settings: how many identities are drawn, and the seed that draws them.

    Raises:
        UsageError: a name is unknown, or an input folder does not hold what it should.
    """
    return write_figures(draw_figures(Opened(inputs), settings or ReportSettings(), which), output)
