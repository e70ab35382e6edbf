"""A study: a TOML file that names axes, what is held constant, and the model they vary.

name = "density"
question = "density-over-size"
compensation = ["none"]             # or iso_flops, iso_active; each is a copy of the grid
d_ffn_multiple = 8                  # of the widths that compensation chooses, where its 1% allows; up to 64
[axes]
architecture = ["dense", "moe"]     # names of [architectures.NAME] tables, each laid over the reference
top_m = [8, 16, 32]                 # see umscale.design.axes; dotted spec paths (train.lr) work too
sparse_params = ["1M", "4M"]
tokens = ["400k", "1M"]             # branches of one trunk, not runs of their own
seed = [0, 1, 2]
[[cells]]                           # instead of a product, or beside one: points by name, each with its own seeds
top_m = 64
n_keys = 128
seed = [3, 4]
[search]                            # what `umscale search` varies, see umscale.search.settings
[model]  [model.ffn]  [model.memory]  [data]  [train]      # a RunSpec, the reference cell
[architectures.moe]
baseline = "dense"                  # what it is compared with, if not what all others are
[architectures.moe.model.ffn]       # what this architecture changes of the reference
"""

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umscale import parts
from umscale.data.corpus import Corpus, is_name, open_corpus
from umscale.data.probes_mixture import check_corpus as check_probes
from umscale.design.allocation import SHARES
from umscale.design.axes import (
    COMPENSATIONS,
    D_FFN_MULTIPLE,
    FRACTIONS,
    MODEL_AXES,
    RUN_AXES,
    TEXT_AXES,
    Infeasible,
    Missed,
    Solved,
    check_axis,
    solve,
)
from umscale.design.question_names import QUESTIONS
from umscale.errors import UserError, nearest
from umscale.spec import (
    DataSpec,
    ModelSpec,
    RunSpec,
    TrainSpec,
    apply_overrides,
    from_dict,
    quantity,
    read_toml,
    require_parts,
    set_path,
    to_dict,
    to_toml,
)

