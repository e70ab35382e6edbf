"""A command's options as one dataclass, whose fields typer reads as it would a function's parameters."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def takes_options(command: Callable[[T], None]) -> Callable[..., None]:
    """Turn a function of one dataclass into a command with a parameter for each field."""
    [options] = [hint for name, hint in get_type_hints(command).items() if name != "return"]
    hints = get_type_hints(options, include_extras=True)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(options(**given))

    def parameter(field: "dataclasses.Field[Any]") -> inspect.Parameter:
        missing = field.default is dataclasses.MISSING
        default = inspect.Parameter.empty if missing else field.default
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(field.name, kind, default=default, annotation=hints[field.name])

    parameters = [parameter(field) for field in dataclasses.fields(options)]
    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    del run.__dict__["__wrapped__"]  # or typer reads the parameters of the function inside
    return run
