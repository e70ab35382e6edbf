"""Blocks as text: whole at any width, aligned, and never steering the terminal."""

import pytest

from umscale.render.terminal import to_text
from umscale.say.blocks import Bullets, Fold, Grid, Heading, Listing, Paragraph, Verdict

GRID = Grid(
    caption="Losses",
    head=("cell", "runs", "loss in nats per token", "interval"),
    sides="lrrr",
    rows=(("top_m=8 n_keys=64", "4", "1.9721", "[1.90, 2.05]"), ("top_m=96", "12", "2.1", "–")),
    notes=("Means over `seeds`.",),
)


def test_columns_are_aligned():
    lines = to_text([GRID], 120).split("\n")
    assert lines == [
        "Losses",
        "cell               runs  loss in nats per token      interval",
        "top_m=8 n_keys=64     4                  1.9721  [1.90, 2.05]",
        "top_m=96             12                     2.1             –",
        "  Means over seeds.",
    ]


@pytest.mark.parametrize("width", [24, 40, 60, 80])
def test_every_cell_is_there_and_no_line_too_long(width):
    text = to_text([GRID], width)
    assert max(map(len, text.split("\n"))) <= width
    for row in GRID.rows:
        for cell in row:
            for word in cell.split() if cell == row[0] else [cell]:
                assert word in text


def test_strangers_text_does_not_steer():
    hostile = "\x1b[2J\u202eevil"
    blocks = [
        Paragraph(text=hostile),
        Verdict(verdict=hostile, tone="no", text=hostile),
        Bullets(items=(hostile,)),
        Heading(text=hostile),
        Listing(text=hostile),
        Grid(caption=hostile, head=(hostile,), sides="l", rows=((hostile,),), notes=(hostile,)),
    ]
    text = to_text(blocks, 80)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("evil") == 10


def test_folds_are_shown_or_left_out():
    blocks = [Paragraph(text="seen"), Fold(summary="more", blocks=(Paragraph(text="hidden"),))]
    assert to_text(blocks, 80) == "seen\n\nmore\n\nhidden"
    assert to_text(blocks, 80, folds=False) == "seen"


def test_a_heading_breaks_rather_than_the_rows_below_it():
    head = ("stage", "degrees of freedom", "mean loss of all runs")
    grid = Grid(caption="", head=head, sides="lrr", rows=(("before the decay", "7", "2.1227"),), notes=())
    lines = to_text([grid], 45).split("\n")
    assert lines[-1].split() == ["before", "the", "decay", "7", "2.1227"]
    assert len(lines) > 2, "the headings take several lines"
