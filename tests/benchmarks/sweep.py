#!/usr/bin/env python3
r"""The loops of a fused sweep beside the same trials trained alone, one after the other, in one run.

python tests/benchmarks/sweep.py                                           # 9 heads, 64 x 128 tokens, toybox recipe
python tests/benchmarks/sweep.py --tokens 256 --width 768 --samples 32     # a larger backbone
python tests/benchmarks/sweep.py --device cuda --tokens 729 --width 1152 --samples 128 --precision fp16

The trials are those of the paper's alpha and beta tables, which share one: nine. Tokens and weights are random, and lie
in a cache on disk (in the page cache). Start-up is left out: the loops are `HeadTraining.run`, in one process, without
validation. Steps of both are taken in turn, so that others on the machine disturb both alike. In the end the heads are
compared: the fused ones are those trained alone.
"""

import argparse
import statistics
import tempfile
import time
from copy import deepcopy
from dataclasses import replace

import torch
from training import Size, settings_of, write_cache

from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.tuning.plan import planned_trials
from nearid_ray.tuning.presets import sweep_points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16", "fp16"))
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--identities", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--heads", type=int, default=0, help="attention heads; one for 32 of the width if left out")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    heads = arguments.heads or (16 if arguments.width > 512 else arguments.width // 32)
    size = Size(tokens=arguments.tokens, width=arguments.width, heads=heads, mlp_width=int(3.736 * arguments.width))
    base = settings_of(arguments.samples, precision=arguments.precision, max_steps=arguments.steps + 1, warmup_steps=2)
    points = sweep_points("table8+table9")
    trials = planned_trials(replace(base, alpha=None), list(points.values()), list(points))
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(folder, arguments.identities, size)
        head = AttentionPoolingHead.from_state_dict(cache.head_state(), cache.backbone["heads"])

        def loop(names: list[str]) -> HeadTraining:
            runs = {trial.name: trial.settings for trial in trials if trial.name in names}
            return HeadTraining({name: deepcopy(head) for name in names}, cache, runs, device=device)

        names = [trial.name for trial in trials]
        loops = {"fused": loop(names)} | {name: loop([name]) for name in names}
        steps = {name: training.run() for name, training in loops.items()}
        taken: dict[str, list[float]] = {name: [] for name in loops}
        used: dict[str, list[float]] = {name: [] for name in loops}
        for step in range(arguments.steps + 1):
            for name, rows in steps.items():
                began, busy = time.perf_counter(), time.process_time()
                next(rows)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if step:  # the first one makes optimisers and buffers
                    taken[name].append(time.perf_counter() - began)
                    used[name].append(time.process_time() - busy)
        apart = max(
            float((value - loops[name].runs[name].head.state_dict()[key]).abs().max())
            for name in names
            for key, value in loops["fused"].runs[name].head.state_dict().items()
        )
        for rows in steps.values():
            rows.close()
    clock = {name: statistics.median(values) for name, values in taken.items()}
    busy_s = {name: statistics.median(values) for name, values in used.items()}
    alone, alone_busy = (sum(each[name] for name in names) for each in (clock, busy_s))
    print(
        f"{len(names)} trials, {arguments.samples} samples of {size.tokens} x {size.width} tokens a step, "
        f"{arguments.device}, {arguments.precision}, {arguments.threads} thread(s), medians of {arguments.steps}\n"
        "                                   clock      processor (fairer where others use the machine)\n"
        f"  one step of nine loops alone {alone * 1e3:10.1f} ms {alone_busy * 1e3:10.1f} ms\n"
        f"  one step of the fused sweep  {clock['fused'] * 1e3:10.1f} ms {busy_s['fused'] * 1e3:10.1f} ms\n"
        f"  fused of nine alone          {clock['fused'] / alone:10.2f}    {busy_s['fused'] / alone_busy:10.2f}\n"
        f"  fused of one loop alone      {len(names) * clock['fused'] / alone:10.2f}    "
        f"{len(names) * busy_s['fused'] / alone_busy:10.2f}\n"
        f"  largest difference of any weight after {arguments.steps + 1} steps: {apart:.1e}"
    )


if __name__ == "__main__":
    main()
