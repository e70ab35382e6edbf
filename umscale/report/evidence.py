"""What a report is made of: everything that `umscale fit`, `plot` and `runs` find in a store, asked for once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from umscale.design.study import parse
from umscale.errors import UserError
from umscale.questions.architectures import ArchitectureTable, compare_architectures
from umscale.questions.laws import LOSSES, Report, Settings, question_laws, report
from umscale.questions.learning_rates import RatesReport, rates_reports
from umscale.questions.memory_to_ffn import RatioVerdict, ratio_verdicts
from umscale.questions.noise import Noise, run_noise
from umscale.questions.trainer_choice import ChoiceTable, trainer_choices
from umscale.results.table import Table, levels
from umscale.store.store import STAGES, Store

if TYPE_CHECKING:
    from umscale.search.results import Found
    from umscale.search.settings import Settings as SearchSettings

T = TypeVar("T")

STAGE_WORDS: Mapping[str, str] = {"stable": "before the decay", "annealed": "after the decay"}
COMPENSATION_WORDS: Mapping[str, str] = {
    "none": "nothing compensated",
    "iso_flops": "forward FLOPs per token held equal",
    "iso_active": "active parameters held equal",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A store and what the library finds in it. Of the answers, the one that the study asks for is there."""

    store: Store
    source: str
    """What the user calls the store; stands in commands."""
    name: str
    question: str
    tree: Mapping[str, Any]
    """The study file; empty for a store without a valid one."""
    every: Table
    """``Store.columns(status=None)``."""
    table: Table
    """``Store.columns()``: finished runs."""
    cells: Sequence[Mapping[str, Any]]
    """The design's rows."""
    probes: Sequence[Mapping[str, Any]]
    """``Store.probes``: how finished runs do on generated tasks."""
    laws: Report | None
    """Of a density study: laws with diagnostics, and verdicts."""
    architectures: Mapping[str, tuple[ArchitectureTable, ...]]
    """Loss → tables."""
    ratios: tuple[RatioVerdict, ...]
    rates: tuple[RatesReport, ...]
    choices: tuple[ChoiceTable, ...]
    noise: tuple[Noise, ...]
    """Pooled over cells; none where no cell was run twice."""
    search: "tuple[SearchSettings, Found] | None"
    refused: str
    """Why the question has no answer, or the empty string."""
    unread: str
    """Why the study file says nothing, or the empty string."""
    damaged: tuple[str, ...]
    """Files that could not be read, by table and name."""

    @property
    def n_finished(self) -> int:
        """Finished runs."""
        return len(levels(self.table, "run_id"))

    @property
    def planned(self) -> frozenset[str]:
        """Runs of the design, and others that were trained; cells that cannot be built are none."""
        infeasible = {cell["run_id"] for cell in self.cells if cell["reason"]}
        return frozenset(
            {*(cell["run_id"] for cell in self.cells), *levels(self.every, "run_id")} - infeasible
        )

    def stages(self) -> tuple[str, ...]:
        """Stages recorded, the one before the decay first."""
        return tuple(stage for stage in STAGES if stage in levels(self.table, "stage"))


def gather(store: Store, source: str) -> Evidence:
    """Read a store and answer its question.

    Raises:
        UserError: the store holds neither a run nor a cell.
    """
    damaged: dict[str, None] = {}

    def reading(read: Callable[[], T]) -> T:
        found = read()
        damaged.update(dict.fromkeys("/".join(path.split("/")[-2:]) for path in store.damaged))
        return found

    tree, unread = _study(store)
    every = reading(lambda: store.columns(status=None))
    table = reading(store.columns)
    cells = reading(lambda: store.read("cells")).to_pylist()
    if not len(every["run_id"]) and not cells:
        raise UserError(f"{source} holds no runs yet: there is nothing to report; `umscale sweep` makes some")
    probes = reading(lambda: store.probes("finished"))
    question = store.question()
    laws: Report | None = None
    architectures: dict[str, tuple[ArchitectureTable, ...]] = {}
    ratios: tuple[RatioVerdict, ...] = ()
    rates: tuple[RatesReport, ...] = ()
    choices: tuple[ChoiceTable, ...] = ()
    refused = ""
    try:
        if not len(table["run_id"]):
            refused = "no run has finished yet"
        elif question == "architectures":
            architectures = {loss: compare_architectures(table, loss=loss) for loss in LOSSES}
        elif question == "memory-to-ffn":
            ratios = ratio_verdicts(table)
        elif question == "noise":
            run_noise(table)
        elif question == "trainer-choice":
            choices = tuple(
                one
                for loss in LOSSES
                for one in trainer_choices(
                    table, loss=loss, documents=reading(lambda: store.read("documents"))
                )
            )
        elif question == "learning-rates":
            rates = tuple(one for loss in LOSSES for one in rates_reports(table, loss=loss))
        else:
            laws = report(table, question_laws(question), settings=Settings(diagnostics=True))
            if question == "laws":
                laws = replace(laws, verdicts=())
    except UserError as error:
        refused = str(error)
    return Evidence(
        store=store,
        source=source,
        name=str(tree.get("name") or source.rstrip("/").rpartition("/")[2]),
        question=question,
        tree=tree,
        every=every,
        table=table,
        cells=cells,
        probes=probes,
        laws=laws,
        architectures=architectures,
        ratios=ratios,
        rates=rates,
        choices=choices,
        noise=_noise(table),
        search=_search(store, tree),
        refused=refused,
        unread=unread,
        damaged=tuple(damaged),
    )


def _noise(table: Table) -> tuple[Noise, ...]:
    try:
        return run_noise(table)
    except UserError:
        return ()


def _study(store: Store) -> tuple[dict[str, Any], str]:
    """The study file's tree, or why it says nothing."""
    try:
        tree = store.study_tree()
        parse(tree, "study.toml")
    except UserError as error:
        return {}, str(error).replace(f"{store.files.describe('study.toml')}", "study.toml")
    return tree, ""


def _search(store: Store, tree: Mapping[str, Any]) -> "tuple[SearchSettings, Found] | None":
    """What a search in this store found; None where there was none."""
    if not tree.get("search"):
        return None
    from umscale.search.bridge import Bridge
    from umscale.search.results import summarise
    from umscale.search.settings import parse_settings

    try:
        study = parse(tree, "study.toml")
        settings = parse_settings(study.search)
        bridge = Bridge(study, settings, store, store.pinned_precision() or "float32")
        return settings, summarise(bridge, bridge.look(None))
    except UserError:
        return None
