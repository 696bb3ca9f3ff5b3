"""How embedding and synthesis scale over nodes: `python tests/benchmarks/scaling.py`.

Nodes are raylets on this machine, each with one worker of a model that sleeps in place of computing; reading, decoding,
encoding, writing and Ray are real. Rows grow with the nodes. The rate is that between the times at which 30 and 90 % of
the shards are done, so that neither workers that start one after the other nor those that have run out of work are in
it. Sleep so long a row that all nodes' other work stays below the cores of this machine, which they share.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import ray
import torch
from ray.cluster_utils import Cluster
from torch import Tensor

from nearid_ray.data.importers.toybox import ToyboxImporter, ToyboxSettings
from nearid_ray.data.ingest import ingest_task, plan_ingest
from nearid_ray.data.pipeline import RunSettings, ShardTask, run_plan, run_shard
from nearid_ray.data.plan import Plan
from nearid_ray.data.store import Dataset, read_parquet
from nearid_ray.embedding import extract
from nearid_ray.embedding.extract import EmbedTask, plan_embedding
from nearid_ray.embedding.plan import EmbedSettings
from nearid_ray.synthesis.settings import SynthesisSettings
from nearid_ray.synthesis.synthesize import make_task, plan_distractors

FROM, TO = 0.3, 0.9
WORST = 0.9
"""Share of linear that is wanted."""


class SleepingEmbed(EmbedTask):
    """The backbone's place is taken by a sleep; its tokens are zeros."""

    row_s: float = 0.0

    def _embedded(self, image_BSS3: Tensor) -> Tensor:
        time.sleep(self.row_s * len(image_BSS3))
        backbone = self._loaded()
        return torch.zeros(len(image_BSS3), backbone.tokens, backbone.width, dtype=torch.float16)


def write_tuples(folder: Path, identities: int) -> Dataset:
    """Toy identities, rendered in this process."""
    output = Dataset(folder)
    importer = ToyboxImporter(ToyboxSettings(train_identities=0, val_identities=0, test_identities=identities))
    plan = plan_ingest(importer, output)
    for shard in plan.pending:
        run_shard(ingest_task(importer), output, shard, plan.members(shard))
    return output


def synthesis(tuples: Dataset, output: Dataset, row_s: float, rows_per_shard: int) -> tuple[ShardTask, Plan]:
    """What makes one distractor a view."""
    settings = SynthesisSettings(
        engines=("sleeping-1",),
        engine_options=(f"sleeping-1.row_s={row_s}",),
        rows_per_shard=rows_per_shard,
        engine_batch=rows_per_shard,
    )
    plan = plan_distractors(tuples, output, settings)
    return make_task(tuples, plan, settings), plan


def embedding(tuples: Dataset, output: Dataset, row_s: float, rows_per_shard: int) -> tuple[ShardTask, Plan]:
    """What makes the tokens of every view, whole and with its background blacked out."""
    extract._ROWS_PER_SHARD = rows_per_shard
    settings = EmbedSettings(draws=0, dtype="float32", batch_size=rows_per_shard)
    run = RunSettings(gpus_per_worker=1.0)
    planned = plan_embedding("tokens", tuples.location.uri, None, output, settings, run)
    known = {entry.name: getattr(planned.task, entry.name) for entry in fields(EmbedTask) if entry.init}
    task = SleepingEmbed(**known)
    task.row_s = row_s
    return task, planned.plan


STAGES: dict[str, Callable[[Dataset, Dataset, float, int], tuple[ShardTask, Plan]]] = {
    "embedding": embedding,
    "synthesis": synthesis,
}


def rate(stage: str, tuples: Dataset, folder: Path, nodes: int, row_s: float, rows_per_shard: int) -> float:
    """Rows a second on so many nodes."""
    output = Dataset(folder)
    task, plan = STAGES[stage](tuples, output, row_s, rows_per_shard)
    run = RunSettings(workers=nodes, gpus_per_worker=1.0)
    run_plan(task, output, plan, run, title=f"{stage}, {nodes} node(s)")
    place = output.location.child("log")
    log = read_parquet(place.child(place.names()[-1]))
    done = sorted(zip(log["ended"].to_pylist(), log["rows"].to_pylist(), strict=True))
    first, last = round(FROM * len(done)), round(TO * len(done))
    return sum(rows for _, rows in done[first + 1 : last + 1]) / (done[last][0] - done[first][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--identities", type=int, default=40, help="toy identities a node, of 2 to 3 views each")
    parser.add_argument("--row-s", type=float, default=0.4, help="seconds that a row sleeps")
    parser.add_argument("--rows-per-shard", type=int, default=4)
    arguments = parser.parse_args()
    source = Path(__file__).resolve().parents[2]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(source / "platform"), str(source), os.environ.get("PYTHONPATH", "")]
    )
    os.environ |= {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    os.environ.pop("RAY_ADDRESS", None)
    lines = [f"{'':<12}{'nodes':>6}{'rows a second':>15}{'of linear':>11}"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        with tempfile.TemporaryDirectory() as scratch:
            one: dict[str, float] = {}
            for nodes in arguments.nodes:
                while len(cluster.worker_nodes) < nodes:
                    cluster.add_node(num_cpus=2, num_gpus=1, object_store_memory=100 << 20)
                tuples = write_tuples(Path(scratch, f"tuples-{nodes}"), arguments.identities * nodes)
                for stage in STAGES:
                    folder = Path(scratch, f"{stage}-{nodes}")
                    found = rate(stage, tuples, folder, nodes, arguments.row_s, arguments.rows_per_shard)
                    share = found / nodes / one.setdefault(stage, found / nodes)
                    lines.append(
                        f"{stage:<12}{nodes:>6}{found:>15.2f}{share:>11.2f}" + ("" if share >= WORST else "  low")
                    )
                    print(lines[-1], flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
