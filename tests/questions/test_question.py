"""A question is one file: found by the name that a study gives it, complete, and its figures exist."""

from pathlib import Path

import pytest

import umscale.questions
from umscale.design.question_names import QUESTIONS
from umscale.errors import UserError
from umscale.figures.kinds import KINDS
from umscale.questions.question import find


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_name_finds_a_file(name):
    question = find(name)
    assert question.asks.endswith("?")
    assert set(question.figures) | set(question.behind) <= set(KINDS)
    assert (Path(umscale.questions.__file__).parent / f"{name.replace('-', '_')}.py").exists()


def test_another_name_gets_one_line():
    with pytest.raises(UserError, match="density-over-size"):
        find("densty-over-size")
