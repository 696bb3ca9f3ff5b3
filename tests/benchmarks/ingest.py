#!/usr/bin/env python3
"""Views a second of the ingest job beside a bare loop, its driver's memory, and what the object store spilled.

python tests/benchmarks/ingest.py --views 45000

Synthetic JPEGs of 512 pixels, three an identity, go through `jobs/ingest.py photos --mask-method none` with some
workers. The bare loop is as many processes without Ray that read, decode, hash, cut the canonical square and encode,
and write nothing; half of it runs before the job and half after, since machines are not equally quick all the time.
`work` is the time in which shards are made, from the first one's start to the last one's end; CPU times, which say more
on a machine that others use too, are those of the loop and of the workers.
"""

import argparse
import multiprocessing
import os
import resource
import runpy
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from nearid_ray.cluster import ray_session
from nearid_ray.data.images import canonical_square, decode_rgb, encode_png
from nearid_ray.data.store import locate, read_parquet
from nearid_ray.identifiers import content_hash

JOBS = Path(__file__).resolve().parents[2] / "jobs"
VIEWS_AN_IDENTITY, SIZE_PX, DISTINCT = 3, 512, 200
SPAWN = multiprocessing.get_context("spawn")


def photos(root: Path, views: int) -> list[Path]:
    """So many files; a few hundred pictures of blurred noise under many names."""
    made = []
    for number in range(min(DISTINCT, views)):
        rng = np.random.default_rng(number)
        coarse, fine = (rng.integers(0, 256, (side, side, 3), np.uint8) for side in (12, 128))
        layers = [cv2.resize(layer, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_CUBIC) for layer in (coarse, fine)]
        made.append(root.parent / f"{number}.jpg")
        cv2.imwrite(str(made[-1]), cv2.addWeighted(layers[0], 0.8, layers[1], 0.2, 0))
    files = []
    for number in range(views):
        file = root / f"thing {number // VIEWS_AN_IDENTITY:06}" / f"{number % VIEWS_AN_IDENTITY}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        os.link(made[number % len(made)], file)
        files.append(file)
    return files


def bare_loop(files: list[Path]) -> float:
    """The work itself; CPU seconds it took."""
    began_s = time.process_time()
    for file in files:
        data = file.read_bytes()
        content_hash(data)
        square_HW3, _, _ = canonical_square(decode_rgb(data), None, SIZE_PX)
        content_hash(encode_png(square_HW3))
    return time.process_time() - began_s


def bare(files: list[Path], processes: int) -> tuple[float, float]:
    """(views a second, CPU seconds a view) of so many processes; their start left out."""
    with SPAWN.Pool(processes) as pool:
        pool.map(bare_loop, [files[:2]] * processes, chunksize=1)
        began = time.perf_counter()
        cpu_s = pool.map(bare_loop, [files[start::processes] for start in range(processes)], chunksize=1)
        return len(files) / (time.perf_counter() - began), sum(cpu_s) / len(files)


def ingest(root: Path, output: Path, workers: int, told: "multiprocessing.SimpleQueue") -> None:
    """The job, in a process of its own, which is the driver."""
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    argv = ["photos", "--root", root, "--output", output, "--mask-method", "none", "--workers", workers]
    sys.argv = list(map(str, (JOBS / "ingest.py", *argv, "--tracking-uri", "off")))
    sys.path.insert(0, str(JOBS))
    with ray_session(num_cpus=workers):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            stored = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
            peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            told.put((ended.code, peak_gib, stored.spilled_bytes_total))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=45_000, help="pictures to ingest")
    parser.add_argument("--bare-views", type=int, default=6_000, help="pictures of the bare loop")
    parser.add_argument("--workers", type=int, default=2, help="workers, and processes of the bare loop")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root, output = Path(scratch, "photos"), Path(scratch, "tuples")
        files = photos(root, given.views)
        sample = files[: given.bare_views // 2]
        before = bare(sample, given.workers)
        told = SPAWN.SimpleQueue()
        driver = SPAWN.Process(target=ingest, args=(root, output, given.workers, told))
        driver.start()
        code, peak_gib, spilled = told.get()
        driver.join()
        if code:
            sys.exit(f"the job ended with {code}")
        after = bare(sample, given.workers)
        place = locate(output).child("log")
        log = read_parquet(place.child(place.names()[-1]))
        work_s = max(log["ended"].to_pylist()) - min(log["began"].to_pylist())
    alone, rate = 2 / (1 / before[0] + 1 / after[0]), given.views / work_s
    loop_ms, work_ms = 500 * (before[1] + after[1]), 1000 * sum(log["cpu_s"].to_pylist()) / given.views
    print(f"\n{given.views} views of {SIZE_PX} px (synthetic), {given.workers} workers")
    print(f"bare loop          {alone:8.1f} views a second ({before[0]:.1f} before, {after[0]:.1f} after)")
    print(f"ingest, work       {rate:8.1f} views a second, {rate / alone:.2f} of the loop")
    print(f"CPU a view         {work_ms:8.1f} ms, the loop's {loop_ms:.1f} ms: {loop_ms / work_ms:.2f}")
    print(f"driver, at most    {peak_gib:8.2f} GiB of memory")
    print(f"spilled            {spilled:8d} bytes")


if __name__ == "__main__":
    main()
