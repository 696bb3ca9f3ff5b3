"""Mind-the-Glitch's measures against loops and scipy."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy import stats

from nearid_ray.errors import UsageError
from nearid_ray.evaluation import oracle
from nearid_ray.evaluation.bootstrap import difference, resample_weights


def samples(seed: int = 0, number: int = 40) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    table = pd.DataFrame(
        {name: random.integers(0, 20, number) / 20 for name in (*oracle.SIMILARITIES, *oracle.ORACLES)}
    )
    table.loc[3, "s_12"], table.loc[5, "s_22p"], table.loc[6, "oracle_2"] = np.nan, np.inf, np.nan
    return table


def looped(rows):
    solved = units = won = trials = 0
    for row in rows.to_dict("records"):
        margins = [row["s_12"] - row[name] for name in ("s_11p", "s_22p")]
        margins = [margin for margin in margins if math.isfinite(margin)]
        units += bool(margins)
        solved += bool(margins) and all(margin > 0 for margin in margins)
        won += sum(margin > 0 for margin in margins)
        trials += len(margins)
    rs = []
    for similarity, side in (("s_11p", 1), ("s_22p", 2), ("s_12p", 2), ("s_21p", 1)):
        both = rows[[similarity, f"oracle_{side}"]].to_numpy()
        both = both[np.isfinite(both).all(axis=1)]
        rs.append(stats.pearsonr(*both.T).statistic)
    m_o, pair = (math.tanh(np.mean(np.arctanh(some))) for some in (rs, rs[:2]))
    return {"m_o": m_o, "m_o_pair": pair, "ssr": solved / units, "pa": won / trials}


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_equal_loops_with_ties_and_gaps(seed):
    table = samples(seed)
    found = oracle.summarize(table)
    for name, value in looped(table).items():
        assert found[name] == pytest.approx(value, abs=1e-12)
    assert found["num_samples"] == 40
    assert found["coverage"] == pytest.approx(77 / 80)
    assert found["oracle_coverage"] == pytest.approx(157 / 160)
    assert oracle.summarize(pa.Table.from_pandas(table)) == found


def test_intervals_equal_a_bootstrap_that_copies_samples():
    table = samples(2)
    found = oracle.summarize(table, resamples=30, seed=4)
    # A sample without a valid margin is not drawn for the rates.
    for names, measured in (("m_o", "m_o_pair"), table), (("ssr", "pa"), table.drop(index=3)):
        slow = []
        for weights in np.concatenate(list(resample_weights(len(measured), 30, seed=4))):
            slow.append(looped(measured.iloc[np.repeat(np.arange(len(measured)), weights.astype(int))]))
        for name in names:
            low, high = np.quantile([values[name] for values in slow], [0.025, 0.975])
            assert (found[f"{name}_low"], found[f"{name}_high"]) == pytest.approx((low, high), abs=1e-12)


def test_constant_scores_have_no_correlation_and_win_nothing():
    table = samples(3).assign(**dict.fromkeys(oracle.SIMILARITIES, 0.5))
    found = oracle.summarize(table, resamples=10)
    assert (found["m_o"], found["m_o_pair"], found["ssr"], found["pa"]) == (0, 0, 0, 0)
    assert (found["m_o_low"], found["m_o_high"]) == (0, 0)


def test_an_oracle_that_is_missing_altogether_is_not_averaged_away():
    found = oracle.summarize(samples(4).assign(oracle_2=np.nan))
    assert math.isnan(found["m_o"]) and math.isnan(found["m_o_pair"]) and math.isfinite(found["ssr"])
    assert found["oracle_coverage"] < 0.51
    empty = oracle.summarize(samples().iloc[:0], resamples=5)
    assert empty["num_samples"] == 0 and math.isnan(empty["m_o"]) and math.isnan(empty["ssr_low"])


def test_mixed_or_incomplete_scores_are_refused():
    table = samples().assign(identity_id=[str(n) for n in range(40)])
    assert oracle.summarize(table) == pytest.approx(oracle.summarize(samples()))
    with pytest.raises(UsageError, match="40 of 80 scores stand twice"):
        oracle.summarize(pd.concat([table, table]))
    with pytest.raises(UsageError, match="2 values of scorer"):
        oracle.summarize(samples().assign(scorer=["a", "b"] * 20))
    with pytest.raises(UsageError, match="no column oracle_2"):
        oracle.summarize(samples().drop(columns="oracle_2"))


def test_two_scorers_are_compared_on_the_same_samples():
    worse, better = samples(5), samples(5)
    better["s_11p"], better["s_22p"] = better["oracle_1"], better["oracle_2"]
    found = difference(oracle.statistics(worse)["m_o_pair"], oracle.statistics(better)["m_o_pair"], resamples=50)
    assert found.share_above_zero == 1.0 and found.low > 0
