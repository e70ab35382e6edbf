"""Study files: expansion, identity, conditioning, and bad input."""

import os

import numpy as np
import pytest

from umscale.data.corpus import open_corpus
from umscale.design.conditioning import condition
from umscale.design.study import design_columns, expand, load_study, parse
from umscale.errors import UserError
from umscale.spec import to_toml

TREE = {
    "name": "t",
    "axes": {"top_m": [4, 8], "n_keys": [16, 32], "tokens": ["40k", "20k"], "seed": [0, 1]},
    "model": {
        "d_model": 32,
        "n_layers": 1,
        "n_heads": 2,
        "ffn": {"d_ffn": 64},
        "memory": {"n_keys": 16, "top_m": 4, "d_key": 8, "d_pre_value": 8, "d_value": 8},
    },
    "data": {"corpus": "kjv", "seq_len": 64},
    "train": {"batch_size": 4, "warmup_tokens": 1000},
}


def tree(**changes):
    return {**TREE, **changes}


@pytest.fixture(scope="module")
def corpus():
    return open_corpus("kjv")


def test_expansion(corpus):
    cells = expand(parse(TREE, "t.toml"), "float32", corpus)
    assert len(cells) == 8
    assert [c.seed for c in cells] == [0] * 4 + [1] * 4
    assert len({c.run_id for c in cells}) == 8
    run = cells[0].run
    assert run.train.budgets == (20_000, 40_000), "token budgets are branches of one trunk"
    assert run.train.precision == "float32"
    assert run.data.hash == corpus.hash
    assert run.model.vocab_size == corpus.vocab_size


def test_compensations_multiply_and_share_what_is_equal(corpus):
    study = parse(tree(compensation=["none", "iso_flops"], axes={"top_m": [4, 16]}), "t.toml")
    cells = expand(study, "float32", corpus)
    assert len(cells) == 4
    by_mode = {(c.targets["top_m"], c.compensation): c.run_id for c in cells}
    assert by_mode[4, "none"] == by_mode[4, "iso_flops"], "the reference needs no compensation: one run"
    assert by_mode[16, "none"] != by_mode[16, "iso_flops"]


def test_dotted_axes_reach_any_key(corpus):
    study = parse(tree(axes={"train": {"lr": [1e-3, 2e-3]}, "data.seq_len": [32, 64]}), "t.toml")
    runs = [c.run for c in expand(study, "float32", corpus)]
    assert {(r.train.lr, r.data.seq_len) for r in runs} == {(1e-3, 32), (1e-3, 64), (2e-3, 32), (2e-3, 64)}


@pytest.mark.parametrize(("mark", "end"), [("\ufeff", "\n"), ("\ufeff", "\r\n"), ("", "\r\n")])
def test_files_of_other_editors_are_read(tmp_path, mark, end):
    text = parse(tree(), "t.toml").to_toml()
    (tmp_path / "t.toml").write_bytes((mark + text.replace("\n", end)).encode())
    assert load_study(str(tmp_path / "t.toml")) == parse(tree(), "t.toml")


def test_a_pipe_is_no_study(tmp_path):
    os.mkfifo(tmp_path / "t.toml")
    with pytest.raises(UserError, match=r"t\.toml: not a regular file"):
        load_study(str(tmp_path / "t.toml"))


def test_study_toml_round_trip(corpus):
    import tomllib

    study = parse(tree(compensation=["none", "iso_active"]), "t.toml")
    again = parse(tomllib.loads(study.to_toml()), "again")
    ids = [[c.run_id for c in expand(s, "float32", corpus)] for s in (study, again)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {}}, "unknown key 'axis'.*did you mean 'axes'"),
        ({"name": "../up"}, "name ="),
        ({"axes": {"topm": [1]}}, "unknown axis 'topm'.*did you mean 'top_m'"),
        ({"axes": {"top_m": []}}, "empty"),
        ({"axes": {"top_m": [4, 4]}}, "twice"),
        ({"axes": {"top_m": [0]}}, "positive"),
        ({"axes": {"top_m": [2.5]}}, "whole numbers"),
        ({"axes": {"top_m": ["x"]}}, "not a number"),
        ({"axes": 3}, "table of lists"),
        ({"compensation": "isoflops"}, "did you mean 'iso_flops'"),
        ({"question": "why"}, "must be one of"),
    ],
)
def test_bad_study_files(changes, message):
    with pytest.raises(UserError, match=message):
        parse(tree(**changes), "t.toml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"top_m": [1000]}}, "exceeds n_keys"),
        ({"axes": {"train.rate": [1]}}, "unknown key 'train.rate'"),
        ({"axes": {"tokens": ["900G"]}}, "passes over corpus"),
        ({"data": {"corpus": "nosuch", "seq_len": 64}}, "nosuch"),
        ({"axes": {"n_heads": [3]}}, "not divisible"),
    ],
)
def test_impossible_cells(changes, message):
    study = parse(tree(**changes), "t.toml")
    with pytest.raises(UserError, match=message):
        expand(study, "float32")


def test_unknown_shipped_study_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_study("quickstar")


