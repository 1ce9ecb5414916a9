"""Genres by an encoder's own tags: nothing is learnt, and a genre without a tag is never predicted."""

import numpy as np
import pytest
from encoders.conftest import downloaded, weights  # noqa: F401 (fixtures)
from helpers.feature_sets import GENRES, make_sharded

from mgc.audio.logmel import RECIPES
from mgc.core.errors import InputError
from mgc.encoders.musicnn import TAGS
from mgc.evaluation.baseline import baseline
from mgc.evaluation.zero_shot import ZeroShot

FMA = ("Electronic", "Experimental", "Folk", "Hip-Hop", "Instrumental", "International", "Pop", "Rock")


def test_seven_of_fmas_genres_have_a_tag():
    machine = ZeroShot("musicnn", FMA)
    assert [FMA[label] for label in machine.classes_] == [genre for genre in FMA if genre != "International"]
    tags_NS = np.eye(50, dtype=np.float32)[[TAGS.index("folk"), TAGS.index("Hip-Hop")]] * 0.9 + 0.01
    assert machine.predict_proba(tags_NS).sum(1) == pytest.approx([1, 1])
    assert machine.score(tags_NS, np.array([2, 3])) == 1
    assert machine.score(tags_NS, np.array([2, 5])) == 0.5


@pytest.mark.parametrize(
    ("encoder", "genres", "said"),
    [
        ("musicnn", ("Chiptune", "Sea shanty"), "musicnn has no tag for any of Chiptune, Sea shanty"),
        ("musicnn_random", FMA, "has no tag for any"),
        ("none", FMA, "`encoder=none`: is none"),
    ],
)
def test_what_has_no_tags_is_refused(encoder, genres, said):
    with pytest.raises(InputError, match=said):
        ZeroShot(encoder, genres)


def test_a_baseline_by_tags_learns_nothing(weights, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    made = make_sharded(
        tmp_path / "set", spec=RECIPES["musicnn"], genre=lambda track: track % 4, training=[4], validation=[4], test=[4]
    )
    found = baseline(made, encoder="musicnn", classifier="zero_shot")
    assert (found.name, found.n, tuple(found.per_genre)) == ("musicnn + its own tags", 4, GENRES)
