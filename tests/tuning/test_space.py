"""What may be written as the space of a sweep, and which trials come of it."""

from dataclasses import replace

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.training.losses import OBJECTIVE_NAMES
from nearid_ray.training.settings import TrainSettings
from nearid_ray.tuning.plan import passes, planned_trials, trial_name
from nearid_ray.tuning.presets import SWEEPS, TUNE, sweep_points
from nearid_ray.tuning.space import Choice, Range, check_space, described, drawn, grid, parse_space

BASE = TrainSettings()


def test_values_have_the_type_of_their_setting() -> None:
    entries = ("alpha=0,0.1,1e-2", "objective=choice:nearid,circle-rank", "warmup_steps=10,20", "engines=a+b,a")
    found = {dimension.name: dimension.values for dimension in parse_space(entries) if isinstance(dimension, Choice)}
    assert found["alpha"] == (0.0, 0.1, 0.01) and all(type(value) is float for value in found["alpha"])
    assert found["objective"] == ("nearid", "circle-rank")
    assert found["warmup_steps"] == (10, 20) and found["engines"] == (("a", "b"), ("a",))


def test_ranges_know_whether_they_are_whole_and_how_they_are_drawn() -> None:
    found = parse_space(("learning-rate=log:1e-5..1e-3", "weight_decay=0..0.1", "warmup_steps=uniform:10..100"))
    assert found == [
        Range(name="learning_rate", low=1e-5, high=1e-3, log=True),
        Range(name="weight_decay", low=0.0, high=0.1),
        Range(name="warmup_steps", low=10, high=100, whole=True),
    ]
    assert [parse_space((described(dimension),))[0] for dimension in found] == found


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("learning_rat=1", "no such setting; did you mean learning_rate"),
        ("zzz=1", "settings are adam_beta1"),
        ("alpha", "'alpha' is not NAME=VALUES"),
        ("alpha=", "has no values, so there would be no trials"),
        ("alpha=,", "has no values"),
        ("alpha=0.1,0.10", "alpha holds 0.1 twice"),
        ("alpha=a,b", "expected float, found str 'a'"),
        ("warmup_steps=1.5", "expected int, found float 1.5"),
        ("objective=neraid", "'neraid' is not one of 'nearid'"),
        ("objective=uniform:0..1", "no numbers, so they form no range; list them: objective=nearid,nearid-cohesion"),
        ("alpha=log:0..1", "begins above 0"),
        ("alpha=log:1..0.1", "the range 1..0.1 is empty"),
        ("alpha=uniform:1", "is not LOW..HIGH"),
        ("alpha=normal:0..1", "'normal' is none of choice, log, uniform"),
    ],
)
def test_what_is_wrong_with_a_dimension_is_said(entry: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        parse_space((entry,))


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="names alpha twice"):
        parse_space(("alpha=0,1", "alpha=2"))


@pytest.mark.parametrize("entry", ["alpha=-1,0", "learning_rate=0,1e-3", "clip=uniform:-1..1", "adam_beta1=0.9,1"])
def test_values_out_of_range_are_refused_naming_the_setting_and_what_is_allowed(entry: str) -> None:
    with pytest.raises(UsageError, match=f"space {entry.partition('=')[0]}: .*expected"):
        check_space(parse_space((entry,)), BASE)


def test_an_option_the_objective_lacks_is_refused_unless_the_objective_varies() -> None:
    gamma = parse_space(("gamma=32,64",))
    with pytest.raises(UsageError, match="nearid has no option gamma"):
        check_space(gamma, BASE)
    check_space([*gamma, *parse_space(("objective=circle-rank",))], BASE)


def test_a_grid_has_every_combination_once_and_no_ranges() -> None:
    points = grid(parse_space(("alpha=0,1", "beta=0,0.1,0.2")))
    assert len(points) == 6 and points[1] == {"alpha": 0.0, "beta": 0.1}
    with pytest.raises(UsageError, match="alpha is a range"):
        grid(parse_space(("alpha=0..1",)))


