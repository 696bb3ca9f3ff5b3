"""SIGTERM: what is told to end by itself ends by itself, and the process with its exit code."""

import signal
import subprocess
import sys

import pytest

BLOCK = """
import sys, time
from nearid_ray import job
from nearid_ray.cluster import ending_in_order, told_to_end

told = []
def run(argv):
    with ending_in_order():
        with told_to_end(lambda: told.append("told")):
            print("ready", flush=True)
            while not told and {waits}:
                time.sleep(0.02)
            print("saved", flush=True)
        print("went on", flush=True)
        time.sleep({after})
    return 0
job.main(run)
"""


@pytest.mark.parametrize(
    ("waits", "after", "said"), [("True", "0", ["ready", "saved"]), ("False", "30", ["ready", "saved", "went on"])]
)
def test_sigterm_is_told_to_a_block_that_then_ends_by_itself_and_is_an_interrupt_after_it(waits, after, said):
    """In the block it is told; after the block it interrupts, as elsewhere."""
    code = BLOCK.format(waits=waits, after=after)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip()]
        while waits == "False" and lines[-1] != "went on":
            lines.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGTERM)
        lines += process.stdout.read().split("\n")[:-1]
    assert lines == said
    assert process.returncode == 143
