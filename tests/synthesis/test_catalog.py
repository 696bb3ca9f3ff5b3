"""Engines by name, options in words, and what is refused before any work."""

import pytest

from nearid_ray.errors import UsageError
from nearid_ray.synthesis.catalog import Recipe, choose, list_engines, make_engines, needs_dtype

PAPER = {
    "flux-fill-512": "train", "flux-fill-1024": "train", "qwen-image-512": "train", "qwen-image-1328": "train",
    "sdxl-512": "unseen", "sdxl-1024": "unseen", "powerpaint-512": "unseen",
    "flux-canny-512": "extra", "flux-canny-1024": "extra",
}  # fmt: skip


def test_the_papers_nine_configurations_are_there_with_their_groups_licence_and_card():
    engines = {engine.name: engine for engine in make_engines(list(PAPER))}
    assert {name: engine.group for name, engine in engines.items()} == PAPER
    listed = list_engines()
    for name, engine in engines.items():
        line = next(line for line in listed.splitlines() if line.startswith(f"{name} "))
        assert engine.licence and engine.licence in line
        assert line.endswith(engine.model_card) and engine.model_card.startswith("https://")
        assert engine.uses_model


def test_names_families_and_groups_stand_for_their_engines_in_order():
    names = [engine.name for engine in make_engines(["toybox:unseen", "exemplar", "toybox-redecorate"])]
    assert names == ["toybox-restyle", "toybox-redecorate", "exemplar"]
    assert [engine.name for engine in make_engines(["sdxl"])] == ["sdxl-512", "sdxl-1024"]


def test_options_change_one_engine_and_its_hash_alone():
    before, other = make_engines(["sdxl-512", "sdxl-1024"])
    after, same = make_engines(
        ["sdxl-512", "sdxl-1024"],
        ["sdxl-512.steps=20", "sdxl-512.guidance=5", "sdxl-512.weights=/models/a=b", "sdxl-512.prompt_template=7"],
    )
    assert same.settings == other.settings
    changed = {name for name in before.settings if before.settings[name] != after.settings[name]}
    assert changed == {"steps", "guidance", "weights", "prompt_template"}
    assert (after.settings["steps"], after.settings["guidance"]) == (20, 5.0)
    assert (after.settings["weights"], after.settings["prompt_template"]) == ("/models/a=b", "7")


def test_the_batch_is_an_option_of_every_engine_and_changes_no_pixels():
    chosen = choose(["exemplar", "sdxl-512"], ["exemplar.batch=3", "sdxl-512.batch=2"])
    assert chosen.batches == {"exemplar": 3, "sdxl-512": 2}
    plain = choose(["exemplar", "sdxl-512"]).unchecked()
    assert [engine.settings for _, engine in chosen.unchecked()] == [engine.settings for _, engine in plain]


def test_a_recipe_makes_the_same_engine_again_from_its_text():
    options = ["sdxl-512.steps=20", "sdxl-512.dtype=float16"]
    chosen = choose(["sdxl-512", "exemplar"], options, dtype="bfloat16", control=True)
    for recipe, engine in chosen.unchecked():
        again = Recipe.from_text(recipe.to_text()).make()
        assert (again.name, again.group, again.settings) == (engine.name, engine.group, engine.settings)
    assert [recipe.name for recipe in chosen.recipes] == [
        "sdxl-512", "sdxl-512-control", "exemplar", "exemplar-control",
    ]  # fmt: skip
    assert chosen.unchecked()[0][1].settings["dtype"] == "float16"


def test_the_dtype_asked_for_reaches_engines_with_a_model_alone():
    assert choose(["sdxl-512"], dtype="bfloat16").unchecked()[0][1].settings["dtype"] == "bfloat16"
    assert needs_dtype(["exemplar", "sdxl"]) and not needs_dtype(["exemplar", "toybox"])


@pytest.mark.parametrize(
    ("names", "options", "said"),
    [
        (["sdxl-2048"], [], "unknown engine 'sdxl-2048'; known engines: exemplar, .*sdxl-512"),
        (["toybox:deep"], [], "FAMILY:GROUP"),
        (["exemplar"], ["sdxl-512.steps=3"], r"sdxl-512 is not among the engines of this run \(exemplar\)"),
        (["sdxl-512"], ["sdxl-512.step=3"], "sdxl-512 has no 'step'; it has weights, .*steps"),
        (["sdxl-512"], ["sdxl-512.steps=many"], "expected int, found str 'many'"),
        (["sdxl-512"], ["sdxl-512.steps=0"], "sdxl-512: steps is 0; expected at least 1"),
        (["sdxl-512"], ["sdxl-512.dtype=int8"], "'int8' is not one of 'float32', 'bfloat16', 'float16'"),
        (["sdxl-512"], ["sdxl-512.compile=perhaps"], "expected bool"),
        (["sdxl-512"], ["sdxl-512.name=x"], "sdxl-512 has no 'name'"),
        (["sdxl-512"], ["sdxl-512.attention=flash"], "attention is set, which sdxl does not support"),
        (["sdxl-512"], ["sdxl-512.resolution_px=500"], "500 px; the model needs a multiple of 8"),
        (["sdxl-512"], ["sdxl-512.prompt_template=a {colour} thing"], "prompt_template"),
        (["sdxl-512"], ["sdxl-512.options.x=1"], "options of sdxl-512 has no x"),
        (["sdxl-512"], ["sdxl-512"], "expected NAME.field=value"),
        (["exemplar"], ["exemplar.batch=0"], "expected a number of rows, at least 1"),
        (["exemplar"], ["exemplar.tint=2"], "exemplar: tint is 2.0; expected 0 to 1"),
        (["toybox-redraw"], ["toybox-redraw.kind=trim"], "toybox-redraw has no 'kind'; it has batch"),
    ],
)
def test_what_is_unknown_or_wrong_is_refused_with_what_is_known(names, options, said):
    with pytest.raises(UsageError, match=said):
        choose(names, options).unchecked()


def test_weights_that_are_not_there_are_refused_before_any_work(tmp_path):
    def refused(weights) -> str:
        with pytest.raises(UsageError) as caught:
            choose(["sdxl-512"], [f"sdxl-512.weights={weights}"]).checked()
        return str(caught.value)

    assert "there is no such folder" in refused(tmp_path / "none")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "model_index.json" in refused(tmp_path / "empty")