def test_infeasible_cells_stay_in_the_design(corpus):
    study = parse(tree(axes={"sparse_params": [16_384, 20_000]}), "t.toml")
    cells = expand(study, "float32", corpus)
    assert cells[0].run is not None
    assert cells[1].run is None
    assert "cannot be reached" in cells[1].reason
    assert cells[1].run_id != cells[0].run_id


def test_conditioning_sees_what_a_grid_separates(corpus):
    grid = parse(tree(axes={"top_m": [4, 8, 16], "n_keys": [16, 32, 64]}), "t.toml")
    design = condition(design_columns(grid, expand(grid, "float32", corpus)))
    assert design.condition == pytest.approx(1, abs=1e-6)
    assert any("Separates density" in s for s in design.statements)
    tied = parse(tree(axes={"density": [0.01], "n_keys": [20, 40, 80]}), "t.toml")
    design = condition(design_columns(tied, expand(tied, "float32", corpus)))
    assert any("Cannot separate density" in s for s in design.statements)


def test_conditioning_of_nothing_and_of_dependent_axes():
    assert condition({"top_m": [8.0, 8.0]}).rank == 0
    x = np.array([1.0, 2, 4, 8])
    z = np.array([1.0, 8, 1, 8])
    design = condition({"top_m": x, "sparse_params": z, "d_model": x * z})
    assert design.rank == 2
    assert design.condition == float("inf")


def test_architectures_are_laid_over_the_reference():
    study = load_study("enwik8_architectures", ["data.corpus=kjv", "data.validation_tokens=4k"])
    assert study.question == "architectures"
    assert parse(study.to_dict(), "again").to_dict() == study.to_dict()
    cells = expand(study, "float32")
    by_name = {cell.targets["architecture"]: cell for cell in cells}
    assert all(cell.run is not None for cell in cells), [cell.reason for cell in cells]
    names = ["dense", "moe_top2", "moe_top8", "ultramem", "ultramem_v2"]
    assert list(by_name) == names
    models = {name: cell.run.model for name, cell in by_name.items()}
    assert models["dense"].architecture == "dense"
    assert (models["moe_top2"].ffn.top_k, models["moe_top8"].ffn.top_k) == (2, 8)
    assert models["ultramem"].memory.kind == "ultramem"
    flops = [cell.solved.cost.flops_per_token for cell in by_name.values()]
    assert max(flops) / min(flops) < 1.02
    totals = [by_name[name].solved.cost.total_params for name in names[1:]]
    assert max(totals) / min(totals) < 1.02


def test_a_baseline_is_an_architecture_and_no_part_of_the_run():
    data = {"corpus": "kjv", "validation_tokens": 4096}
    tree = {"name": "x", "architectures": {"a": {}, "b": {"baseline": "a"}}, "data": data}
    cells = expand(parse(tree, "x.toml"), "float32")
    assert len({cell.run_id for cell in cells}) == 1
    assert parse(tree, "x.toml").to_dict()["architectures"]["b"]["baseline"] == "a"
    with pytest.raises(UserError, match="baseline = 'aa' is none of the study's architectures"):
        parse(tree | {"architectures": {"a": {}, "b": {"baseline": "aa"}}}, "x.toml")


def test_unknown_architectures_are_named():
    tree = {"name": "x", "architectures": {"moe": {"model": {}}}, "axes": {"architecture": ["mow"]}}
    with pytest.raises(UserError, match="did you mean 'moe'"):
        parse(tree, "x.toml")
    with pytest.raises(UserError, match="may hold model and train"):
        parse({"name": "x", "architectures": {"moe": {"ffn": {}}}}, "x.toml")


@pytest.mark.parametrize("corpus", ["../elsewhere", "/somewhere/else", "inside/../../out", "link"])
@pytest.mark.parametrize("place", ["data", "axes", "cells", "architectures", "search"])
def test_a_study_file_does_not_reach_outside_its_folder(tmp_path, corpus, place):
    folder = tmp_path / "studies"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    corpus = "link/x" if corpus == "link" else corpus
    tree = {
        "data": {"data": {"corpus": corpus}},
        "axes": {"axes": {"data.corpus": ["kjv", corpus]}},
        "cells": {"cells": [{"data.corpus": corpus}]},
        "architectures": {"architectures": {"a": {"data": {"corpus": corpus}}}},
        "search": {"search": {"space": {"data": {"corpus": ["kjv", corpus]}}}},
    }[place]
    (folder / "s.toml").write_text(to_toml({"name": "s", **tree}))
    with pytest.raises(UserError, match="outside the study's folder"):
        load_study(str(folder / "s.toml"))


def test_a_corpus_beside_the_study_is_found_from_anywhere_and_others_when_said(tmp_path):
    (tmp_path / "s.toml").write_text(to_toml({"name": "s", "data": {"corpus": "corpora/mine"}}))
    assert load_study(str(tmp_path / "s.toml")).reference.data.corpus == str(tmp_path / "corpora" / "mine")
    said = load_study(str(tmp_path / "s.toml"), ["data.corpus=/somewhere/else"])
    assert said.reference.data.corpus == "/somewhere/else"