KEYS = (
    "name", "question", "question_package", "description", "compensation", "tolerance", "d_ffn_multiple", "axes",
    "cells", "architectures", "search", "model", "data", "train",
)  # fmt: skip
MAX_CELLS = 100_000
MULTIPLES = (1, 2, 4, 8, 16, 32, 64)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A validated study file."""

    name: str
    question: str = "density-over-size"
    question_package: str = ""
    """Name and version of the package that offers it, filled in; empty for umscale's own."""
    description: str = ""
    compensation: tuple[str, ...] = ("none",)
    tolerance: float = 0.01
    d_ffn_multiple: int = D_FFN_MULTIPLE
    """What divides the FFN widths that compensation chooses, where ``tolerance`` allows; 1 before version 3."""
    axes: Mapping[str, tuple[Any, ...]]
    cells: tuple[Mapping[str, tuple[Any, ...]], ...] = ()
    """Explicit points, each crossed with the axes: one value an axis, and perhaps seeds of its own."""
    architectures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Named trees laid over the reference by the axis ``architecture``."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """What ``umscale search`` varies and wants, see ``umscale.search.settings``; a sweep has no use for it."""
    reference: RunSpec
    """The cell that compensation refers to, and the source of everything no axis varies."""

    def to_dict(self) -> dict[str, Any]:
        """Return the study as a TOML tree that ``parse`` reads back."""
        spec = to_dict(self.reference)
        spec.pop("seed")
        head = {
            k: getattr(self, k) for k in ("name", "question", "description", "tolerance", "d_ffn_multiple")
        }
        if self.question_package:
            head["question_package"] = self.question_package
        axes = {k: list(v) for k, v in self.axes.items()}
        named: dict[str, Any] = {}
        if self.cells:
            named["cells"] = [
                {k: list(v) if k == "seed" or isinstance(v[0], list) else v[0] for k, v in cell.items()}
                for cell in self.cells
            ]
        if self.architectures:
            named["architectures"] = dict(self.architectures)
        if self.search:
            named["search"] = dict(self.search)
        return {**head, "compensation": list(self.compensation), "axes": axes, **named, **spec}

    def to_toml(self) -> str:
        """Return the study as TOML text."""
        return to_toml(self.to_dict())


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One point of a study's grid for one seed: a run, or the reason why there is none."""

    targets: Mapping[str, Any]
    """The values of the axes, ``seed`` and tokens left out."""
    seed: int
    compensation: str
    run: RunSpec | None
    solved: Solved | None
    reason: str = ""
    missed: Missed | None = None
    """The target that was not reached, where that is the reason."""
    varied: tuple[str, ...] = ()
    """What differs between the study's cells, ``seed`` left out; these make the label."""

    @property
    def run_id(self) -> str:
        """The run's id; an infeasible cell gets one of its own, so that it is a row too."""
        if self.run is not None:
            return self.run.run_id
        text = json.dumps([dict(self.targets), self.seed, self.compensation, self.reason], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Short text such as ``top_m=16 n_keys=64 seed=0``."""
        shown = {k: v for k, v in self.targets.items() if k in self.varied} or self.targets
        parts = [f"{k.rpartition('.')[2]}={_short(v)}" for k, v in shown.items()]
        if "compensation" in self.varied:
            parts.append(self.compensation)
        return " ".join([*parts, f"seed={self.seed}"])


def _short(value: Any) -> str:
    if isinstance(value, float) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10_000:
        return f"{value / 1e6:.4g}M" if abs(value) >= 1e6 else f"{value / 1e3:.4g}k"
    if isinstance(value, (list, tuple)):
        return json.dumps(value, separators=(",", ":"))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def load_study(source: str, overrides: Sequence[str] = ()) -> Study:
    """Load a study by file or by the name of one that ships with umscale, and apply ``--set`` overrides.

    Raises:
        UserError: no such study (with the nearest name), an unknown key, an impossible value.
    """
    import umscale_studies

    path = Path(source)
    if path.suffix == ".toml" or path.exists():
        if not path.is_file():
            raise UserError(f"{source}: {'not a regular file' if path.exists() else 'no such study file'}")
    else:
        shipped = umscale_studies.shipped()
        if source not in shipped:
            raise UserError(
                f"no study {source!r}{nearest(source, shipped)}; or give the path of a .toml file"
            )
        path = shipped[source]
    return parse(apply_overrides(_within(read_toml(path), path), overrides), path.name)


def _within(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """Check that a study file names corpora, or their folders below its own; anything else must be said by the user.

    Such folders become absolute, since the study may be run from elsewhere.

    Raises:
        UserError: a corpus outside the file's folder.
    """
    home = path.resolve().parent

    def walk(node: Any, below: str) -> Any:
        if isinstance(node, Mapping):
            return {key: walk(value, f"{below}.{key}") for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value, below) for value in node]
        if not below.endswith(".data.corpus") or not isinstance(node, str) or is_name(node):
            return node
        if "\0" in node:
            raise UserError(f"{path.name}: corpus {node!r} is no path")
        folder = (home / node).resolve()
        if not folder.is_relative_to(home):
            raise UserError(
                f"{path.name}: corpus {node!r} is outside the study's folder; give it a name with `umscale data "
                f"prepare`, or say --set data.corpus={node}"
            )
        return str(folder)

    return {key: walk(value, f".{key}") for key, value in tree.items()}


def parse(tree: Mapping[str, Any], where: str) -> Study:
    """Validate a study tree; ``where`` (a file name) goes into error messages."""
    for key in tree:
        if key not in KEYS:
            raise UserError(f"{where}: unknown key {key!r}{nearest(key, KEYS)}")
    name = tree.get("name", "")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UserError(f"{where}: name = {name!r} must be 1 to 64 letters, digits, '.', '_' or '-'")
    question, question_package = _question(tree, where)
    modes = tree.get("compensation", "none")
    modes = tuple(modes) if isinstance(modes, list) else (modes,)
    for mode in modes:
        if mode not in COMPENSATIONS:
            raise UserError(f"{where}: unknown compensation {mode!r}{nearest(str(mode), COMPENSATIONS)}")
    multiple = tree.get("d_ffn_multiple", D_FFN_MULTIPLE)
    if isinstance(multiple, bool) or multiple not in MULTIPLES:
        raise UserError(
            f"{where}: d_ffn_multiple = {multiple!r} must be one of {', '.join(map(str, MULTIPLES))}"
        )
    search = tree.get("search", {})
    if not isinstance(search, Mapping):
        raise UserError(f"{where}: search must be a table: [search]")
    spec = {k: tree[k] for k in ("model", "data", "train") if k in tree}
    architectures = _architectures(tree.get("architectures", {}), where)
    axes = _axes(tree.get("axes", {}), where)
    cells = _explicit_cells(tree.get("cells", []), axes, where)
    named = [name for cell in cells for name in cell.get("architecture", ())]
    if architectures and not named:
        axes = {"architecture": tuple(architectures)} | axes
    for wanted in (*axes.get("architecture", ()), *named):
        if wanted not in architectures:
            raise UserError(
                f"{where}: axes.architecture: no table [architectures.{wanted}]{nearest(wanted, architectures)}"
            )
    if "tokens" in axes:
        set_path(spec, "train.budgets", sorted(axes["tokens"]))
    try:
        reference = from_dict(RunSpec, spec)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return Study(
        name=name,
        question=question,
        question_package=question_package,
        description=str(tree.get("description", "")),
        compensation=tuple(dict.fromkeys(modes)),
        tolerance=quantity(tree.get("tolerance", 0.01), f"{where}: tolerance"),
        d_ffn_multiple=multiple,
        axes=axes,
        cells=cells,
        architectures=architectures,
        search=_table(tree.get("search", {}), f"{where}: search"),
        reference=reference,
    )


def _question(tree: Mapping[str, Any], where: str) -> tuple[str, str]:
    """Return the question and the package that offers it; of a study that was swept, as it says."""
    question, package = tree.get("question", QUESTIONS[0]), tree.get("question_package", "")
    if not isinstance(question, str) or not isinstance(package, str):
        raise UserError(f"{where}: question = {question!r} must be one of {', '.join(QUESTIONS)}")
    if question in QUESTIONS or package:
        return question, package
    try:
        return question, parts.find("questions", question, known=QUESTIONS).package
    except UserError as error:
        raise UserError(
            f"{where}: question = {question!r} must be one of {', '.join(QUESTIONS)}, or of a package: {error}"
        ) from None


def _table(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where} must be a table")
    return dict(tree)


def _architectures(tree: Any, where: str) -> dict[str, dict[str, Any]]:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: architectures must hold tables such as [architectures.moe.model.ffn]")
    for name, changes in tree.items():
        if not _NAME.fullmatch(name):
            raise UserError(
                f"{where}: architecture {name!r} must be letters, digits, dots, dashes and underscores, at most 64"
            )
        unknown = set(changes) - {"model", "train", "baseline"} if isinstance(changes, Mapping) else {""}
        if unknown:
            raise UserError(
                f"{where}: [architectures.{name}] may hold model and train tables and a baseline, nothing else"
            )
        if (other := changes.get("baseline", name)) not in tree:
            raise UserError(
                f"{where}: [architectures.{name}] baseline = {other!r} is none of the study's architectures"
                f"{nearest(str(other), tree)}"
            )
    return {name: dict(changes) for name, changes in tree.items()}


def _axes(tree: Any, where: str) -> dict[str, tuple[Any, ...]]:
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: axes must be a table of lists")
    out: dict[str, tuple[Any, ...]] = {}
    for name, values in _flat(tree).items():
        check_axis(name)
        items = list(values) if isinstance(values, list) else [values]
        if not items:
            raise UserError(f"{where}: axes.{name} is empty; list at least one value")
        if name in TEXT_AXES and not all(isinstance(v, str) for v in items):
            raise UserError(f"{where}: axes.{name} = {items} must be names in quotes")
        if name in (*MODEL_AXES, *RUN_AXES) and name not in TEXT_AXES:
            items = [quantity(v, f"{where}: axes.{name}") for v in items]
            if any(
                v < 0 or (v == 0 and name not in ("seed", "skip", "n_shared_experts", *SHARES)) for v in items
            ):
                raise UserError(f"{where}: axes.{name} = {items} must be positive")
            if name not in FRACTIONS and any(v != int(v) for v in items):
                raise UserError(f"{where}: axes.{name} = {items} must be whole numbers")
            items = [int(v) if v == int(v) and name not in FRACTIONS else v for v in items]
        if len({json.dumps(v) for v in items}) < len(items):
            raise UserError(f"{where}: axes.{name} lists a value twice")
        out[name] = tuple(items)
    return out


def _explicit_cells(tree: Any, axes: Mapping[str, Any], where: str) -> tuple[dict[str, tuple[Any, ...]], ...]:
    if not isinstance(tree, list) or not all(isinstance(cell, Mapping) for cell in tree):
        raise UserError(f"{where}: cells must be tables, each under a line [[cells]]")
    cells = tuple(_axes(cell, where) for cell in tree)
    for cell in cells:
        for name, values in cell.items():
            if name == "tokens" or (name in axes and name != "seed"):
                raise UserError(f"{where}: {name!r} is an axis of the whole study: leave it out of [[cells]]")
            if name != "seed" and len(values) > 1:
                raise UserError(f"{where}: a table [[cells]] holds one {name}; only seed may be a list")
        if set(cell) - {"seed"} != set(cells[0]) - {"seed"}:
            raise UserError(f"{where}: every table [[cells]] must set the same axes")
    return cells


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables to dotted names: TOML reads ``train.lr = [..]`` under [axes] as a table."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        out |= _flat(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return out


def expand(study: Study, precision: str, corpus: Corpus | None = None) -> list[Cell]:
    """Return every cell of the study: its points, for each compensation and seed.

    Cells of one seed come before those of the next, so that an interrupted study holds whole blocks.

    Args:
        precision: what ``auto`` stands for (see ``umscale.machine.resolve_precision``).
        corpus: the opened corpus; opened by the name in the study when None.

    Raises:
        UserError: an axis value that no model can have, or a corpus too short for the largest budget.
    """
    chosen = points(study)
    bases = _Bases(study, precision, corpus)
    cells: list[Cell] = []
    for mode in study.compensation:
        for targets, seeds in chosen:
            cells += _cells(study, targets, mode, seeds, bases.of(targets))
    order = {s: i for i, s in enumerate(dict.fromkeys(s for _, seeds in chosen for s in seeds))}
    varied = [name for name in chosen[0][0] if len({json.dumps(t[name]) for t, _ in chosen}) > 1]
    if len(study.compensation) > 1:
        varied.append("compensation")
    cells = [dataclasses.replace(cell, varied=tuple(varied)) for cell in cells]
    return sorted(cells, key=lambda cell: order[cell.seed])


def points(study: Study) -> list[tuple[dict[str, Any], tuple[int, ...]]]:
    """Return (targets, seeds) of every point: the product of the axes, crossed with explicit cells if there are any.

    Raises ``UserError`` for more than ``MAX_CELLS`` cells over all seeds and compensations.
    """
    grid = {k: v for k, v in study.axes.items() if k not in RUN_AXES}
    common = study.axes.get("seed", (0,))
    count = len(study.compensation) * math.prod(len(values) for values in grid.values())
    count *= sum(len(cell.get("seed", common)) for cell in study.cells or ({},))
    if count > MAX_CELLS:
        raise UserError(f"study {study.name!r} has {count} cells; {MAX_CELLS} is the most that is expanded")
    found = []
    for values in itertools.product(*grid.values()):
        for cell in study.cells or ({},):
            own = {k: v[0] for k, v in cell.items() if k != "seed"}
            seeds = tuple(int(s) for s in cell.get("seed", common))
            found.append((dict(zip(grid, values, strict=True)) | own, seeds))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """What all points have in common that name the same architecture and set the same paths."""

    model: ModelSpec
    reference: ModelSpec
    data: DataSpec
    train: TrainSpec


class _Bases:
    """The bases of a study's points, each made once: a grid of ten thousand has few."""

    def __init__(self, study: Study, precision: str, corpus: Corpus | None) -> None:
        self.study, self.precision = study, precision
        self.corpora = {} if corpus is None else {study.reference.data.corpus: corpus}
        self.made: dict[str, _Base] = {}

    def of(self, targets: Mapping[str, Any]) -> _Base:
        """Return the base of a point."""
        told = {k: v for k, v in targets.items() if "." in k or k == "architecture"}
        key = json.dumps(told)
        if key not in self.made:
            self.made[key] = self._make(told)
        return self.made[key]

    def _make(self, told: Mapping[str, Any]) -> _Base:
        study = self.study
        tree = _resolvable(to_dict(study.reference))
        if "architecture" in told:
            changes = study.architectures[told["architecture"]]
            tree = _merged(tree, {k: v for k, v in changes.items() if k != "baseline"})
        for name, value in sorted(told.items(), key=lambda item: not item[0].endswith(".kind")):
            if "." in name:
                _set(tree, name, value)
        base = from_dict(RunSpec, tree)
        require_parts(base)
        corpus = self.corpora.get(base.data.corpus)
        if corpus is None:
            corpus = self.corpora[base.data.corpus] = open_corpus(base.data.corpus)
        if base.data.hash not in ("", corpus.hash):
            raise UserError(
                f"corpus {corpus.name!r} has hash {corpus.hash[:12]}, the study wants {base.data.hash[:12]}; prepare "
                "the corpus it was made with, or leave data.hash out"
            )
        data = dataclasses.replace(base.data, hash=corpus.hash)
        train = base.train
        if train.precision == "auto":
            resolved = from_dict(TrainSpec, {"precision": self.precision}).precision
            train = dataclasses.replace(train, precision=resolved)
        model = _with_vocabulary(base.model, corpus)
        reference = _with_vocabulary(study.reference.model, corpus) if "architecture" in told else model
        _check_length(data, train, corpus)
        check_probes(data, corpus)
        return _Base(model=model, reference=reference, data=data, train=train)


def _cells(study: Study, targets: dict[str, Any], mode: str, seeds: Sequence[int], base: _Base) -> list[Cell]:
    """Return one grid point's cells, a cell a seed."""
    model, reference, data, train = base.model, base.reference, base.data, base.train
    model_targets = {k: v for k, v in targets.items() if "." not in k and k != "architecture"}
    try:
        solved = solve(
            model, model_targets, mode, data.seq_len, study.tolerance, reference, study.d_ffn_multiple
        )
    except Infeasible as error:
        return [
            Cell(
                targets=targets,
                seed=s,
                compensation=mode,
                run=None,
                solved=None,
                reason=str(error),
                missed=error.missed,
            )
            for s in seeds
        ]
    return [
        Cell(
            targets=targets,
            seed=seed,
            compensation=mode,
            run=RunSpec(model=solved.model, data=data, train=train, seed=seed),
            solved=solved,
        )
        for seed in seeds
    ]


def _resolvable(tree: dict[str, Any]) -> dict[str, Any]:
    """Forget which package a part is of where the same one is here, so that further options of it are looked at."""
    named: tuple[tuple[parts.Group, dict[str, Any]], ...] = (
        ("memories", tree["model"].get("memory", {})),
        ("optimizers", tree["train"]["optimizer"]),
    )
    for group, table in named:
        if table.get("package") and not parts.absent(group, table["kind"], table["package"]):
            table["package"] = ""
    return tree


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    """``set_path``; a table whose ``kind`` changes to another part's loses what was said of the old one."""
    table, _, leaf = path.rpartition(".")
    if leaf == "kind":
        node: Any = tree
        for name in table.split("."):
            node = node.get(name, {}) if isinstance(node, Mapping) else {}
        if isinstance(node, dict) and node.get("kind") != value:
            for stale in ("options", "package"):
                node.pop(stale, None)
    set_path(tree, path, value)


def _merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay ``changes`` over ``tree``; a table whose ``kind`` changes starts afresh, without the old one's options."""
    out = dict(tree)
    for key, value in changes.items():
        old = out.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            same = value.get("kind", old.get("kind")) == old.get("kind")
            out[key] = _merged(old, value) if same else dict(value)
        else:
            out[key] = value
    return out


def design_columns(study: Study, cells: Sequence[Cell]) -> dict[str, list[float]]:
    """Return density, size and budget of every planned record, and each further axis of the study."""
    columns: dict[str, list[float]] = {}
    named = ("top_m", "n_keys", "n_values", "sparse_params", "density", "tokens", "seed")
    axes = dict.fromkeys([*study.axes, *(name for cell in study.cells for name in cell)])
    extra = [name for name in axes if name not in (*named, *TEXT_AXES) and "." not in name]
    for cell in cells:
        if cell.run is None or cell.solved is None:
            continue
        for budget in cell.run.train.budgets:
            memory = cell.solved.model.memory
            row = {
                "top_m": float(memory.top_m * memory.heads) if memory else 0.0,
                "sparse_params": float(cell.solved.cost.sparse_params),
                "tokens": float(budget),
            }
            row |= {name: float(cell.targets[name]) for name in extra}
            for name, value in row.items():
                columns.setdefault(name, []).append(value)
    return columns


def _with_vocabulary(model: ModelSpec, corpus: Corpus) -> ModelSpec:
    if model.vocab_size == 0:
        return dataclasses.replace(model, vocab_size=corpus.vocab_size)
    if model.vocab_size < corpus.vocab_size:
        raise UserError(
            f"model.vocab_size = {model.vocab_size} is smaller than the vocabulary of corpus "
            f"{corpus.name!r} ({corpus.vocab_size}); leave it out"
        )
    return model


def _check_length(data: DataSpec, train: TrainSpec, corpus: Corpus) -> None:
    longest, available = max(train.budgets), corpus.train_tokens
    if longest > data.max_epochs * available:
        raise UserError(
            f"a budget of {longest:,} tokens needs {longest / max(1, available):.2f} passes over corpus "
            f"{corpus.name!r} ({available:,} training tokens) and data.max_epochs is {data.max_epochs:g}; "
            "lower the budget, raise data.max_epochs or prepare a larger corpus"
        )
