"""Predictions sealed before the runs they are about, and whether they held.

A seal is readable JSON: what was predicted, by which law, from which records, and a SHA-256 over all of it. A *record*
is what the prediction read of one row: its loss, the law's columns, and what names it (``run_id``, ``seed``, ``stage``,
...). As canonical JSON (sorted keys, no spaces, shortest floats, null where missing) it has a digest, and the SHA-256
of a seal's records is that of their canonical lines, sorted and each ended by a newline. So whether a seal's records
are still there, unchanged, can be told later, and none of them is ever counted as a prediction that held.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umscale.errors import UserError
from umscale.questions.predict import Predictions, interval_score
from umscale.results.table import Table, n_rows, numeric, text, where
from umscale.say.blocks import Block, Grid, Paragraph, noted

SEAL_VERSION = 1
_NAMES = ("run_id", "seed", "stage", "compensation", "budget")
"""Columns that say which record it is, where the table has them."""
_DIGEST = 16  # hexadecimal digits of a record's digest in a seal
_NEAR = 0.01  # relative distance within which a record lies at a predicted point
_OVERALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How intervals did on one part of the records that came."""

    part: str
    """What the records share, in words; ``all``."""
    records: int
    runs: int
    held: int
    """Records inside their interval."""
    calibrated: tuple[int, int]
    """How many a calibrated forecaster's would hold, 95% of the time, if records were independent (binomial)."""
    score: float
    """Mean interval score; smaller is better."""
    calibrated_score: tuple[float, float, float]
    """What a calibrated forecaster with these intervals expects, and its 95% range."""
    off: float
    """Mean of observed minus predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A seal beside the records that have come since."""

    sealed: str
    """When, as the seal says."""
    level: float
    records_sealed: int
    records_missing: int
    """Records of the seal that are no longer there as they were."""
    predictions: int
    waiting: int
    """Predictions without a record yet."""
    scores: tuple[Score, ...]
    """Of each part and number of tokens, then of all; empty while no record has come."""
    statements: tuple[str, ...]

    def blocks(self) -> list[Block]:
        """How the sealed intervals did."""
        rows = []
        for one in self.scores:
            low, high = one.calibrated
            mean, least, most = one.calibrated_score
            rows.append(
                (
                    one.part,
                    str(one.records),
                    str(one.runs),
                    str(one.held),
                    f"{low} to {high}",
                    f"{one.score:.4f}",
                    f"{mean:.4f} [{least:.4f}, {most:.4f}]",
                    f"{one.off:+.4f}",
                )
            )
        said = (
            f"sealed {self.sealed}: {self.predictions} predictions from {self.records_sealed} records; "
            f"{self.level:.0%} intervals of a run"
        )
        head = ("part", "records", "runs", "held", "calibrated", "interval score", "calibrated score")
        grid = Grid(caption="", head=(*head, "observed − predicted"), sides="lrrrrrrr", rows=tuple(rows))
        return [Paragraph(text=said), *([grid] if rows else []), *noted(self.statements)]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def canonical(value: Any) -> str:
    """JSON of which there is one text: keys sorted, no spaces, numbers that JSON lacks as null."""
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sha256(words: str) -> str:
    return hashlib.sha256(words.encode()).hexdigest()


