import json

import pytest

from mgc.config import PRESETS, ModelConfig, OptimConfig, SweepConfig, TrainConfig, overlay, read_config
from mgc.core.errors import InputError


def test_a_configuration_survives_its_json():
    for preset in PRESETS.values():
        assert overlay(TrainConfig(), json.loads(json.dumps(preset.to_dict()))) == preset


def test_a_fit_is_known_without_fields_that_came_later_unless_they_are_used():
    known = TrainConfig().identity()
    assert not {"encoder", "hidden"} & known["model"].keys()
    assert "encoder_lr" not in known["optim"]
    used = PRESETS["musicnn"].identity()
    assert (used["model"]["encoder"], used["model"]["hidden"]) == ("musicnn", [512])
    assert overlay(TrainConfig(), known) == TrainConfig()


def test_a_partial_file_changes_only_what_it_names(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"epochs": 3, "model": {"dropout": 0.4}}')
    config = read_config(file, PRESETS["regularized"])
    assert (config.epochs, config.model.dropout) == (3, 0.4)
    assert config.model.norm
    assert config.optim == PRESETS["regularized"].optim


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"modle": {}}', "«modle» does not exist"),
        ('{"model": {"drop_out": 0.1}}', "«model.drop_out» does not exist"),
        ('{"model": 3}', "«model»"),
        ('{"epochs": 2.5}', "epochs=2.5: must be a whole number"),
        ('{"epochs": true}', "epochs=True"),
        ('{"model": {"head": "max"}}', "one of flatten, avg, avgmax"),
        ('{"model": {"channels": [16, "32"]}}', "model.channels"),
        ('{"model": {"dropout": 1.0}}', "model.dropout=1.0: must be in [0, 1)"),
        ("[1]", "must hold an object"),
        ("{", "not JSON"),
    ],
)
def test_a_bad_file_is_one_line_that_names_file_and_field(tmp_path, text, named):
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        read_config(file, TrainConfig())
    assert named in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"`config=.*nowhere.json"):
        read_config(tmp_path / "nowhere.json", TrainConfig())


@pytest.mark.parametrize(
    "make",
    [
        lambda: ModelConfig(channels=()),
        lambda: ModelConfig(head_dropout=-0.1),
        lambda: OptimConfig(lr=0.0),
        lambda: OptimConfig(weight_decay=-1.0),
        lambda: OptimConfig(label_smoothing=1.0),
        lambda: OptimConfig(batch_size=0),
        lambda: TrainConfig(epochs=0),
        lambda: TrainConfig(seed=-1),
    ],
)
def test_values_without_meaning_are_refused(make):
    with pytest.raises(InputError, match="must be"):
        make()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trials": 0}, "`trials=0`: must be at least 1"),
        ({"trials": -3}, "`trials=-3`: must be at least 1"),
        ({"workers_per_trial": 0}, "`workers_per_trial=0`: must be at least 1"),
        ({"concurrent": 0}, "`concurrent=0`: must be at least 1"),
        ({"gpus_per_trial": 0.0}, "`gpus_per_trial=0.0`: must be above 0 and at most 1"),
        ({"gpus_per_trial": -0.5}, "`gpus_per_trial=-0.5`: must be above 0"),
        ({"gpus_per_trial": 2.0}, "for several GPUs a trial use `workers_per_trial`"),
        (
            {"gpus_per_trial": 0.5, "workers_per_trial": 2},
            "`gpus_per_trial=0.5`: must be left out with `workers_per_trial`",
        ),
        ({"time_budget": -1.0}, "`time_budget=-1.0`: must be at least 0"),
        ({"top": -1}, "`top=-1`: must be at least 0"),
        ({"seeds": 1}, "`seeds=1`: must be at least 2; `top=0` retrains nothing"),
        ({"seeds": 0, "top": 1}, "`seeds=0`: must be at least 2"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_the_parameters_name(settings, said):
    with pytest.raises(InputError) as caught:
        SweepConfig(**settings)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"trials": 1, "workers_per_trial": 1, "concurrent": 1},
        {"gpus_per_trial": 0.25},
        {"gpus_per_trial": 1.0},
        {"top": 0, "seeds": 0},
        {"top": 1, "seeds": 2, "without": ()},
    ],
)
def test_the_least_and_the_most_of_a_sweep_are_allowed(settings):
    assert SweepConfig(**settings)
