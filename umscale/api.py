"""What ``import umscale`` offers: studies, sweeps, results, laws, predictions, plans, costs and models of runs.

Few names, each loaded when it is first used. They do what the commands of the same names do, on the same stores.
Everything that the user can put right is raised as ``umscale.UserError``, whose message is one line.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.accounting import Cost
from umscale.design.study import Cell, Study
from umscale.errors import UserError, nearest

if TYPE_CHECKING:
    import pandas
    import pyarrow as pa

    from umscale.data.corpus import Corpus
    from umscale.inference.evaluate import TextLoss
    from umscale.inference.generate import Sampling
    from umscale.inference.kept import KeptModel
    from umscale.laws.forms import Law
    from umscale.laws.uncertainty import Estimate, Uncertainty
    from umscale.questions.plan import Plan
    from umscale.questions.predict import Predictions
    from umscale.questions.question import Answer
    from umscale.results.table import Table
    from umscale.spec import ModelSpec
    from umscale.store.store import Store

__all__ = [
    "LawFit",
    "Model",
    "Results",
    "UserError",
    "cells",
    "cost",
    "fit_law",
    "load_model",
    "load_results",
    "plan",
    "read_table",
    "study",
    "sweep",
]


def study(source: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
    """Return a study: by the name of one that ships, by its file, or from the tree that such a file holds.

    Args:
        source: name, path of a ``.toml`` file, or nested dictionaries.
        overrides: as ``--set`` takes them, ``"train.lr=1e-3"``.

    Raises:
        UserError: no such study, an unknown key, an impossible value.

    >>> umscale.study("quickstart", ["axes.seed=[0]"]).axes["seed"]
    (0,)
    >>> own = umscale.study({"name": "own", "axes": {"top_m": [4, 8]}, "model": {"memory": {"n_keys": 32}}})
    >>> [cell.label for cell in umscale.cells(own)]
    ['top_m=4 seed=0', 'top_m=8 seed=0']
    """
    from umscale.design.study import load_study, parse
    from umscale.spec import apply_overrides

    if isinstance(source, Mapping):
        return parse(apply_overrides(dict(source), overrides), "the study")
    return load_study(str(source), overrides)


def cells(study: Study) -> list[Cell]:
    """Return the cells of a study, solved: each with its run, or with the reason why there is none.

    >>> first = umscale.cells(umscale.study("quickstart"))[0]
    >>> first.run.model.architecture, len(first.run_id)
    ('ultramem_v2', 16)
    """
    from umscale.design.study import expand

    chosen = study.reference.train.precision
    return expand(study, "float32" if chosen == "auto" else chosen)


def sweep(
    study: Study,
    store: str | os.PathLike[str] | None = None,
    *,
    workers: int = 0,
    threads: int = 1,
    device: str = "auto",
) -> "Results":
    """Train the runs of a study that the store does not have, and return what the store then holds.

    Args:
        store: folder or URL; None is ``umscale-runs/NAME``, as for the command.
        workers: processes that train side by side; 0 trains here, run after run.
        threads: of each worker.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        UserError: what only the user can put right, such as a missing corpus or a full disk.
    """
    import io

    from umscale.execute.claimed_run import Reporter
    from umscale.execute.local import LocalExecutor, visible_gpus
    from umscale.execute.preparation import planned, ready
    from umscale.execute.workload import make_plan

    root = store if store is not None else Path("umscale-runs") / study.name
    design, precision = planned(study, root)
    opened, _ = ready(root, precision)
    opened.write_design(study, design)
    job = make_plan(study.name, design)
    if not workers:
        job.work(opened, Reporter(io.StringIO()), device)
    else:
        gpus = visible_gpus(device)
        with LocalExecutor(opened, job, workers, threads, device, gpus) as executor:
            executor.run(lambda worker, event: None)
    return Results(opened)


@dataclass(frozen=True, slots=True)
class Results:
    """What a store holds."""

    store: "Store"

    def to_arrow(self, table: str = "runs") -> "pa.Table":
        """Return a table as it is stored: ``runs``, ``documents``, ``curves``, ``probes``, ``evaluations``, ``cells``.

        >>> umscale.load_results("density_over_size").to_arrow("cells").num_rows > 0
        True
        """
        from umscale.store.schema import TABLES

        if table not in TABLES:
            raise UserError(
                f"a store has no table {table!r}; it has {', '.join(TABLES)}{nearest(table, TABLES)}"
            )
        return self.store.read(table)

    def to_pandas(self, table: str = "runs") -> "pandas.DataFrame":
        """Return a table for pandas, which must be installed."""
        return self.to_arrow(table).to_pandas()

    def columns(self) -> "Table":
        """Return the finished runs joined with their cells, as arrays: what laws, plans and figures read.

        >>> sorted(set(umscale.load_results("density_over_size").columns()["stage"]))
        ['annealed', 'stable']
        """
        return self.store.columns()

    def answer(
        self, question: str | None = None, *, losses: Sequence[str] = ("loss",), **asked: Any
    ) -> "Answer":
        """Return the answer to a question, by default the study's: ``to_json()`` has numbers, ``blocks()`` words.

        Args:
            losses: ``loss`` for raw weights, ``loss_ema`` for averaged ones.
            asked: further fields of ``umscale.questions.question.Asked``.

        >>> found = umscale.load_results("density_over_size").answer()
        >>> found.to_json()["schema"]
        2
        """
        from umscale.questions.question import Asked, find

        options = Asked(losses=tuple(losses), read=self.store.read, **asked)
        return find(question or self.store.question()).answer(self.store.columns(), options)

    def verdict(self, question: str | None = None, *, width: int = 100) -> str:
        """Return the answer in words, as ``umscale fit`` prints it.

        >>> "supported" in umscale.load_results("enwik8_density").verdict()
        True
        """
        from umscale.render.terminal import to_text

        return to_text(self.answer(question).blocks(), width)

    def models(self) -> list[str]:
        """Return the ids of the runs whose weights are kept, for ``load_model``."""
        runs = self.store.statuses()
        return sorted(r for r in runs if self.store.files.entries(self.store.weights_folder(r)))


def load_results(source: str | os.PathLike[str]) -> Results:
    """Open a store: by folder or URL, by the name of a study swept here, or of one recorded with umscale.

    Raises:
        UserError: there is none.

    >>> umscale.load_results("enwik8_density").to_arrow().num_rows
    96
    """
    import umscale_studies
    from umscale.store.store import Store

    where = os.fspath(source)
    shipped = umscale_studies.recorded()
    for root in (where, Path("umscale-runs") / where, shipped.get(where)):
        if root is not None and (found := Store.open_if_any(root)):
            return Results(found)
    raise UserError(f"no results store at {where!r}{nearest(where, shipped)}")


def read_table(path: str | os.PathLike[str], where: str | None = None) -> "Table":
    """Return the columns of a CSV, Parquet or JSON Lines file as arrays.

    Args:
        where: rows to keep, as in ``"router == 'hash' and n > 1e6"``.

    Raises:
        UserError: the file cannot be read, or the condition names a column that is not there.
    """
    from umscale.results.source import read_table as read

    return read(os.fspath(path), where=where)


@dataclass(frozen=True, slots=True)
class LawFit:
    """A law fitted to rows, with what resampling says of its coefficients."""

    uncertainty: "Uncertainty"

    @property
    def coefficients(self) -> "dict[str, Estimate]":
        """Coefficient → value with the ends of its 95% interval."""
        return self.uncertainty.coefficients()

    def predict(self, **at: float) -> "Predictions":
        """Return what the law expects where nothing was measured: an interval for the law and one for a new run.

        Args:
            at: symbol of the law → value; axes that are left out take the values of the rows.

        Raises:
            UserError: an axis that the law does not read, or more tokens than it can speak of.
        """
        from umscale.questions.predict import points_of, predict

        points = points_of(self.uncertainty.fit, {name: [float(value)] for name, value in at.items()})
        return predict(self.uncertainty, points)


def fit_law(
    table: "Table",
    law: "str | Law",
    columns: Mapping[str, str] | None = None,
    *,
    loss: str = "loss",
    stage: str | None = None,
    compensation: str | None = None,
    draws: int | None = None,
    seed: int = 0,
    **how: Any,
) -> LawFit:
    """Fit a law to a table.

    Args:
        table: columns of equal length, as ``read_table`` or ``Results.columns`` return them.
        law: a name that ``umscale laws`` lists, or a formula such as ``"E + A*N**-a"``.
        columns: symbol → column; a column that bears a symbol's name need not be said.
        loss: column of losses, nats per token.
        stage, compensation: of a study's rows, where it has several.
        draws: of the bootstrap; None is 1000 refits, 20 000 draws of a local law; 0 gives no intervals.
        how: ``objective``, ``delta``, ``residual``, ``pins``, ``ties``, ``bounds``: see ``umscale.laws.fit.fit_law``.

    Raises:
        UserError: missing columns, values without a logarithm, fewer rows than coefficients.

    >>> n = np.array([1e6, 2e6, 4e6, 8e6, 16e6, 32e6])
    >>> found = umscale.fit_law({"N": n, "loss": 1.5 + 400 * n**-0.4}, "E + A*N**-a", draws=0)
    >>> round(found.coefficients["a"].value, 3)
    0.4
    >>> round(found.predict(N=64e6).points[0].loss.value, 2)
    1.8
    """
    from umscale.laws.expression import parse_law
    from umscale.laws.fit import fit_law as fit
    from umscale.laws.forms import LAWS
    from umscale.laws.uncertainty import bootstrap

    known = {**{name: name for name in table if name != loss}, **(columns or {})}
    chosen = law if not isinstance(law, str) or law in LAWS or law.isidentifier() else parse_law(law, known)
    if columns is None and not isinstance(chosen, str):
        columns = {symbol: symbol for symbol in chosen.symbols if symbol in table}
    fitted = fit(table, chosen, columns=columns, loss=loss, stage=stage, compensation=compensation, **how)
    return LawFit(bootstrap(fitted, n_draws=draws, seed=seed))


def plan(
    results: Results,
    *,
    max_total_params: float | None = None,
    max_active_flops: float | None = None,
    max_memory_access: float | None = None,
    **options: Any,
) -> "Plan":
    """Return the configuration of least predicted loss within limits, with its runners-up.

    Args:
        max_total_params: without embeddings.
        max_active_flops: forward, per token.
        max_memory_access: bytes that a decoding step reads in FFN and memory layers.
        options: of ``umscale.questions.plan.Preferences``, such as ``tokens`` and ``law``; ``batch`` tokens decoded
            together.

    Raises:
        UserError: no limit, one that no configuration meets, or a law that cannot rank.

    >>> study = umscale.load_results("enwik8_density")
    >>> found = umscale.plan(study, max_total_params=4e6, max_memory_access=2e6)
    >>> found.recommended.cost.total_params <= 4e6
    True
    """
    from umscale.design.study import parse
    from umscale.questions.plan import Limits, Preferences
    from umscale.questions.plan import plan as make_plan
    from umscale.results.table import numeric
    from umscale.spec import from_dict, to_dict

    table = results.columns()
    reference = parse(results.store.study_tree(), "study.toml").reference
    base = reference.model
    if not base.vocab_size and len(table["vocab_size"]):
        vocab_size = int(float(numeric(table, "vocab_size")[0]))
        base = from_dict(type(base), to_dict(base) | {"vocab_size": vocab_size})
    limits = Limits(
        total_params=max_total_params,
        active_flops=max_active_flops,
        memory_access_bytes=max_memory_access,
        batch=options.pop("batch", 16),
    )
    return make_plan(table, base, limits, Preferences(**{"seq_len": reference.data.seq_len, **options}))


def cost(model: "ModelSpec | Mapping[str, Any] | str", seq_len: int = 2048) -> Cost:
    """Return parameters, FLOPs and shares of a model, counted.

    Args:
        model: a spec, the tree of a ``[model]`` table, or the name of a preset (``umscale cost --list``).
        seq_len: matters to the attention scores alone.

    Raises:
        UserError: no such preset, or an impossible model.

    >>> umscale.cost({"d_model": 64, "n_layers": 2, "n_heads": 2, "memory": {"n_keys": 64, "top_m": 8}}).sparse_params
    524288
    """
    from umscale.accounting import cost as count
    from umscale.model.presets import preset
    from umscale.spec import ModelSpec, from_dict

    if isinstance(model, str):
        model = preset(model).model
    elif not isinstance(model, ModelSpec):
        model = from_dict(ModelSpec, model, "model")
    return count(model, seq_len)


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a run, as a record left it."""

    kept: "KeptModel"

    @property
    def record(self) -> Mapping[str, Any]:
        """The record of these weights: ``budget``, ``stage``, ``loss`` and so on."""
        return self.kept.record

    def generate(
        self, prompt: str = "", n_tokens: int = 200, sampling: "Sampling | None" = None, seed: int = 0
    ) -> str:
        """Return text after ``prompt``; ``Sampling(temperature=0.0)`` is greedy."""
        from umscale.inference.generate import encode_prompt, generate, stream_text

        tokens = encode_prompt(self.kept.tokenizer, prompt)
        return "".join(
            stream_text(self.kept.tokenizer, generate(self.kept, tokens, n_tokens, sampling, seed))
        )

    def loss(self, corpus: "str | Corpus", n_tokens: int | None = None) -> "TextLoss":
        """Return the loss on the validation split of a prepared corpus."""
        from umscale.data.corpus import open_corpus
        from umscale.inference.evaluate import evaluate_text

        return evaluate_text(self.kept, open_corpus(corpus) if isinstance(corpus, str) else corpus, n_tokens)

    def probes(self) -> list[dict[str, Any]]:
        """Return how it does on generated tasks, a row a task."""
        from umscale.inference.evaluate import evaluate_probes

        return evaluate_probes(self.kept)

    def export(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write weights, configuration, tokenizer and card to a new folder; return the files."""
        from umscale.inference.export import export

        return export(self.kept, Path(folder))


def load_model(
    source: "str | os.PathLike[str] | Results",
    run: str | None = None,
    *,
    budget: int | None = None,
    stage: str | None = None,
    averaged: bool = False,
    device: str = "cpu",
) -> Model:
    """Load the model of a run whose weights were kept (``train.keep``), or the folder of an export.

    Args:
        source: results, what ``load_results`` takes, or (without ``run``) the folder of an export.
        run: its id, or the beginning of one.
        budget, stage: of the record; by default the last one kept.
        averaged: the running average of the weights.

    Raises:
        UserError: nothing such is kept, or it is damaged.
    """
    from umscale.inference.kept import open_exported, open_kept

    if run is None:
        if isinstance(source, Results):
            raise UserError(f"say which run; weights are kept of {', '.join(source.models()) or 'none'}")
        return Model(open_exported(Path(source), device))
    results = source if isinstance(source, Results) else load_results(source)
    found = [run_id for run_id in results.store.statuses() if run_id.startswith(run)]
    if len(found) != 1:
        raise UserError(f"{len(found)} runs of {results.store.name} begin with {run!r}")
    return Model(
        open_kept(results.store, found[0], budget=budget, stage=stage, averaged=averaged, device=device)
    )
