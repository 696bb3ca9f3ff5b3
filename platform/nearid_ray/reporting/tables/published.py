"""The numbers that arXiv 2604.01973 prints in its result tables, for standing beside ours.

SSR and PA are percent in the paper and here, and fractions in what `published` returns; all others are correlations or
counts as printed. A dash is a number that the paper does not give.
"""

from __future__ import annotations

import math
from functools import cache

SOURCE = "arXiv 2604.01973"

_PERCENT = ("ssr", "pa")
_SCORER_COLUMNS = "nearid_ssr nearid_pa mtg_mo mtg_mo_pair mtg_ssr mtg_pa dbpp_mh"

_TABLES: dict[str, tuple[str, str]] = {
    "table1": (
        _SCORER_COLUMNS,
        """
        qwen3-vl-30b    49.73 69.20 0.219 0.329 17.0 26.0 -
        clip-vit-l-14   10.31 20.92 0.239 0.484  0.0  0.0 0.493
        dinov2-vit-l-14 20.43 34.55 0.324 0.519  0.0  0.0 0.492
        vsm             32.13 46.70 0.394 0.445  7.0 24.5 0.190
        siglip2-so400m  30.74 48.81 0.180 0.366  0.0  0.0 0.516
        nearid          99.17 99.71 0.465 0.486 35.0 46.5 0.545
        """,
    ),
    "table2": (
        "h_h gpt_h gpt_h_pm dino_h dino_h_pm clip_h clip_h_pm siglip2_h siglip2_h_pm nearid_h nearid_h_pm",
        """
        textual_inversion_sd        .684 .625 .032 .611 .016 .610 .001 .660 .003 .675 .007
        dreambooth_sd               .731 .722 .011 .632 .010 .623 .015 .652 .012 .655 .023
        dreambooth_lora_sdxl        .651 .637 .004 .446 .013 .481 .007 .480 .006 .546 .006
        blip_diffusion              .630 .466 .019 .311 .024 .290 .004 .363 .016 .382 .002
        emu2                        .763 .777 .004 .774 .018 .744 .021 .766 .021 .768 .028
        ip_adapter_plus_vit_h_sdxl  .530 .424 .045 .212 .017 .262 .002 .253 .002 .306 .018
        ip_adapter_vit_g_sdxl       .485 .401 .021 .261 .004 .283 .031 .248 .019 .316 .041
        fisher_z_mean               .648 .597 .056 .492 .081 .493 .074 .516 .079 .545 .071
        """,
    ),
    "table3": (
        _SCORER_COLUMNS,
        """
        frozen                     30.74 48.81 0.180 0.366  0.0  0.0 0.516
        infonce                    60.97 75.26 0.267 0.418  8.0 12.0 0.555
        infonce-distractors        99.57 99.79 0.236 0.267 64.0 74.0 0.251
        infonce-oracle             86.34 92.25 0.299 0.444  7.0 11.0 0.167
        infonce-distractors-oracle 99.60 99.89 0.247 0.277 65.0 74.5 0.227
        siglip-rank                61.40 77.81 0.213 0.385  6.0  9.5 0.530
        circle-rank                99.97 99.99 0.264 0.303 67.0 76.5 0.141
        nearid                     99.17 99.71 0.465 0.486 35.0 46.5 0.545
        nearid-cohesion            99.31 99.78 0.459 0.485 36.0 47.0 0.541
        """,
    ),
    "table5": (
        "siglip2_ssr siglip2_pa qwen3vl30b_ssr qwen3vl30b_pa vsm_ssr vsm_pa nearid_ssr nearid_pa",
        """
        flux-fill-512    35.8 55.7 48.3 68.3 23.7 38.7 99.4 99.8
        flux-fill-1024   27.4 44.8 38.9 60.0 15.7 25.6 99.4 99.7
        qwen-image-512   33.8 51.4 48.1 67.7 27.9 42.2 99.2 99.7
        qwen-image-1328  16.2 32.1 43.3 64.7 26.7 39.3 98.2 99.5
        powerpaint-512   34.0 52.7 67.1 83.2 51.2 66.8 99.2 99.8
        sdxl-512         42.0 59.3 60.5 79.7 54.4 72.7 99.8 99.9
        sdxl-1024        26.0 45.6 41.9 60.7 25.3 41.5 99.0 99.6
        flux-canny-512   27.4 47.4 56.3 75.8 26.9 41.4 97.8 99.1
        flux-canny-1024  25.8 47.8 40.5 62.6 12.0 22.0 98.8 99.6
        """,
    ),
    "table6": (
        "nearid_ssr nearid_pa mtg_mo mtg_mo_pair mtg_ssr mtg_pa",
        """
        frozen         30.74 48.81 0.180 0.366  0.0  0.0
        nearid+mtg     99.17 99.71 0.465 0.486 35.0 46.5
        nearid-only    98.37 99.47 0.318 0.457  4.0  6.0
        mtg-only       58.34 75.64 0.349 0.395 49.0 62.0
        single-engine  86.86 93.77 0.326 0.456  3.0  5.5
        """,
    ),
    "table7": (
        "full_ssr full_pa full_mo fg_ssr fg_pa fg_mo",
        """
        clip-vit-l-14   10.3 20.9 0.239 51.3 71.6  0.297
        dinov2-vit-l-14 20.4 34.6 0.324 63.7 77.4  0.301
        siglip2-so400m  30.7 48.8 0.179 64.7 80.5  0.365
        vsm             32.1 46.7 0.394 32.0 46.7  0.394
        qwen3-vl-4b     13.4 32.9 0.012 24.4 44.3 -0.046
        qwen3-vl-8b     27.5 46.9 0.134 40.9 58.1  0.252
        qwen3-vl-30b    49.7 69.2 0.219 55.2 74.2  0.173
        nearid          99.2 99.7 0.465 95.3 98.0  0.641
        """,
    ),
    "table8": (
        _SCORER_COLUMNS,
        """
        0     99.57 99.85 0.306 0.336 63.0 73.0 0.229
        0.1   99.57 99.84 0.362 0.422 58.0 69.0 0.521
        0.25  99.20 99.73 0.466 0.518 49.0 62.0 0.555
        0.5   99.17 99.71 0.465 0.486 35.0 46.5 0.545
        1     98.80 99.61 0.542 0.583 35.0 49.5 0.571
        2     97.09 98.94 0.494 0.562 26.0 34.5 0.573
        """,
    ),
    "table9": (
        _SCORER_COLUMNS,
        """
        0    98.80 99.61 0.542 0.583 35.0 49.5 0.571
        0.1  98.94 99.67 0.442 0.478 30.0 40.0 0.555
        0.2  98.74 99.59 0.444 0.482 29.0 37.5 0.550
        0.3  98.94 99.68 0.430 0.468 29.0 36.5 0.553
        """,
    ),
    "table10": (
        "nearid_ssr nearid_pa mtg_mo mtg_mo_pair dbpp_mh delta_mh",
        """
        frozen                     30.74 48.81 0.180 0.366 0.516 -
        infonce                    60.97 75.26 0.267 0.418 0.555 0
        infonce-distractors        99.57 99.79 0.236 0.267 0.251 -0.304
        infonce-oracle             86.34 92.25 0.299 0.444 0.167 -0.388
        infonce-distractors-oracle 99.60 99.89 0.247 0.277 0.227 -0.328
        nearid                     99.17 99.71 0.465 0.486 0.545 -0.010
        """,
    ),
}

