#!/usr/bin/env python3
"""CPU time of every metric of a benchmark of the paper's size, from stored embeddings, on one core.

python tests/benchmarks/metrics.py
python tests/benchmarks/metrics.py --identities 50 --resamples 100 --width 64

First what the evaluate job does, from embeddings on disk to records, tables and measures: the nine engines, and
Mind-the-Glitch. Then what other jobs make of the same embeddings and records. Embeddings are random numbers with an
identity and a background in them: the figures printed here mean nothing, only the times do. Seconds are CPU seconds of
this process, so that other work on the machine does not count.
"""

import argparse
import cProfile
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_DEFAULT_NUM_THREADS"):
    os.environ[_name] = "1"  # before numpy starts its threads
_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "platform"), str(_ROOT)]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.compute as pc  # noqa: E402

from nearid_ray.data.plan import store_settings  # noqa: E402
from nearid_ray.data.store import Dataset, locate, parquet_bytes  # noqa: E402
from nearid_ray.evaluation import calibration, correlations, human, retrieval  # noqa: E402
from nearid_ray.evaluation.bootstrap import difference, intervals  # noqa: E402
from nearid_ray.evaluation.evaluate import EvaluateSettings, embeddings_of, evaluate  # noqa: E402
from nearid_ray.evaluation.groups import EXTRA, TRAIN, UNSEEN  # noqa: E402
from nearid_ray.evaluation.margins import summarize  # noqa: E402
from nearid_ray.evaluation.measures import read_measures  # noqa: E402
from schemas import EMBEDDINGS  # noqa: E402

ENGINES = (*TRAIN, *UNSEEN, *EXTRA)
SCORERS = {"frozen": 0.6, "nearid": 2.0}
"""Scorer -> weight of the identity in its embeddings."""

pa.set_cpu_count(1)


def main() -> None:
    """Time the evaluation of one scorer, then of two, and each other kind of metric; print the sums."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=500)
    parser.add_argument("--width", type=int, default=1152, help="numbers in an embedding")
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--profile", action="store_true", help="profile the evaluation of one scorer")
    options = parser.parse_args()
    for number in (1, len(SCORERS)):
        scorers = list(SCORERS)[-number:]
        with tempfile.TemporaryDirectory() as folder:
            times = one_run(Path(folder), scorers, options)
        print(f"{f'all, {number} scorer(s)':44}{sum(times.values()):8.2f}\n")


def one_run(folder: Path, scorers: list[str], options: argparse.Namespace) -> dict[str, float]:
    """Seconds of each kind of metric for these scorers."""
    embeddings = made_up_embeddings(options.identities, options.width, scorers, ENGINES)
    glitches = made_up_embeddings(options.identities, options.width, scorers, ("mtg",))
    stored = {"nine engines": store(folder / "a", embeddings), "Mind-the-Glitch": store(folder / "b", glitches)}
    print(
        f"{options.identities} identities, {len(ENGINES)} engines, {len(scorers)} scorer(s), {len(embeddings)} "
        f"embeddings of {options.width}, {options.resamples} resamples; CPU seconds"
    )
    times: dict[str, float] = {}
    drawing: dict[str, Any] = {"resamples": options.resamples, "seed": 0}
    settings = EvaluateSettings(conditions=("full",), resamples=options.resamples)
    for name, dataset in stored.items():
        output = locate(str(folder / name))
        with timed(f"evaluate, {name}", times), profiled(options.profile):
            evaluate([dataset], output, settings)
        print(f"  {len(read_measures(output))} measures in measures.csv")
    similarities, margins = (
        Dataset(str(folder / "nine engines" / name)).read() for name in ("similarities", "margins")
    )
    with timed("rates by category", times):
        summarize(margins, by=("scorer", "category"), **drawing)
    with timed("verification: AP, ROC-AUC, difference", times):
        verification(similarities, scorers, drawing)
    with timed("retrieval: mAP, ROC-AUC, nDCG, pooled", times):
        for scorer in scorers:
            retrieve(embeddings, scorer, drawing)
    with timed("calibration, thresholds, reliability", times):
        for scorer in scorers:
            calibrate(similarities, scorer, drawing)
    with timed("people: M-H, H-H, Spearman, Kendall", times):
        people(scorers, drawing)
    return times


def store(folder: Path, embeddings: pa.Table) -> Dataset:
    """The embeddings as the embed job leaves them."""
    dataset = Dataset(str(folder))
    dataset.shard("000-000000").write_bytes(parquet_bytes(embeddings))
    store_settings(dataset, EMBEDDINGS.name, {"made up": True})
    return dataset


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    """Print where the time goes."""
    if not wanted:
        yield
        return
    profile = cProfile.Profile()
    profile.enable()
    yield
    profile.disable()
    pstats.Stats(profile).sort_stats("cumulative").print_stats(45)


@contextmanager
def timed(name: str, times: dict[str, float]) -> Iterator[None]:
    """Note and print the CPU seconds of what is done inside."""
    began = time.process_time()
    yield
    times[name] = time.process_time() - began
    print(f"{name:44}{times[name]:8.2f}", flush=True)


def made_up_embeddings(identities: int, width: int, scorers: list[str], engines: tuple[str, ...]) -> pa.Table:
    """Embeddings of views (a third of the identities has three, the others two) and their distractors.

    Those of the engine mtg have an oracle, and two views an identity.
    """
    random = np.random.default_rng(0)
    own_ID = random.normal(size=(identities, width)).astype(np.float32)
    rows, vectors = [], []
    for identity in range(identities):
        for view in range(2 + (identity % 3 == 0 and engines != ("mtg",))):
            background_D = random.normal(size=width).astype(np.float32)
            for engine in ("", *engines):
                rows.append((f"toy:{identity:04d}", view, engine))
                other_D = own_ID[identity] if not engine else random.normal(size=width).astype(np.float32)
                vectors.append(np.stack([SCORERS[name] * other_D + background_D for name in scorers]))
    vectors_NSD = np.array(vectors)
    parts = []
    for number, scorer in enumerate(scorers):
        identity_N, view_N, engine_N = zip(*rows, strict=True)
        flat = np.ascontiguousarray(vectors_NSD[:, number]).reshape(-1)
        offsets = np.arange(len(rows) + 1, dtype=np.int32) * width
        columns = {
            "image_id": ["-".join(map(str, row)) for row in rows],
            "role": ["distractor" if engine else "view" for engine in engine_N],
            "identity_id": list(identity_N),
            "view_index": pa.array(view_N, pa.int32()),
            "engine": list(engine_N),
            "category": [f"category {int(name[4:]) % 12}" for name in identity_N],
            "split": ["test"] * len(rows),
            "oracle": pa.array([random.random() if engine == "mtg" else None for engine in engine_N], pa.float64()),
            "scorer": [scorer] * len(rows),
            "condition": ["full"] * len(rows),
            "embedding": pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)),
            "error": [""] * len(rows),
        }
        parts.append(pa.table([columns[name] for name in EMBEDDINGS.schema.names], schema=EMBEDDINGS.schema))
    return pa.concat_tables(parts)


def labelled(similarities: pa.Table, scorer: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarity, whether the pair shows one identity, and the first one's identity, of all pairs of a scorer."""
    mine = similarities.filter(pc.field("scorer") == scorer)
    columns = [mine[name].to_numpy(zero_copy_only=False) for name in ("similarity", "kind", "identity_id")]
    return columns[0], columns[1] == "positive", columns[2].astype(str)


