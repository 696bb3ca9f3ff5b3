"""A cost plan for people to read: one table, then what it rests on."""

from nearid_ray.planning.plan import CostPlan
from nearid_ray.text_tables import aligned, markdown_table

_HEAD = ("stage", "rows", "s a row", "hours", "on the clock", "storage GiB", "network GiB", "USD", "from")
_NUMBERS = range(1, len(_HEAD) - 1)


def as_lines(plan: CostPlan) -> list[list[str]]:
    """Cells of the table: head, a line a stage, the total."""
    lines = [list(_HEAD)]
    for stage in plan.stages:
        lines.append(
            [
                stage.name,
                f"{stage.rows:,}",
                _seconds(stage.row_s),
                f"{_hours(stage.hours)} {'GPU' if stage.uses_gpu else 'CPU'}",
                _hours(stage.wall_hours),
                _size(stage.storage_gib),
                _size(stage.network_gib),
                f"{plan.cost_usd(stage):,.0f}" if stage.part_of_total else f"({plan.cost_usd(stage):,.0f})",
                stage.origin,
            ]
        )
    total = plan.total()
    lines.append(
        [
            "total",
            "",
            "",
            f"{_hours(total['gpu_hours'])} GPU",
            _hours(total["wall_hours"]),
            _size(total["storage_gib"]),
            _size(total["network_gib"]),
            f"{total['cost_usd']:,.0f}",
            "",
        ]
    )
    return lines


def as_text(plan: CostPlan) -> str:
    """The table in columns, then measured and assumed inputs."""
    lines = as_lines(plan)
    body = aligned(lines, right=_NUMBERS).splitlines()
    body.insert(-1, "-" * len(body[0]))
    return "\n".join([*body, "", *_notes(plan)])


def as_markdown(plan: CostPlan) -> str:
    """The same as Markdown."""
    return "\n".join([markdown_table(as_lines(plan), right=_NUMBERS), "", *(f"{note}  " for note in _notes(plan))])


def _notes(plan: CostPlan) -> list[str]:
    settings = plan.settings
    notes = [
        f"{settings.gpus} x {plan.gpu.name}; {settings.identities:,} identities, {settings.views:,} views, "
        f"{settings.views * len(settings.engines):,} distractors of {len(settings.engines)} engine(s), backbone "
        f"{settings.backbone}. Lines in brackets are alternatives and not in the total.",
    ]
    measured = [f"{stage}: {found.uri}" for stage, found in plan.measured.items()]
    notes.append("Measured (on workers like these): " + ("; ".join(measured) if measured else "nothing"))
    return [*notes, "Assumed:", *(f"- {said}" for said in plan.assumptions)]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.2g}"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 1 else f"{hours:.2g}"


def _size(gib: float) -> str:
    return f"{gib:,.0f}" if gib >= 10 else f"{gib:.1f}" if gib >= 0.05 else ""
