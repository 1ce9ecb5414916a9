import json

import pytest
import torch

from mgc.audio.logmel import LogMelSpec
from mgc.config import ModelConfig, TrainConfig
from mgc.core.errors import InputError
from mgc.model import checkpoint
from mgc.model.cnn import GenreCNN

SPEC = LogMelSpec(seconds=0.75)
CARD = checkpoint.Card(TrainConfig(model=ModelConfig(channels=(4,))), ("a", "b"), SPEC, "f" * 64, {"best_epoch": 1})


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    checkpoint.write(tmp_path, GenreCNN(CARD.config.model, 2, SPEC.shape).state_dict(), CARD)
    return tmp_path


def test_a_model_comes_back_as_it_was(folder):
    torch.manual_seed(0)
    expected = GenreCNN(CARD.config.model, 2, SPEC.shape).state_dict()
    model, card = checkpoint.read(folder)
    assert card == checkpoint.read_card(folder) == CARD
    assert not model.training
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_it_holds_two_files_and_neither_is_a_pickle(folder):
    assert sorted(path.name for path in folder.iterdir()) == [checkpoint.CARD, checkpoint.WEIGHTS]
    json.loads((folder / checkpoint.CARD).read_text())
    header = (folder / checkpoint.WEIGHTS).read_bytes()
    assert json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])


def edit_card(folder, **changes):
    card = json.loads((folder / checkpoint.CARD).read_text()) | changes
    (folder / checkpoint.CARD).write_text(json.dumps(card))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / checkpoint.WEIGHTS).unlink(), "no such file"),
        (lambda f: (f / checkpoint.CARD).unlink(), "no such file"),
        (lambda f: (f / checkpoint.CARD).write_text("{"), "not a checkpoint"),
        (lambda f: (f / checkpoint.WEIGHTS).write_bytes((f / checkpoint.WEIGHTS).read_bytes()[:-8]), "damaged"),
        (lambda f: edit_card(f, format=99), "format 99"),
        (lambda f: edit_card(f, genres=["a", "b", "c"]), "do not fit"),
        (lambda f: edit_card(f, genres=None), "do not fit"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_one_clear_line(folder, damage, said):
    damage(folder)
    with pytest.raises(InputError, match=said) as caught:
        checkpoint.read(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_card_is_read_without_its_weights(folder):
    (folder / checkpoint.WEIGHTS).unlink()
    assert checkpoint.read_card(folder) == CARD
    edit_card(folder, format=99)
    with pytest.raises(InputError, match="format 99"):
        checkpoint.read_card(folder)
