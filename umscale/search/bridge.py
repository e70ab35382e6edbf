"""Between a study and Optuna: distributions from the space, a cell from a trial, a trial from a finished run.

Every trial is a cell of the store, so laws are fitted to it like to any other. What a trial needs to be told, a
budget it breaks or a value it already has, is known before anything is trained.
"""

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umscale.accounting import memory_access_bytes
from umscale.data.corpus import Corpus, open_corpus
from umscale.design.study import Cell, Study, expand
from umscale.errors import UserError
from umscale.search.settings import MEASURED, Range, Settings, access_batch
from umscale.spec import RunSpec
from umscale.store.store import Store
from umscale.urls import redact

if TYPE_CHECKING:
    import optuna

JOURNAL = "search/journal.log"
"""Default storage, inside the store."""


class Bridge:
    """A study with its search settings, opened on a store.

    Args:
        precision: what ``auto`` stands for in this store.
        corpus: the opened corpus; None opens it when a cell is asked for.
    """

    def __init__(
        self, study: Study, settings: Settings, store: Store, precision: str, corpus: Corpus | None = None
    ) -> None:
        if not study.reference.train.budgets:
            raise UserError("a search needs a token budget: set axes.tokens")
        self.study, self.settings, self.store = study, settings, store
        self.precision, self.corpus = precision, corpus
        taken = [name for name in settings.space if name in study.axes]
        if taken:
            raise UserError(f"{taken[0]!r} is in [axes] and in [search.space]; leave it in one of them")
        for name, values in study.axes.items():
            if name not in ("tokens", "seed") and len(values) > 1:
                raise UserError(
                    f"axes.{name} lists {len(values)} values: in a search, move it to [search.space]"
                )
        if study.cells:
            raise UserError("[[cells]] are points of a sweep: leave them out of a search")
        if len(study.compensation) > 1:
            raise UserError("a search holds one thing constant: name one compensation")

    def cell(self, params: Mapping[str, Any]) -> Cell:
        """The cell of a trial's parameters, for the study's first seed."""
        seed = self.study.axes.get("seed", (0,))[0]
        fixed = {name: values for name, values in self.study.axes.items() if name != "seed"}
        point = {name: (value,) for name, value in params.items()}
        one = dataclasses.replace(self.study, axes={**fixed, **point, "seed": (seed,)})
        self.corpus = self.corpus or open_corpus(self.study.reference.data.corpus)
        found = expand(one, self.precision, self.corpus)[0]
        return dataclasses.replace(found, varied=tuple(self.settings.space))

    def excess(self, run: RunSpec) -> dict[str, float]:
        """Constraint → by which share of its limit it is exceeded; zero or less is feasible."""
        return {name: cost_of(run, name) / limit - 1 for name, limit in self.settings.constraints.items()}

    def values(self, run: RunSpec) -> list[float] | None:
        """The objectives of a finished run, in order; None when the store does not hold it finished."""
        record = self.store.final_record(run.run_id)
        if record is None:
            return None
        return [
            float(record[name]) if name in MEASURED else cost_of(run, name)
            for name in self.settings.objectives
        ]

    # -- Optuna -------------------------------------------------------------------------------------------

    def distributions(self) -> "dict[str, optuna.distributions.BaseDistribution]":
        """The space as Optuna distributions."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, optuna.distributions.BaseDistribution] = {}
        for name, entry in self.settings.space.items():
            if not isinstance(entry, Range):
                found[name] = CategoricalDistribution(entry)
            elif entry.whole:
                found[name] = IntDistribution(
                    int(entry.low), int(entry.high), log=entry.log, step=int(entry.step or 1)
                )
            else:
                found[name] = FloatDistribution(entry.low, entry.high, log=entry.log, step=entry.step)
        return found

    def sampler(self, entropy: Sequence[int]) -> "optuna.samplers.BaseSampler":
        """The sampler by name; ``entropy`` seeds it."""
        import numpy as np
        from optuna import samplers

        seed = int(np.random.SeedSequence(list(entropy)).generate_state(1)[0])
        try:
            with quiet():
                match self.settings.sampler:
                    case "tpe":
                        return samplers.TPESampler(seed=seed, multivariate=True)
                    case "gp":
                        return samplers.GPSampler(seed=seed)
                    case "nsga2":
                        return samplers.NSGAIISampler(seed=seed)
                    case "nsga3":
                        return samplers.NSGAIIISampler(seed=seed)
                    case "cmaes":
                        return samplers.CmaEsSampler(seed=seed)
                    case "qmc":  # all workers walk one sequence, which its seed names
                        return samplers.QMCSampler(seed=int(entropy[0]), scramble=True)
                    case "random":
                        return samplers.RandomSampler(seed=seed)
                    case _:
                        return samplers.BruteForceSampler(seed=seed)
        except ImportError as error:
            raise UserError(f"sampler {self.settings.sampler!r} needs a package: {error}") from None

    def pruner(self) -> "optuna.pruners.BasePruner":
        """The pruner by name; reports are steps 1 to ``umscale.search.job.POINTS`` of the trunk."""
        from optuna import pruners

        with quiet():
            match self.settings.pruner:
                case "median":
                    return pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=4)
                case "hyperband":
                    return pruners.HyperbandPruner(min_resource=2, max_resource=20)
                case "asha":
                    return pruners.SuccessiveHalvingPruner(min_resource=2)
                case "wilcoxon":
                    return pruners.WilcoxonPruner()
                case _:
                    return pruners.NopPruner()

    def open(self, storage: str | None) -> "optuna.Study":
        """The Optuna study in its storage, made where there is none; raises ``UserError`` when it cannot be."""
        import optuna

        opened = open_storage(self.store, storage)
        with quiet():
            try:
                return optuna.create_study(
                    storage=opened,
                    study_name=self.study.name,
                    directions=["minimize"] * len(self.settings.objectives),
                    pruner=self.pruner(),
                    load_if_exists=True,
                )
            except UserError:
                raise
            except Exception as error:
                raise _unopened(storage, error) from None

    def look(self, storage: str | None) -> "optuna.Study":
        """The Optuna study as it is, written to by nobody here; raises ``UserError`` when there is none."""
        import optuna

        if storage is None and not self.store.files.exists(JOURNAL):
            raise UserError(f"no search has been run in {self.store.name}; leave out --show to begin one")
        opened = open_storage(self.store, storage)
        with quiet():
            try:
                return optuna.load_study(study_name=self.study.name, storage=opened)
            except Exception as error:
                raise _unopened(storage, error) from None

    def warm_start(self, optuna_study: "optuna.Study") -> int:
        """Add finished runs of the store that lie in the space and no trial has; returns how many."""
        import optuna

        known = {t.user_attrs.get("run_id") for t in optuna_study.get_trials(deepcopy=False)}
        distributions = self.distributions()
        added = 0
        for run in self.store.specs("finished"):
            if run.run_id in known:
                continue
            params = self._params(run, distributions)
            if params is None:
                continue
            try:
                same = self.cell(params)
            except UserError:
                continue
            values = self.values(run) if same.run_id == run.run_id else None
            if values is None:
                continue
            optuna_study.add_trial(
                optuna.trial.create_trial(
                    params=params,
                    distributions=distributions,
                    values=values,
                    user_attrs={"run_id": run.run_id, "label": same.label, "source": "store"},
                    constraints=self.excess(run) or None,
                )
            )
            known.add(run.run_id)
            added += 1
        return added

    def _params(self, run: RunSpec, distributions: "Mapping[str, Any]") -> dict[str, Any] | None:
        """What the space's names are in a run; None where one is not there or out of range."""
        found = {}
        for name, distribution in distributions.items():
            value = _value(run, name)
            if value is None:
                return None
            try:
                inside = distribution._contains(distribution.to_internal_repr(value))
            except (ValueError, TypeError):
                return None
            if not inside:
                return None
            found[name] = value
        return found


