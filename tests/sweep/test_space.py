from collections import Counter
from dataclasses import replace

import optuna
import pytest

from mgc.config import PRESETS, AugmentConfig, TrainConfig, overlay
from mgc.core.errors import InputError
from mgc.sweep.space import Space, default, nested

BASE = TrainConfig()
EVERYTHING = """
model.norm: [false, true]
model.channels: [[8, 16], [16, 32, 64]]
model.dropout: {uniform: [0, 0.5]}
optim.lr: {log_uniform: [2e-4, 5.0e-3]}
optim.batch_size: {log_uniform: [8, 64]}
augment.time_masks: {choice: [0, 1, 2]}
augment.time_mask_frames: {uniform: [10, 60], when: {augment.time_masks: [1, 2], model.norm: true}}
"""


def space_of(text, base=BASE, *, folder):
    file = folder / "space.yaml"
    file.write_text(text)
    return Space.read(file, base)


def draws(space, count=200):
    """What a random search draws, by the fields' names."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        trial = study.ask()
        space.suggest(trial)
        study.tell(trial, 0.0)
    return [trial.params for trial in study.trials]


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_what_is_drawn_is_what_the_file_says(tmp_path):
    drawn = draws(space_of(EVERYTHING, folder=tmp_path))
    assert {params["model.norm"] for params in drawn} == {False, True}
    assert {tuple(params["model.channels"]) for params in drawn} == {(8, 16), (16, 32, 64)}
    dropouts = [params["model.dropout"] for params in drawn]
    assert 0 <= min(dropouts) < 0.05 < 0.45 < max(dropouts) <= 0.5
    rates = sorted(params["optim.lr"] for params in drawn)
    assert 2e-4 <= rates[0] < rates[-1] <= 5e-3
    assert rates[100] == pytest.approx(1e-3, rel=0.3)  # the middle of the logarithms
    sizes = {params["optim.batch_size"] for params in drawn}
    assert all(type(size) is int for size in sizes)
    assert {min(sizes), max(sizes)} <= set(range(8, 65))
    for params in drawn:
        assert overlay(BASE, nested(params)) != BASE


@pytest.mark.filterwarnings("ignore:Choices for a categorical distribution")
def test_a_dimension_is_drawn_when_what_it_depends_on_is_so(tmp_path):
    drawn = draws(space_of(EVERYTHING, folder=tmp_path))
    for params in drawn:
        asked = params["augment.time_masks"] > 0 and params["model.norm"]
        assert ("augment.time_mask_frames" in params) == asked
    assert min(Counter("augment.time_mask_frames" in params for params in drawn).values()) > 30


@pytest.mark.parametrize(("masks", "drawn"), [(0, 0), (1, 50)])
def test_a_condition_can_be_the_bases(tmp_path, masks, drawn):
    base = replace(BASE, augment=AugmentConfig(time_masks=masks))
    text = "augment.time_mask_frames: {uniform: [10, 60], when: {augment.time_masks: 1}}"
    found = draws(space_of(text, base, folder=tmp_path), 50)
    assert sum("augment.time_mask_frames" in params for params in found) == drawn


def test_a_space_survives_its_tree(tmp_path):
    space = space_of(EVERYTHING, folder=tmp_path)
    assert Space.of(space.tree(), BASE) == space


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_fits_every_preset_and_searches_what_regularises(preset):
    names = {each.field for each in Space.read(default(PRESETS[preset]), PRESETS[preset]).dimensions}
    assert {"model.norm", "model.dropout", "model.head_dropout", "optim.weight_decay"} <= names


def test_a_dimension_reads_as_in_the_file(tmp_path):
    said = {each.field: str(each) for each in space_of(EVERYTHING, folder=tmp_path).dimensions}
    assert said["model.norm"] == "[False, True]"
    assert said["optim.lr"] == "log_uniform [0.0002, 0.005]"
    assert said["augment.time_mask_frames"] == (
        "uniform [10, 60], when augment.time_masks in [1, 2], when model.norm in [True]"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a line a dimension"),
        ("- model.norm", "a line a dimension"),
        ("model.norm: [", "not YAML"),
        ("model.drop: [0.1]", "config field «model.drop» does not exist"),
        ("model: [0.1]", "config field «model»"),
        ("model.norm.not: [1]", "does not exist"),
        ("model.norm: true", "«model.norm» must be a list of choices, or uniform or log_uniform"),
        ("model.norm: []", "«model.norm»: choice must be a list"),
        ("model.norm: [1]", "`model.norm=1`: must be true or false"),
        ("model.dropout: {uniform: [0.5, 0.5]}", "«model.dropout»: uniform [0.5, 0.5] must be two numbers, the lower"),
        ("model.dropout: {uniform: [0.5, 0.1]}", "the lower one first"),
        ("model.dropout: {uniform: [0.5]}", "two numbers"),
        ("model.dropout: {uniform: [0, 1]}", "model.dropout=1"),
        ("model.dropout: {uniform: [0, high]}", "`model.dropout='high'`: must be a number"),
        ("model.dropout: {between: [0, 0.5]}", "uniform or log_uniform"),
        ("model.dropout: {uniform: [0, 0.5], log_uniform: [0.1, 0.5]}", "uniform or log_uniform"),
        ("model.dropout: {uniform: [0, 0.5], steps: 3}", "steps is not known"),
        ("model.norm: {uniform: [false, true]}", "two numbers"),
        ("optim.weight_decay: {log_uniform: [0, 0.1]}", "above zero"),
        ("optim.batch_size: {uniform: [8, 16.5]}", "`optim.batch_size=16.5`: must be a whole number"),
        ("epochs: [10, 20]", "«epochs» cannot be searched"),
        ("seed: [0, 1]", "«seed» cannot be searched"),
        ("model.dropout: {uniform: [0, 0.5], when: {model.nrm: true}}", "config field «model.nrm» does not exist"),
        ("model.dropout: {uniform: [0, 0.5], when: {model.norm: 3}}", "model.norm=3"),
        (
            "model.dropout: {uniform: [0, 0.5], when: {model.norm: true}}\nmodel.norm: [false, true]",
            "«model.dropout»: «model.norm», which it depends on, must stand above it",
        ),
    ],
)
def test_a_space_that_does_not_fit_is_one_line_that_names_file_and_field(tmp_path, text, said):
    with pytest.raises(InputError) as caught:
        space_of(text, folder=tmp_path)
    assert str(caught.value).startswith(f"`space={tmp_path / 'space.yaml'}`: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"`space=.*nothing.yaml`: No such file"):
        Space.read(tmp_path / "nothing.yaml", BASE)


def test_a_grid_is_of_plain_choices_only(tmp_path):
    space = space_of("model.norm: [false, true]\nmodel.dropout: [0.0, 0.3]", folder=tmp_path)
    assert space.grid() == {"model.norm": [False, True], "model.dropout": [0.0, 0.3]}
    with pytest.raises(InputError, match=r"«model.dropout» \(uniform \[0, 0.5\]\)"):
        space_of("model.dropout: {uniform: [0, 0.5]}", folder=tmp_path).grid()
    conditional = "model.norm: [false, true]\nmodel.dropout: {choice: [0.0, 0.3], when: {model.norm: true}}"
    with pytest.raises(InputError, match="`search=grid`"):
        space_of(conditional, folder=tmp_path).grid()


def test_a_runs_parameter_is_read_back_as_the_value_that_was_drawn(tmp_path):
    space = {each.field: each for each in space_of(EVERYTHING, folder=tmp_path).dimensions}
    for name, value in [
        ("model.norm", True),
        ("model.channels", [8, 16]),
        ("model.dropout", 0.12345),
        ("optim.batch_size", 17),
        ("augment.time_masks", 0),
    ]:
        read = space[name].parse(str(value))
        assert (read, type(read)) == (value, type(value))
    assert space["model.norm"].parse("maybe") is None
    assert space["model.dropout"].parse("high") is None
    whole_ends = space_of("augment.equalize: {uniform: [0, 1]}", folder=tmp_path).dimensions[0]
    assert whole_ends.parse("0.25") == 0.25