def records_of(table: Table, columns: Iterable[str], loss: str) -> list[str]:
    """The canonical JSON of every row, as the module says; ``columns`` are those that a law reads."""
    numbers = {name: numeric(table, name).tolist() for name in dict.fromkeys((loss, *columns))}
    names = {name: text(table, name).tolist() for name in _NAMES if name in table and name not in numbers}
    every = {**names, **numbers}
    return [canonical({name: cells[i] for name, cells in every.items()}) for i in range(n_rows(table))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Predictions with the rows of the table that they came from."""

    predictions: Predictions
    records: tuple[str, ...]
    """Canonical JSON of each row fitted."""


def seal(parts: Sequence[Part], *, source: Mapping[str, Any], sealed: str, version: str) -> dict[str, Any]:
    """Return the seal of predictions as plain data.

    Args:
        source: what the rows were read from and how: study or table, where, map.
        sealed: the time, in words of ISO 8601.
        version: of this software.
    """
    body = {
        "schema": SEAL_VERSION,
        "sealed": sealed,
        "umscale": version,
        "input": dict(source),
        "parts": [
            {
                **one.predictions.to_dict(),
                "records": {
                    "sha256": _sha256("".join(f"{line}\n" for line in sorted(one.records))),
                    "digests": sorted(_sha256(line)[:_DIGEST] for line in one.records),
                },
            }
            for one in parts
        ],
    }
    body = _plain(body)
    return {**body, "sha256": _sha256(canonical(body))}


def read_seal(path: Path) -> dict[str, Any]:
    """Read a seal; raises ``UserError`` for a file that is none, and for one that was edited since."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
        stated = tree["sha256"]
        version = tree["schema"]
        body = {key: value for key, value in tree.items() if key != "sha256"}
        found = _sha256(canonical(body))
        tree["parts"][0]["records"]["digests"]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{path} is not what `umscale predict --seal` writes") from None
    if version != SEAL_VERSION:
        raise UserError(f"{path} has schema {version}, this is {SEAL_VERSION}")
    if found != stated:
        raise UserError(
            f"{path} was changed after it was sealed: its SHA-256 is {found[:16]}…, it says {str(stated)[:16]}…"
        )
    return dict(tree)


def check(sealed: Mapping[str, Any], tables: Sequence[Table]) -> Checked:
    """Score a seal of ``read_seal`` on records that have come since.

    ``tables`` are the rows of each of its parts now: the same source, condition, mapping and group.
    """
    scored: list[_Scored] = []
    missing = waiting = 0
    for part, table in zip(sealed["parts"], tables, strict=True):
        rows = where(table, stage=part["stage"], compensation=part["compensation"])
        digests = [
            _sha256(line)[:_DIGEST] for line in records_of(rows, part["columns"].values(), part["loss"])
        ]
        known = set(part["records"]["digests"])
        missing += len(known - set(digests))
        new = np.array([d not in known for d in digests], dtype=bool)
        for point in part["points"]:
            found = list(_at(part, point, rows, new))
            waiting += not found
            scored += found
    n_points = sum(len(part["points"]) for part in sealed["parts"])
    level = float(sealed["parts"][0]["level"])
    return Checked(
        sealed=str(sealed["sealed"]),
        level=level,
        records_sealed=sum(len(part["records"]["digests"]) for part in sealed["parts"]),
        records_missing=missing,
        predictions=n_points,
        waiting=waiting,
        scores=tuple(_scores(scored, level)),
        statements=tuple(_statements(missing, waiting, n_points, scored)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scored:
    part: str
    run: str
    held: bool
    score: float
    expected: float
    deviation: float
    off: float


def _at(part: Mapping[str, Any], point: Mapping[str, Any], rows: Table, new: np.ndarray) -> Iterator[_Scored]:
    """The records that lie at a predicted point and are not of the seal."""
    near = new.copy()
    for symbol, value in point["at"].items():
        cells = numeric(rows, part["columns"][symbol])
        near &= np.abs(cells - value) <= _NEAR * abs(value)
    losses = numeric(rows, part["loss"])
    runs = text(rows, "run_id") if "run_id" in rows else np.arange(len(losses)).astype(str)
    low, high = point["run"]["low"], point["run"]["high"]
    if low is None or high is None:
        return
    words = [
        w for w in (part["stage"], part["compensation"], *part["by"].values()) if w not in (None, "none")
    ]
    if (tokens := point["at"].get("D")) is not None:
        words.append(f"D {tokens:.4g}")
    for i in np.flatnonzero(near & np.isfinite(losses)):
        yield _Scored(
            part=", ".join(words) or part["loss"],
            run=str(runs[i]),
            held=bool(low <= losses[i] <= high),
            score=float(interval_score(losses[i], low, high, float(part["level"]))),
            expected=float(point["expected_score"]),
            deviation=float(point["score_deviation"]),
            off=float(losses[i] - point["loss"]["value"]),
        )


def _scores(scored: Sequence[_Scored], level: float) -> Iterator[Score]:
    parts = list(dict.fromkeys(one.part for one in scored))
    for part in [*parts, *([_OVERALL] if len(parts) > 1 else [])]:
        inside = [one for one in scored if part in (one.part, _OVERALL)]
        n = len(inside)
        expected = float(np.mean([one.expected for one in inside]))
        half = 1.96 * float(np.sqrt(np.sum([one.deviation**2 for one in inside]))) / n
        yield Score(
            part=part,
            records=n,
            runs=len({one.run for one in inside}),
            held=sum(one.held for one in inside),
            calibrated=binomial_range(n, level),
            score=float(np.mean([one.score for one in inside])),
            calibrated_score=(expected, max(expected - half, 0.0), expected + half),
            off=float(np.mean([one.off for one in inside])),
        )


def binomial_range(n: int, share: float, level: float = 0.95) -> tuple[int, int]:
    """The central range of successes in ``n`` independent tries: each tail beyond it is at most (1 − level)/2."""
    from umscale.laws.special import bdtr

    below = bdtr(np.arange(n + 1), n, share)
    tail = (1 - level) / 2
    return int(np.argmax(below > tail)), int(np.argmax(below >= 1 - tail))


def _statements(missing: int, waiting: int, points: int, scored: Sequence[_Scored]) -> Iterator[str]:
    if missing:
        yield f"{missing} records that the seal rests on are gone or have changed: it was made from other data"
    if waiting:
        yield f"{waiting} of {points} predictions have no record yet"
    runs = len({one.run for one in scored})
    if runs < len(scored):
        yield (
            f"{len(scored)} records of {runs} runs: records of one run err together, and the binomial range is "
            "then too narrow"
        )
