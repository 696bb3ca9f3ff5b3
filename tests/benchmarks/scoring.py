#!/usr/bin/env python3
"""jobs/score.py beside a bare batched loop of the same model, and its memory over many pairs, in one run.

python tests/benchmarks/scoring.py --pictures 4000 --pairs 200000

The bare loop is one process that reads, decodes, resizes and embeds batch after batch, without Ray and without
writing; score runs with one worker. `work` is the time in which shards are made; `CPU` compares seconds of the
processor instead of the clock, which other programs on the machine disturb. Memory is that of driver and workers
(resident, and of that what is no mapped file), sampled over the run with few and with many pairs of the same pictures.
"""

import argparse
import os
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

import nearid_ray
from nearid_ray.cluster import ray_session
from nearid_ray.data.images import decode_rgb
from nearid_ray.data.pipeline import RunSettings
from nearid_ray.data.store import Dataset, locate, read_parquet
from nearid_ray.scoring.score import ScoreSettings, plan_scores

MIB = 2**20
BATCH = 64


@dataclass
class Memory:
    """Largest memory of this process and of the workers, MiB, while it runs."""

    peak: dict[str, float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Memory":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            self._note("driver", me)
            for child in me.children(recursive=True):
                try:
                    if "MapWorker" in " ".join(child.cmdline()[:1]):
                        self._note("worker", child)
                except psutil.Error:
                    continue

    def _note(self, name: str, process: psutil.Process) -> None:
        found = process.memory_info()
        for key, value in ((f"{name} resident", found.rss), (f"{name} own", found.rss - found.shared)):
            self.peak[key] = max(self.peak.get(key, 0.0), value / MIB)


def write_pictures(folder: Path, count: int, side: int) -> list[str]:
    """JPEG photographs of noise with some structure."""
    paths = []
    for number in range(count):
        blocks = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        paths.append(str(folder / f"{number:06d}.jpg"))
        Image.fromarray(blocks).resize((side, side), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def write_pairs(path: Path, pictures: list[str], count: int) -> None:
    drawn = np.random.default_rng(0).integers(0, len(pictures), (2, count))
    names = pa.array(pictures)
    pq.write_table(pa.table({"a": names.take(pa.array(drawn[0])), "b": names.take(pa.array(drawn[1]))}), path)


def bare(spec: str, pictures: list[str]) -> tuple[float, float]:
    """Pictures a second, by the clock and by the processor."""
    torch.set_num_threads(1)
    embedder = nearid_ray.load(spec, device="cpu", dtype="float32").embedder
    embedder.embed([embedder.shrunk(decode_rgb(Path(pictures[0]).read_bytes()))] * BATCH)  # warm
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(pictures), BATCH):
        embedder.embed([embedder.shrunk(decode_rgb(Path(p).read_bytes())) for p in pictures[start : start + BATCH]])
    return len(pictures) / (time.perf_counter() - wall), len(pictures) / (time.process_time() - cpu)


def scored(spec: str, pairs: Path, output: Path) -> tuple[float, float, float]:
    """Pictures a second of one worker by the clock and by its processor; seconds of the whole run."""
    began = time.perf_counter()
    settings, run = ScoreSettings(dtype="float32", batch_size=BATCH), RunSettings(workers=1, gpus_per_worker=0)
    planned = plan_scores(str(pairs), spec, locate(output), settings, run)
    images, _ = planned.run(run)
    seconds = time.perf_counter() - began
    folder = Dataset(output / "images").location.child("log")
    log = read_parquet(folder.child(folder.names()[-1]))
    work_s = max(log["ended"].to_pylist()) - min(log["began"].to_pylist())
    return images.rows / work_s, images.rows / sum(log["cpu_s"].to_pylist()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", default="toybox-siglip2")
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--side", type=int, default=256, help="of the pictures, pixels")
    parser.add_argument("--pairs", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, ray_session(num_cpus=2):
        folder = Path(scratch)
        (folder / "pictures").mkdir()
        pictures = write_pictures(folder / "pictures", given.pictures, given.side)
        print(f"{given.pictures} JPEG of {given.side} px, {given.scorer}, {os.cpu_count()} cores; pictures a second")
        few = folder / "few.parquet"
        write_pairs(few, pictures, 4 * given.pictures)
        for turn in range(given.repeats):
            alone = bare(given.scorer, pictures)
            job = scored(given.scorer, few, folder / f"few-{turn}")
            print(
                f"bare loop {alone[0]:.0f} (CPU {alone[1]:.0f})  score x1 {job[0]:.0f} (CPU {job[1]:.0f})  "
                f"score / bare {job[0] / alone[0]:.3f} (CPU {job[1] / alone[1]:.3f})"
            )
        for count in (given.pairs // 20, given.pairs // 2, given.pairs):
            many = folder / f"{count}.parquet"
            write_pairs(many, pictures, count)
            with Memory() as memory:
                seconds = scored(given.scorer, many, folder / f"out-{count}")[2]
            said = ", ".join(f"{name} {value:.0f}" for name, value in memory.peak.items())
            print(f"{count:>8} pairs in {seconds:.0f} s; peak MiB: {said}")


if __name__ == "__main__":
    main()
