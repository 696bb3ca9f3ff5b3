#!/usr/bin/env python3
r"""Time and memory of the attention-pooling head beside transformers' own, forward and backward on one core.

python tests/benchmarks/head.py
python tests/benchmarks/head.py --rounds 1 --width 256 --heads 4 --mlp-width 512 --tokens 100
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "platform")]

_KINDS = {"transformers": 3, "ours": 15, "ours, float16 tokens": 15}
"""Heads, and how often each runs in one process."""


def main() -> None:
    """Run every head in a fresh process, one after the other and again, and print them side by side."""
    options = _options()
    if options.kind:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in _KINDS}
    for _ in range(options.rounds):
        for kind, results in found.items():
            arguments = [sys.executable, __file__, *sys.argv[1:], "--kind", kind]
            said = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
            results.append(json.loads(said.splitlines()[-1]))
    print(f"{options.images} images of {options.tokens} x {options.width} tokens, float32, one thread")
    titles = ("wall ms: least", "median", "CPU ms: least", "median", "memory MiB", "difference")
    print(f"{'':22}" + "".join(f"{title:>16}" for title in titles))
    rows = {kind: _row(results) for kind, results in found.items()}
    for kind, row in rows.items():
        print(f"{kind:22}{row[0]:16.1f}{row[1]:16.1f}{row[2]:16.1f}{row[3]:16.1f}{row[4]:16.0f}{row[5]:16.1e}")
    for kind in list(rows)[1:]:
        ratios = [theirs / own for theirs, own in zip(rows["transformers"], rows[kind], strict=True)]
        said = f"{ratios[0]:.1f} (medians {ratios[1]:.1f}) times as fast; memory one {ratios[4]:.1f}th"
        print(f"{kind}: {said}")


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """One head in this process: times of each run, the memory it took beyond tokens and weights."""
    import torch

    from nearid_ray.models.head import AttentionPoolingHead

    torch.set_num_threads(1)
    new = AttentionPoolingHead.initialised(options.width, options.heads, options.mlp_width)
    head = new if options.kind != "transformers" else _transformers_head(options, new.state_dict())
    generator = torch.Generator().manual_seed(0)
    tokens_BTD = torch.randn(options.images, options.tokens, options.width, generator=generator)
    direction_BD = torch.randn(options.images, options.width, generator=generator)
    expected_BD = new(tokens_BTD[:1])[0].detach()
    if options.kind.endswith("float16 tokens"):
        tokens_BTD = tokens_BTD.half()
    before_mib = _resident_mib()
    walls, cpus = [], []
    for _ in range(_KINDS[options.kind]):
        head.zero_grad(set_to_none=True)
        wall, cpu = time.perf_counter(), time.process_time()
        embedding_BD = head(tokens_BTD)
        (embedding_BD * direction_BD).sum().backward()
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    difference = (embedding_BD[0].detach() - expected_BD).abs().max().item()
    return {"wall": walls, "cpu": cpus, "memory": [peak_mib - before_mib], "difference": [difference]}


def _transformers_head(options: argparse.Namespace, state: dict) -> "object":  # type: ignore[type-arg]
    from transformers import SiglipVisionConfig
    from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

    config = SiglipVisionConfig(
        hidden_size=options.width, num_attention_heads=options.heads, intermediate_size=options.mlp_width
    )
    head = SiglipMultiheadAttentionPoolingHead(config)
    head.load_state_dict(state)
    return head


def _row(results: list[dict[str, list[float]]]) -> tuple[float, ...]:
    wall, cpu, memory, difference = (
        [value for result in results for value in result[name]] for name in ("wall", "cpu", "memory", "difference")
    )
    return min(wall), median(wall), min(cpu), median(cpu), max(memory), max(difference)


def _resident_mib() -> float:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=729)
    parser.add_argument("--width", type=int, default=1152)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--mlp-width", type=int, default=4304)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--kind", choices=list(_KINDS), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
