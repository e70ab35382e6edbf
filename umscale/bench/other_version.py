"""A training step of another version of umscale, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from umscale.errors import UserError
from umscale.spec import ModelSpec, to_dict

_CHILD = """
import json, sys, time
import torch
from umscale.spec import *
try:
    from umscale.model.decoder import Decoder
    from umscale.training.optimiser import clip_gradients, make_optimizer
except ImportError:  # version 0.2
    from umscale.model import Decoder
    from umscale.optim import clip_gradients, make_optimizer
from umscale.machine import keep_freed_memory

asked = json.loads(sys.stdin.readline())
torch.set_num_threads(asked["threads"])
keep_freed_memory()
clock = time.process_time if asked["threads"] == 1 else time.perf_counter
fields = asked["model"]
known = lambda kind, values: kind(**{k: v for k, v in values.items() if k in kind.__dataclass_fields__})
memory = known(MemorySpec, fields["memory"]) if fields.get("memory") else None
spec = known(ModelSpec, {**fields, "ffn": known(FfnSpec, fields.get("ffn", {})), "memory": memory})
model = Decoder(spec, seed=0, max_seq_len=asked["seq_len"])
options = {"compact": True} if "compact" in model.configure_tables.__code__.co_varnames else {}
model.configure_tables(TrainSpec(), **options)
optimizer = make_optimizer(model, TrainSpec())
shape = (asked["batch"], asked["seq_len"] + 1)
tokens = torch.randint(0, spec.vocab_size, shape, generator=torch.Generator().manual_seed(0))
print("ready", flush=True)
for _ in sys.stdin:
    began = clock()
    with torch.autocast("cpu", torch.bfloat16, enabled=asked["precision"] == "bfloat16"):
        logits = model(tokens[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    model.refresh(tables=False)
    print(clock() - began, flush=True)
"""


@contextmanager
def other_version(
    tree: Path, spec: ModelSpec, batch: int, seq_len: int, precision: str, threads: int
) -> Iterator[Callable[[], float]]:
    """Run the code in ``tree``, a source tree of version 0.2 or later; a call trains once and returns its seconds.

    Raises:
        UserError: there is no such tree, or its code does not run.
    """
    if not (tree / "umscale" / "__init__.py").is_file():
        raise UserError(f"{tree}: not a source tree of umscale (it has no umscale/__init__.py)")
    path = os.pathsep.join(str(tree.resolve() / part) for part in ("", "kernels", "studies", "cli"))
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _CHILD],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    asked = {
        "model": to_dict(spec),
        "batch": batch,
        "seq_len": seq_len,
        "precision": precision,
        "threads": threads,
    }

    def say(line: str) -> str:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            answer = child.stdout.readline().strip()
        except BrokenPipeError:
            answer = ""
        if not answer:
            raise UserError(f"{tree}: its code does not run this model; what it printed is above")
        return answer

    try:
        say(json.dumps(asked))
        yield lambda: float(say("step"))
    finally:
        child.stdin.close()
        child.wait()
        child.stdout.close()
