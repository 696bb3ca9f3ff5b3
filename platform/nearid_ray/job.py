"""What every job does the same: exit codes, the summary table, summary.json, the MLflow run, the Ray session."""

import functools
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from nearid_ray.cluster import Terminated, ending_in_order, output_location, ray_session
from nearid_ray.data.lock import owned
from nearid_ray.data.pipeline import RunSummary
from nearid_ray.data.plan import forget_plan
from nearid_ray.data.rejects import rejected_counts
from nearid_ray.data.store import Dataset, Location
from nearid_ray.errors import StoreError, UsageError
from nearid_ray.settings import dump_json, to_dict
from nearid_ray.tracking import Tracker, TrackingSettings, check_tracking, tracked

OK, FAILED, MISUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143
"""Exit codes: done; ran but failed (a crash, too many rows with errors); wrong settings or input; Ctrl-C; SIGTERM."""


def main(job: Callable[[Sequence[str]], int]) -> None:
    """Run a job's function on the command line and end the process with its exit code."""
    try:
        code = job(sys.argv[1:])
    except (UsageError, StoreError) as error:
        print(f"error: {_told(str(error))}", file=sys.stderr)
        code = MISUSED if isinstance(error, UsageError) else FAILED
    except KeyboardInterrupt:
        # Some libraries (Ray Tune) end with an interrupt of their own after SIGTERM.
        word, code = ("terminated", TERMINATED) if Terminated.received else ("interrupted", INTERRUPTED)
        print(f"{word}; run the same command again to go on", file=sys.stderr)
    except Exception as error:
        code = FAILED
        # A worker's error comes wrapped in what Ray says of it, as text.
        if of_worker := re.search(r"nearid_ray\.errors\.(Usage|Store)Error: (.*)", str(error)):
            print(f"error: {_told(of_worker[2])}", file=sys.stderr)
            code = MISUSED if of_worker[1] == "Usage" else FAILED
        else:
            traceback.print_exc()
    sys.exit(code)


def _told(message: str) -> str:
    """An error's message without the number that Python puts before it."""
    return re.sub(r"^\[Errno \d+\] ", "", message)


@dataclass
class Job:
    """A running job: its tracker and what goes into its summary."""

    tracker: Tracker
    summary: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """For summary.json alone; too long for the table."""
    failed: bool = False


@contextmanager
def owning(place: Location, name: str, *, break_lock: bool = False) -> Iterator[None]:
    """Be the one job that writes `place`, and let go of it however the block ends; see `lock.owned`."""
    with ending_in_order(), owned(place, name, break_lock=break_lock):
        yield


class Writes(Protocol):
    """Settings of a job that writes one output; `break_lock` may stand in a section of them (`RunSettings`)."""

    @property
    def output(self) -> str: ...
    @property
    def tracking(self) -> TrackingSettings: ...


S = TypeVar("S", bound=Writes)
P = ParamSpec("P")
R = TypeVar("R")


def owning_output(name: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Decorates `run_X(settings, ...)`: while it runs, from before its plan, no other job writes `settings.output`."""

    def decorate(run: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(run)
        def alone(settings: S, *args: P.args, **kwargs: P.kwargs) -> R:
            place = output_of(settings.output, settings.tracking)
            with owning(place, name, break_lock=to_dict(settings).get("break_lock", False)):
                return run(settings, *args, **kwargs)

        return alone

    return decorate


def output_of(uri: str, tracking: TrackingSettings) -> Location:
    """Where a job may write `uri`; UsageError, before anything is made, where it may not or cannot be tracked."""
    output = output_location(uri)
    check_tracking(output, tracking)
    return output


@contextmanager
def running(
    name: str,
    output: Location,
    settings: Mapping[str, Any],
    *,
    tracking: TrackingSettings,
    inputs: Mapping[str, str] | None = None,
    needs_ray: bool = True,
) -> Iterator[Job]:
    """A Ray session (where needed) and an MLflow run around a job; then `summary.json` in the output and a table.

    The block fills `job.summary` (JSON-like) and sets `job.failed` where the outcome is not good enough.
    """
    began = time.monotonic()
    session = ray_session() if needs_ray else nullcontext()
    try:
        with session, tracked(name, output, tracking, settings, inputs or {}) as tracker:
            job = Job(tracker)
            yield job
            job.summary["seconds"] = round(time.monotonic() - began, 1)
            finish(name, output, job)
    except UsageError:
        with suppress(OSError, UsageError):  # the first refusal is the one to tell
            forget_plan(Dataset(output))
        raise


def finish(name: str, output: Location, job: Job) -> None:
    """Write summary.json, log it and print it as a table."""
    data = dump_json(
        {"job": name, "output": output.uri, "mlflow_run": job.tracker.run_id, **job.summary, **job.details}
    )
    output.child("summary.json").write_bytes(data)
    job.tracker.text(data.decode(), "summary.json")
    job.tracker.metrics({key: value for key, value in job.summary.items() if _is_number(value)})
    print_table(name, {**job.summary, "output": output.uri})


def report_run(job: Job, output: Dataset, run: RunSummary) -> None:
    """Put what a plan's run did into the job's summary."""
    job.summary |= {
        "rows": run.rows,
        "rows_made": run.rows_made,
        "rows_done_before": run.rows_before,
        "rows_with_error": run.errors,
        "shards_made": run.shards_made,
        "rows_a_second": round(run.rows_made / run.seconds, 1) if run.rows_made else 0.0,
        "left_out": rejected_counts(output),
    }
    if run.error_examples:
        job.summary["error_examples"] = list(run.error_examples)
    if run.failed:
        job.failed = True
        share = run.errors / run.rows
        print(
            f"{run.errors} of {run.rows} rows have an error ({share:.1%}), above the limit of {run.max_error_share:.1%}"
            " (--max-error-share). They stay as rows with `error`; --retry-errors makes their shards again.",
            file=sys.stderr,
        )


def exit_code(job: Job) -> int:
    """The exit code that a job's outcome means."""
    return FAILED if job.failed else OK


def print_table(title: str, values: Mapping[str, Any]) -> None:
    """Print `name  value` lines, nested values flattened."""
    lines = list(_flat(values))
    width = max((len(name) for name, _ in lines), default=0)
    print(f"\n{title}\n" + "\n".join(f"  {name:<{width}}  {value}" for name, value in lines), flush=True)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", "; ".join(map(str, value))
        else:
            yield f"{prefix}{name}", str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