def verification(similarities: pa.Table, scorers: list[str], drawing: dict[str, Any]) -> None:
    """Same pairs against distractors and random views, with the difference of the scorers."""
    found = [retrieval.verification_statistics(*labelled(similarities, scorer)) for scorer in scorers]
    for statistics in found:
        intervals(statistics, **drawing)
    for other in found[1:]:
        for name in other:
            difference(found[0][name], other[name], **drawing)


def retrieve(embeddings: pa.Table, scorer: str, drawing: dict[str, Any]) -> None:
    """Each view looks for the other views of its identity among all views."""
    images, matrix_ND = embeddings_of(embeddings, scorer)
    views = images["role"].to_numpy(zero_copy_only=False) == "view"
    identity = images["identity_id"].to_numpy(zero_copy_only=False)[views].astype(str)
    view_ND = matrix_ND[views] / np.linalg.norm(matrix_ND[views], axis=1, keepdims=True)
    others = ~np.eye(len(identity), dtype=bool)
    same = identity[:, None] == identity[None, :]
    intervals(retrieval.retrieval_statistics(view_ND @ view_ND.T, same, identity, others), **drawing)


def calibrate(similarities: pa.Table, scorer: str, drawing: dict[str, Any]) -> None:
    """Fit both kinds, choose thresholds, and measure both with intervals."""
    similarity, same, identity = labelled(similarities, scorer)
    for kind in ("isotonic", "logistic"):
        probability = calibration.fit_calibration(similarity, same, kind=kind).probability(similarity)
        calibration.reliability(probability, same)
        intervals(calibration.reliability_statistics(probability, same, identity), **drawing)
    for wished in (0.1, 0.01, 0.001):
        threshold = calibration.threshold_at(similarity, same, wished).threshold
        intervals(calibration.accept_statistics(similarity, same, threshold, identity), **drawing)


def people(scorers: list[str], drawing: dict[str, Any]) -> None:
    """DreamBench++'s size: 7 methods, 150 references with 9 prompts; correlations of all pairs pooled."""
    random = np.random.default_rng(2)
    keys = [f"{collection}-{prompt}" for collection in range(150) for prompt in range(9)]
    methods = [f"method {n}" for n in range(7)]
    one, two = ({m: dict(zip(keys, random.integers(0, 5, 1350), strict=True)) for m in methods} for _ in range(2))
    scores = [{m: dict(zip(keys, random.random(1350), strict=True)) for m in methods} for _ in scorers]
    categories = {str(n): ("animal", "human", "object", "style")[n % 4] for n in range(150)}
    for metric in scores:
        human.by_method(metric, one, two, categories=categories, **drawing)
    first, *others = (human.methods_statistic(metric, one, two) for metric in scores)
    for other in others:
        difference(first, other, **drawing)
    intervals({m: human.between_groups(one[m], two[m]) for m in methods}, **drawing)
    rating, references = random.integers(0, 9, 7 * 1350) / 2, np.tile([key.split("-")[0] for key in keys], 7)
    for _ in scorers:
        score = rating + random.normal(size=len(rating))
        for build in (correlations.spearman_statistic, correlations.kendall_statistic):
            intervals({"r": build(score, rating, references)}, **drawing)


if __name__ == "__main__":
    main()
