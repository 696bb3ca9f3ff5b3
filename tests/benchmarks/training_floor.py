#!/usr/bin/env python3
r"""A training step beside the time its tokens take to be read: from the page cache, and where they lie on the device.

python tests/benchmarks/training_floor.py --device cuda                            # 768 slots of 729 x 1152 tokens
python tests/benchmarks/training_floor.py --samples 8 --tokens 49 --width 128     # a CPU-sized one

Reading is what `TokenReader` does: gather a step's tokens from the mapped cache into pinned memory and send them to the
device. The floor of tokens that lie on the device is two readings of them (forward, backward) at the bandwidth that a
large copy reaches there. Weights and tokens are random.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import torch
from training import Size, rows_of, settings_of, write_cache

from nearid_ray.embedding.cache import TokenCache
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.tokens import TokenReader

_COPIED_BYTES = {"cuda": 4 << 30, "cpu": 256 << 20}


def seconds(act: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of an act, the device's work included; the first time is left out."""
    taken = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])


def bytes_per_second(device: torch.device, repeats: int) -> float:
    """What a large copy on the device reads and writes a second."""
    source = torch.ones(_COPIED_BYTES[device.type] // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES[device.type] / seconds(lambda: target.copy_(source), device, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--precision", default="", choices=("", "fp32", "bf16", "fp16"), help="fp16 on a GPU")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=729)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--threads", type=int, default=1, help="threads that read, and threads of torch")
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    precision = arguments.precision or ("fp16" if device.type == "cuda" else "fp32")
    size = Size(tokens=arguments.tokens, width=arguments.width, heads=16, mlp_width=int(3.736 * arguments.width))
    with tempfile.TemporaryDirectory() as folder:
        write_cache(folder, arguments.samples, size)
        cache = TokenCache.open(folder, threads=arguments.threads)
        settings = settings_of(arguments.samples, precision=precision)

        def steps(resident: bool) -> HeadTraining:
            head = AttentionPoolingHead.from_state_dict(cache.head_state(), cache.backbone["heads"])
            return HeadTraining({"head": head}, cache, {"head": settings}, device=device, resident=resident)

        training = steps(resident=False)
        rows_BS = rows_of(training, 0)
        rows_N = rows_BS[rows_BS >= 0]
        reader = TokenReader(cache, device)
        step_bytes = len(rows_N) * reader.item_bytes
        read_s = seconds(lambda: reader.read_NTD(rows_N), device, arguments.repeats)
        runs = {name: steps(name == "resident").run() for name in ("cached", "resident")}
        step_s = {name: seconds(lambda run=run: next(run), device, arguments.repeats) for name, run in runs.items()}
        for run in runs.values():
            run.close()
    floor_s = 2 * step_bytes / bytes_per_second(device, arguments.repeats)
    print(
        f"{arguments.samples} samples, {len(rows_N)} pictures of {size.tokens} x {size.width} tokens = "
        f"{step_bytes / 2**30:.2f} GiB a step; {arguments.device}, {precision}, {arguments.threads} thread(s)\n"
        f"  reading the tokens from the page cache   {read_s * 1e3:10.2f} ms\n"
        f"  step, tokens from the page cache         {step_s['cached'] * 1e3:10.2f} ms   "
        f"{step_s['cached'] / read_s:.2f} of reading\n"
        f"  floor: two readings on the device        {floor_s * 1e3:10.2f} ms\n"
        f"  step, tokens on the device               {step_s['resident'] * 1e3:10.2f} ms   "
        f"{step_s['resident'] / floor_s:.2f} of the floor"
    )


if __name__ == "__main__":
    main()
