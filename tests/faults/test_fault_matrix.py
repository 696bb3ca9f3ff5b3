"""Every fault against every job, on a small real cluster: the undisturbed result, and nothing stays behind."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.cells import CELLS, Seen, run_cell
from tests.faults.world import World

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(("fault", "job"), CELLS)
def test_a_job_comes_through(
    fault: str, job: str, world: World, tmp_path: Path, report: Callable[[Seen], None]
) -> None:
    if fault == "s3" and not world.s3.there:
        pytest.skip("there is no S3 server: see tests/s3/conftest.py")
    seen = run_cell(world, fault, job, tmp_path)
    report(seen)
    assert seen.wrong == []
