"""Where passes and trials meet: workers say what each run did, Tune's trials fetch what theirs did.

One actor without CPUs. A pass hands in the rows of all its runs at a validation; each trial of Ray Tune takes those of
its own, one after the other, and reports them. Where a scheduler stops trials, the pass waits for its verdict.

Nothing here imports torch: a trial's process is small.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle

if TYPE_CHECKING:
    from nearid_ray.training.history import HistoryRow

Said = dict[str, Any]
"""What a trial reports of a validation: step, steps, loss, val_ssr, val_pa, best_val_ssr, best_val_pa, best_step."""


class Hub:
    """The rows of each run, in order; who has ended and why; who is to leave."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Said]] = {}
        self._ended: dict[str, str] = {}
        self._verdicts: dict[str, dict[int, list[str]]] = {}
        self._news = asyncio.Condition()

    async def put(self, rows: Mapping[str, Said]) -> None:
        """Rows of runs. One that comes again, after workers were replaced, is known already."""
        async with self._news:
            for name, row in rows.items():
                known = self._rows.setdefault(name, [])
                if not known or known[-1]["step"] < row["step"]:
                    known.append(row)
            self._news.notify_all()

    async def take(self, name: str, place: int) -> Said | None:
        """The row of a run at a place of its list; waits for it. None when there will be none.

        Raises:
            RuntimeError: the run could not go on.
        """
        async with self._news:
            await self._news.wait_for(lambda: len(self._rows.get(name, ())) > place or name in self._ended)
            rows = self._rows.get(name, [])
            if len(rows) > place:
                return rows[place]
        if self._ended[name]:
            raise RuntimeError(self._ended[name])
        return None

    async def end(self, reasons: Mapping[str, str]) -> None:
        """Runs that come to their end, and why where it is not in order. The first reason stands."""
        async with self._news:
            for name, reason in reasons.items():
                self._ended.setdefault(name, reason)
            self._news.notify_all()

    async def reasons(self) -> dict[str, str]:
        """Why runs could not go on."""
        return {name: reason for name, reason in self._ended.items() if reason}

    async def settle(self, of_pass: str, step: int, leaving: Sequence[str]) -> None:
        """A scheduler's verdict on the runs of a pass after a step."""
        async with self._news:
            self._verdicts.setdefault(of_pass, {})[step] = list(leaving)
            for name in leaving:
                self._ended.setdefault(name, "")
            self._news.notify_all()

    async def verdict(self, of_pass: str, step: int) -> list[str]:
        """The runs of a pass that leave after a step; waits for the scheduler."""
        async with self._news:
            await self._news.wait_for(lambda: step in self._verdicts.get(of_pass, {}))
            return self._verdicts[of_pass][step]


def start_hub() -> Any:
    """A hub on the driver's machine, whose loss the sweep would not survive anyway."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Hub).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here).remote()


@dataclass(frozen=True)
class HubSteering:
    """What a pass tells the hub, from its first worker (see `training.steering.Steering`)."""

    hub: ActorHandle
    of_pass: str
    waits: bool
    """Whether a scheduler may stop trials, so that each validation waits for its verdict."""

    def validated(self, rows: Mapping[str, "HistoryRow"], steps: int) -> Collection[str]:
        ray.get(self.hub.put.remote({name: said(row, steps) for name, row in rows.items()}))
        step = next(iter(rows.values())).step
        if not self.waits or not step or step >= steps:
            return ()
        return ray.get(self.hub.verdict.remote(self.of_pass, step))

    def failed(self, reasons: Mapping[str, str]) -> None:
        ray.get(self.hub.end.remote(dict(reasons)))


def said(row: "HistoryRow", steps: int) -> Said:
    """What a trial reports of a validation."""
    return {"steps": steps, **{name: value for name, value in asdict(row).items() if name != "parts"}}
