"""Runs job scripts one after the other in one Ray session.

python job_runner.py LOG: says first where Ray keeps its logs. Then each line on standard input is a JSON list of a
job's name and its arguments; the answer is its exit code. What the job prints is in LOG, until the next one.
"""

import json
import os
import runpy
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main(log: Path) -> None:
    """Serve until standard input closes."""
    sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "jobs")]
    import ray

    from nearid_ray.cluster import ray_session

    answers = os.fdopen(os.dup(1), "w")
    written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(written, 1)
    os.dup2(written, 2)
    with ray_session(num_cpus=2):
        print(Path(ray._private.worker._global_node.get_session_dir_path()) / "logs", file=answers, flush=True)
        for line in sys.stdin:
            name, *sys.argv[1:] = json.loads(line)
            os.truncate(log, 0)
            code: object = 0
            try:
                runpy.run_path(str(ROOT / "jobs" / f"{name}.py"), run_name="__main__")
            except SystemExit as ended:
                code = ended.code
            except Exception:  # the script did not get as far as its job
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            print(code, file=answers, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
