#!/usr/bin/env python3
r"""A training step on cached tokens beside a plain version of the released implementation's step, in one run.

python tests/benchmarks/training.py                   # 16 samples (96 slots) of 729 x 1152 tokens, one thread
python tests/benchmarks/training.py --samples 128     # the paper's 768 slots; the plain step then needs about 25 GB

The plain step is what the released code does once tokens are there: transformers' attention-pooling head on all slots
of all samples, blank pictures in empty slots included (two of three identities have two views), its loss, backward,
clipping, AdamW. Ours reads the filled slots from a token cache on disk (in the page cache), for the same samples, with
the loss in exact mode. Weights and tokens are random; both compute in float32. Then both train for 50 steps on smaller
tokens in reference mode, and their losses are compared.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMultiheadAttentionPoolingHead

from nearid_ray.data.store import locate
from nearid_ray.embedding.cache import BACKBONE_FILE, BLANK_FILE, HEAD_FILE, TOKENS_FOLDER, TokenCache
from nearid_ray.embedding.shards import tokens_bytes
from nearid_ray.models.head import AttentionPoolingHead
from nearid_ray.training.loop import HeadTraining
from nearid_ray.training.settings import TrainSettings
from schemas import TOKENS_INDEX

ALPHA, TEMPERATURE, POSITIVES, DISTRACTORS = 0.5, 0.07, 2, 3


@dataclass(frozen=True)
class Size:
    """Shape of the tokens, and of the head."""

    tokens: int
    width: int
    heads: int
    mlp_width: int


SO400M = Size(tokens=729, width=1152, heads=16, mlp_width=4304)
SMALL = Size(tokens=49, width=128, heads=4, mlp_width=256)


def write_cache(folder: str, identities: int, size: Size) -> TokenCache:
    """A cache on disk with two views for two of three identities and three for the others, one engine, one draw."""
    rows: list[dict[str, Any]] = []
    for i in range(identities):
        for view in range(2 if i % 3 else 3):
            for engine in ("", "engine"):
                known = {"identity_id": f"random:{i:05}", "view_index": view, "engine": engine, "draw": 1}
                said = {"role": "distractor" if engine else "view", "split": "train", "shard": "0", "error": ""}
                name = f"{i}-{view}-{engine}"
                rows.append(
                    known
                    | said
                    | {"item_id": name, "image_id": name, "category": "", "masked": False, "row": len(rows)}
                )
    generator = np.random.default_rng(0)
    tokens_NTD = generator.standard_normal((len(rows), size.tokens, size.width), np.float32).astype(np.float16)
    place, backbone = locate(folder), {"spec": "random", "fingerprint": "random", "layer_norm_eps": 1e-6}
    place.child("settings.json").write_bytes(
        json.dumps({"table": "tokens_index", "content": {}, "content_digest": ""}).encode()
    )
    place.child(BACKBONE_FILE).write_bytes(
        json.dumps(backbone | {"tokens": size.tokens, "width": size.width, "heads": size.heads}).encode()
    )
    head = AttentionPoolingHead.initialised(size.width, size.heads, size.mlp_width)
    place.child(HEAD_FILE).write_bytes(safetensors.torch.save(head.state_dict()))
    place.child(BLANK_FILE).write_bytes(
        tokens_bytes(generator.standard_normal((1, size.tokens, size.width)).astype(np.float16))
    )
    place.child(TOKENS_FOLDER, "0.arrow").write_bytes(tokens_bytes(tokens_NTD))
    Path(folder, "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=TOKENS_INDEX.schema), f"{folder}/data/0.parquet")
    return TokenCache.open(folder)


class PlainTraining:
    """The released implementation's step, given the tokens of all slots."""

    def __init__(self, cache: TokenCache, size: Size, settings: TrainSettings) -> None:
        config = SiglipVisionConfig(
            hidden_size=size.width, num_attention_heads=size.heads, intermediate_size=size.mlp_width
        )
        self.head = SiglipMultiheadAttentionPoolingHead(config)
        self.head.load_state_dict(cache.head_state())
        self.optimizer = torch.optim.AdamW(self.head.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
        self.cache, self.settings = cache, settings

    def step(self, rows_BS: np.ndarray, learning_rate: float) -> float:
        """One step on the given index rows, -1 where a slot is empty; the loss."""
        samples, slots = rows_BS.shape
        tokens_NTD = np.broadcast_to(
            self.cache.blank_TD(), (samples * slots, self.cache.tokens, self.cache.width)
        ).copy()
        filled = np.flatnonzero(rows_BS.ravel() >= 0)
        self.cache.gather(rows_BS.ravel()[filled], tokens_NTD, filled)
        embedding_ND = self.head(torch.from_numpy(tokens_NTD).float())
        embedding_BSD = functional.normalize(embedding_ND, dim=-1, eps=1e-7).view(samples, slots, -1)
        loss = reference_loss(embedding_BSD, torch.from_numpy(rows_BS >= 0))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.head.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.item()


def reference_loss(embedding_BSD: Tensor, valid_BS: Tensor) -> Tensor:
    """The released loss on one worker, term by term (facts of the paper's code): masks only on the averaged rows."""
    first = 1 + POSITIVES
    anchor_BD, positive_BPD, distractor_BKD = embedding_BSD[:, 0], embedding_BSD[:, 1:first], embedding_BSD[:, first:]
    samples = len(anchor_BD)
    pool_BM = anchor_BD @ positive_BPD.flatten(0, 1).t() / TEMPERATURE
    own_BM = torch.arange(samples * POSITIVES) // POSITIVES == torch.arange(samples)[:, None]
    distractor_BK = torch.einsum("bd,bkd->bk", anchor_BD, distractor_BKD) / TEMPERATURE
    denominator_B = torch.logsumexp(torch.cat([pool_BM, distractor_BK], dim=1), dim=1)
    terms = []
    for p in range(POSITIVES):
        row_B = denominator_B - pool_BM[torch.arange(samples), torch.arange(samples) * POSITIVES + p]
        if valid_BS[:, 1 + p].any():
            terms.append(row_B[valid_BS[:, 1 + p]].mean())
    negatives_B = torch.logsumexp(pool_BM.masked_fill(own_BM, torch.finfo(pool_BM.dtype).min), dim=1)
    rank_BK = functional.softplus(negatives_B[:, None] - distractor_BK)
    return torch.stack(terms).mean() + ALPHA * rank_BK[valid_BS[:, first:]].mean()


def settings_of(samples: int, **changes: Any) -> TrainSettings:
    values = {"global_batch": samples, "max_steps": 1000, "warmup_steps": 5, "evaluate_every": 0, "checkpoint_every": 0}
    return TrainSettings(**{**values, "alpha": ALPHA, **changes})


def trained(cache: TokenCache, settings: TrainSettings) -> HeadTraining:
    head = AttentionPoolingHead.from_state_dict(cache.head_state(), cache.backbone["heads"])
    return HeadTraining({"ours": head}, cache, {"ours": settings})


def rows_of(training: HeadTraining, step: int) -> np.ndarray:
    """Index rows (B, S) of a step's slots."""
    epoch, place = divmod(step, training.batches_per_epoch)
    samples = training.selection.epoch(epoch, training.settings.global_batch)[place]
    return training.selection.choose(samples, epoch).rows_BS()


def seconds_of(act: Callable[[], object]) -> tuple[float, float]:
    """(seconds on the clock, seconds of processors)."""
    began, used = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - began, time.process_time() - used


def compare_speed(samples: int, repeats: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(folder, samples, SO400M)
        settings = settings_of(samples)
        ours, plain = trained(cache, settings), PlainTraining(cache, SO400M, settings)
        steps, times = ours.run(), {"ours": [], "plain": []}
        next(steps)  # the first step of each also makes the optimiser
        plain.step(rows_of(ours, 0), 1e-4)
        for step in range(1, 1 + repeats):
            rows_BS = rows_of(ours, step)
            times["plain"].append(seconds_of(lambda rows_BS=rows_BS: plain.step(rows_BS, 1e-4)))
            times["ours"].append(seconds_of(lambda: next(steps)))
        steps.close()
    filled = (rows_BS >= 0).mean()
    clock = {name: statistics.median(clock_s for clock_s, _ in both) for name, both in times.items()}
    used = {name: statistics.median(used_s for _, used_s in both) for name, both in times.items()}
    return [
        f"{samples} samples = {6 * samples} slots ({filled:.0%} filled) of {SO400M.tokens} x {SO400M.width} tokens,"
        f" {torch.get_num_threads()} thread(s), float32, medians of {repeats}, taken in turn",
        "                          clock   processor (fairer where others use the machine)",
        f"  plain reference step   {clock['plain']:6.3f} s    {used['plain']:6.3f} s",
        f"  our step               {clock['ours']:6.3f} s    {used['ours']:6.3f} s",
        f"  times as fast          {clock['plain'] / clock['ours']:6.1f}      {used['plain'] / used['ours']:6.1f}",
    ]


def compare_losses(steps: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(folder, 60, SMALL)
        settings = settings_of(16, mode="reference", max_steps=steps, learning_rate=1e-3)
        ours, plain = trained(cache, settings), PlainTraining(cache, SMALL, settings)
        differences, first, last = [], 0.0, 0.0
        for step, rows in enumerate(ours.run()):
            row = rows["ours"]
            assert row.loss is not None and row.learning_rate is not None
            there = plain.step(rows_of(ours, step), row.learning_rate)
            differences.append(abs(row.loss - there))
            first, last = (first or row.loss), row.loss
    return [
        f"reference mode, {steps} steps of 16 samples, {SMALL.tokens} x {SMALL.width} tokens: loss {first:.4f} to"
        f" {last:.4f}, largest difference to the plain one {max(differences):.1e}"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16, help="samples of a step; the paper has 128")
    parser.add_argument("--repeats", type=int, default=5, help="timed steps")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("\n".join(compare_losses(50) + compare_speed(arguments.samples, arguments.repeats)))


if __name__ == "__main__":
    main()