def test_drawn_points_are_the_same_again_lie_in_the_space_and_differ() -> None:
    dimensions = parse_space(("learning_rate=log:1e-5..1e-3", "warmup_steps=5..7", "objective=nearid,siglip-rank"))
    points = drawn(dimensions, 20, seed=3)
    assert points == drawn(dimensions, 20, seed=3) != drawn(dimensions, 20, seed=4)
    assert len({repr(point) for point in points}) == 20
    assert all(1e-5 <= point["learning_rate"] <= 1e-3 for point in points)
    assert {point["warmup_steps"] for point in points} == {5, 6, 7}
    assert sum(point["learning_rate"] < 1e-4 for point in points) > 5
    assert len(drawn(parse_space(("alpha=0,1",)), 10, seed=0)) == 2


def test_points_that_mean_the_same_settings_are_one_trial() -> None:
    trials = planned_trials(BASE, [{"alpha": 0.5}, {}, {"beta": 0.0}, {"alpha": 1.0}], ["a", "b", "c", "d"])
    assert [trial.name for trial in trials] == ["a", "d"]


def test_trials_whose_settings_do_not_go_together_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"trial objective-infonce_alpha-0\.5: objective infonce has no option alpha"):
        planned_trials(BASE, [{"objective": "infonce", "alpha": 0.5}])
    with pytest.raises(UsageError, match=r"would be called learning_rate-0\.0001;"):
        planned_trials(BASE, [{"learning_rate": 1e-4}, {"learning_rate": 1.00001e-4}])


def test_names_of_trials_fit_a_folder() -> None:
    assert trial_name({"engines": ("a b/c", "d")}) == "engines-a-b-c+d"
    long = [trial_name({"engines": tuple(f"engine-{n}" for n in range(30)), "alpha": alpha}) for alpha in (0.0, 1.0)]
    assert len(long[0]) <= 100 and long[0] != long[1]


def test_trials_that_read_the_same_share_a_pass_up_to_the_most() -> None:
    points = [{"alpha": alpha, "global_batch": batch} for alpha in (0.0, 1.0, 2.0) for batch in (64, 128)]
    trials = planned_trials(BASE, points)
    fused = passes(trials, fuse=True)
    assert [list(one.runs) for one in fused] == [
        [f"alpha-{alpha}_global_batch-{batch}" for alpha in (0, 1, 2)] for batch in (64, 128)
    ]
    assert [len(one.runs) for one in passes(trials, fuse=True, most=2)] == [2, 1, 2, 1]
    assert [len(one.runs) for one in passes(trials, fuse=False)] == [1] * 6
    assert len({one.name for one in passes(trials, fuse=True, most=2)}) == 4


def test_presets_are_the_tables_of_the_paper() -> None:
    assert [point["alpha"] for point in sweep_points("table8").values()] == [0, 0.1, 0.25, 0.5, 1, 2]
    both = planned_trials(BASE, list(sweep_points("table8+table9").values()))
    assert len(both) == 9 and len(passes(both, fuse=True)) == 1
    assert list(sweep_points("table3")) == list(OBJECTIVE_NAMES)
    data = planned_trials(BASE, list(sweep_points("table6").values()), list(sweep_points("table6")))
    assert [trial.name for trial in data] == ["nearid+mtg", "nearid-only", "mtg-only", "single-engine"]
    assert len(passes(data, fuse=True)) == 4 and data[2].settings.repeats == ("mtg=8",)
    for name in SWEEPS:
        points = sweep_points(name)
        assert planned_trials(replace(BASE, epochs=2), list(points.values()), list(points))
    assert all(preset().get("preset", "table8").split("+")[0] in SWEEPS for preset in TUNE.values())
    with pytest.raises(UsageError, match="'table7' is none of"):
        sweep_points("table8+table7")
