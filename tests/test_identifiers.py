"""Identifiers are functions of content alone, and stay what they are from version to version."""

import pytest

from nearid_ray.identifiers import content_hash, seed_of, settings_digest, stable_hash


def test_known_values_never_change():
    # Datasets on disk carry these names: a change here orphans every one of them.
    assert content_hash(b"nearid") == "7cfb2513fbe56a24663db91cfe496fb5"
    assert stable_hash("a", "b", 3) == "bc33dab2a9b14883"
    assert seed_of("toybox", 0, "train", 1) == 8276695279863186116
    assert settings_digest({"a": 1, "b": [1.5, None]}) == "4a7f92747b8d5119"


def test_parts_are_kept_apart():
    assert stable_hash("ab", "c") != stable_hash("a", "bc")
    assert seed_of("ab", "c") != seed_of("a", "bc")
    with pytest.raises(ValueError, match="0x1f"):
        stable_hash("a\x1fb")


def test_seeds_fit_a_signed_64_bit_column_and_spread():
    seeds = [seed_of("x", i) for i in range(2000)]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert 0.4 < sum(seed > 2**62 for seed in seeds) / 2000 < 0.6


def test_settings_digest_ignores_order_and_refuses_nan():
    assert settings_digest({"a": 1, "b": 2}) == settings_digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        settings_digest({"a": float("nan")})
