"""The questions that a study may ask, by name; it imports nothing, for the command line lists them in its help."""

QUESTIONS = (
    "density-over-size",
    "architectures",
    "memory-to-ffn",
    "learning-rates",
    "noise",
    "trainer-choice",
    "token-trend",
    "allocation",
    "laws",
)
"""``questions/NAME.py``, with underscores, holds each; a study that names none asks the first."""
