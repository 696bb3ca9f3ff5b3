"""The plan job: what a run would cost. Starts nothing; writes only where asked."""

from dataclasses import asdict, dataclass
from typing import Any

from nearid_ray.data.store import locate
from nearid_ray.planning.plan import CostPlan, make_cost_plan
from nearid_ray.planning.settings import PlanSettings
from nearid_ray.planning.text import as_markdown, as_text
from nearid_ray.settings import dump_json


@dataclass(frozen=True, kw_only=True)
class PlanCost:
    """GPU-hours, storage, network and cost of a run by stage, from measured rates or stated assumptions."""

    output: str = ""
    """Folder or s3://bucket/prefix for plan.json and plan.md; nothing is written when empty."""
    size: PlanSettings = PlanSettings()


def run_plan_cost(settings: PlanCost) -> CostPlan:
    """Print the plan, and write it where asked."""
    plan = make_cost_plan(settings.size)
    print(as_text(plan))
    if settings.output:
        place = locate(settings.output)
        place.child("plan.json").write_bytes(dump_json(described(plan)))
        place.child("plan.md").write_bytes(as_markdown(plan).encode())
        print(f"\nwritten to {place.uri}: plan.json, plan.md")
    return plan


def described(plan: CostPlan) -> dict[str, Any]:
    """The plan as JSON-like values."""
    stages = [
        asdict(stage) | {"hours": stage.hours, "wall_hours": stage.wall_hours, "cost_usd": plan.cost_usd(stage)}
        for stage in plan.stages
    ]
    return {
        "settings": asdict(plan.settings),
        "gpu": asdict(plan.gpu),
        "price_usd_h": plan.price_usd_h,
        "stages": stages,
        "total": plan.total(),
        "measured": {name: asdict(found) for name, found in plan.measured.items()},
        "assumptions": plan.assumptions,
    }