COLLAPSED = ("infonce-oracle", "circle-rank")
"""Rows of table 3 whose embeddings the paper calls collapsed: their numbers are printed, never as the best."""

ROLES = {
    "flux-fill-512": "train",
    "flux-fill-1024": "train",
    "qwen-image-512": "train",
    "qwen-image-1328": "train",
    "powerpaint-512": "unseen",
    "sdxl-512": "unseen",
    "sdxl-1024": "unseen",
    "flux-canny-512": "extra",
    "flux-canny-1024": "extra",
}
"""Table 5: what each engine configuration is to the paper's training."""


@cache
def published(table: str) -> dict[str, dict[str, float]]:
    """{row: {column: value}} of a table; rates as fractions, nan where the paper prints none.

    >>> published("table3")["nearid"]["nearid_ssr"], published("table8")["1"]["mtg_mo"]
    (0.9917, 0.542)

    Raises:
        KeyError: there is no such table.
    """
    columns, text = _TABLES[table]
    names = columns.split()
    rows = {}
    for line in text.strip().splitlines():
        key, *numbers = line.split()
        rows[key] = {name: _read(name, number) for name, number in zip(names, numbers, strict=True)}
    return rows


def published_value(table: str, row: str, column: str) -> float:
    """One number of `published`; nan where the paper's table has no such row or column."""
    return published(table).get(row, {}).get(column, math.nan) if table in _TABLES else math.nan


def _read(column: str, number: str) -> float:
    if number == "-":
        return math.nan
    # Rounded, because a printed 99.71 divided by 100 is not the float 0.9971.
    return round(float(number) / 100, 6) if column.rsplit("_", 1)[-1] in _PERCENT else float(number)
