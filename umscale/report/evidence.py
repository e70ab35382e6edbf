"""What a report is made of: everything that `umscale fit`, `plot` and `runs` find in a store, asked for once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from umscale.design.study import parse
from umscale.errors import UserError
from umscale.laws.sections import Report, Settings
from umscale.questions.noise import Noise, run_noise
from umscale.questions.question import Answer, Asked, find
from umscale.results.table import Table, levels
from umscale.store.schema import STAGES
from umscale.store.store import MEASURED, Store

if TYPE_CHECKING:
    from umscale.search.results import Found
    from umscale.search.settings import Settings as SearchSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A store and what the library finds in it."""

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
    """``Store.columns()``: runs that are finished, or paused."""
    cells: Sequence[Mapping[str, Any]]
    """The design's rows."""
    probes: Sequence[Mapping[str, Any]]
    """``Store.probes``: how these runs do on generated tasks."""
    answer: Answer | None
    """Of the study's question; laws are with diagnostics."""
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
    def laws(self) -> Report | None:
        """The laws that the answer rests on."""
        return self.answer.laws if self.answer else None

    @property
    def n_finished(self) -> int:
        """Runs in the comparison: finished ones, and those that a sweep was told to pause."""
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
    probes = reading(lambda: store.probes(MEASURED))
    question = store.question()
    answer: Answer | None = None
    refused = ""
    try:
        if not len(table["run_id"]):
            refused = "no run has finished yet"
        else:
            answer = find(question).answer(table, Asked(settings=Settings(diagnostics=True), read=store.read))
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
        answer=answer,
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