def cost_of(run: RunSpec, name: str) -> float:
    """A cost of a run that needs no training: parameters, FLOPs, or bytes read by a decoding step."""
    from umscale.accounting import cost

    batch = access_batch(name)
    if batch is not None:
        return float(memory_access_bytes(run.model, batch))
    return float(getattr(cost(run.model, run.data.seq_len), name))


def _value(run: RunSpec, name: str) -> Any:
    """The value of an axis or a dotted path in a run; None where the run has none."""
    if "." in name:
        node: Any = run
        for part in name.split("."):
            node = getattr(node, part, None)
        return node
    from umscale.accounting import cost

    parts = (run.model.memory, run.model.ffn, run.model, cost(run.model, run.data.seq_len))
    return next((getattr(part, name) for part in parts if hasattr(part, name)), None)


def open_storage(store: Store, storage: str | None) -> "optuna.storages.BaseStorage":
    """The store's own journal, or any Optuna RDB by URL; raises ``UserError`` when it cannot be opened."""
    from optuna import storages

    from umscale.search.journal import Journal

    if storage is None and not store.is_folder:
        raise UserError(
            f"a journal file needs a folder, and {store.name} is none: give a database, as in "
            "--storage postgresql://user@host/optuna"
        )
    with quiet():
        try:
            if storage is None or "://" not in storage:
                return storages.JournalStorage(Journal(Path(storage or store.root / JOURNAL)))
            return storages.RDBStorage(storage)
        except UserError:
            raise
        except Exception as error:  # a driver's own exceptions, of any package
            raise _unopened(storage, error) from None


def _unopened(storage: str | None, error: Exception) -> UserError:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return UserError(f"the storage {redact(storage or JOURNAL)} cannot be opened: {redact(first)[:200]}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep Optuna's progress lines and notices of experimental parts off the screen."""
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
