"""Checkpoints written in the background hold what was there when they were asked for."""

import torch
from torch import nn

from umscale.files import LocalFiles
from umscale.training.checkpoint import Workspace
from umscale.training.optimiser import WeightAverage


def test_what_is_written_while_training_goes_on_is_of_the_moment_it_was_asked_for(tmp_path) -> None:
    model = nn.Linear(300, 400)
    optimizer, average = torch.optim.AdamW(model.parameters(), fused=True), WeightAverage(model, 0.1)
    workspace = Workspace(files=LocalFiles(tmp_path))
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    for step in range(3):
        workspace.save("trunk", model, optimizer, average, {"step": step}, in_background=True)
        if step < 2:
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(1)
            average.update(model, step + 1)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert workspace.exists("trunk"), "it waits for what is being written"
    assert not workspace.writing
    state = workspace.load("trunk", model, optimizer, average)
    assert state is not None
    assert (state["step"], average.steps) == (2, 2)
    for name, p in model.named_parameters():
        assert torch.equal(p, kept[name] + 1 + 1), "the last one asked for"
