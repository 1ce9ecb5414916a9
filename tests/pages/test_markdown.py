"""Texts of others stay texts, and tables are tables whatever is in them."""

import pytest

from mgc.pages.markdown import plain, table


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Hip-Hop", "Hip-Hop"),
        ("a | b", r"a \| b"),
        ("<script>", "&lt;script&gt;"),
        ("[x](http://y)", r"\[x\](http://y)"),
        ("two\n# lines", "two # lines"),
        (r"back\slash `code` *bold* $x$", r"back\\slash \`code\` \*bold\* \$x\$"),
        ("R&B", "R&amp;B"),
    ],
)
def test_a_text_has_no_markup_of_its_own(text, shown):
    assert plain(text) == shown


def test_columns_of_whole_numbers_are_aligned_to_the_right():
    assert table(("genre", "clips"), [("Rock", 3), ("Folk", 12)]).splitlines() == [
        "| genre | clips |",
        "| --- | ---: |",
        "| Rock | 3 |",
        "| Folk | 12 |",
    ]
    assert table(("a",), []).splitlines() == ["| a |", "| --- |"]
