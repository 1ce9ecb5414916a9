import json

import pytest

from mgc.config import PRESETS, ModelConfig, OptimConfig, TrainConfig, overlay, read_config
from mgc.errors import InputError


def test_a_configuration_survives_its_json():
    for preset in PRESETS.values():
        assert overlay(TrainConfig(), json.loads(json.dumps(preset.to_dict()))) == preset


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
        ('{"epochs": 2.5}', "epochs=2.5 must be a whole number"),
        ('{"epochs": true}', "epochs=True"),
        ('{"model": {"head": "max"}}', "one of flatten, avg, avgmax"),
        ('{"model": {"channels": [16, "32"]}}', "model.channels"),
        ('{"model": {"dropout": 1.0}}', "model.dropout=1.0 must be in [0, 1)"),
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
    with pytest.raises(InputError, match=r"--config .*nowhere.json"):
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
