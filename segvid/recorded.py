"""How an object was made, as plain data: `class_path` and `init_args`, as a config names it.

A task that is built in Python records its parts like this in its checkpoints, so that commands can build them again.
"""

import functools
import inspect
import sys
from typing import Any, Self

PLAIN = (type(None), bool, int, float, str)


class Recorded:
    """A base whose objects remember the arguments that they were made with, also those of a class of the user's own.

    Attributes:
        made_with: the positional and the named arguments.
    """

    made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        made = super().__new__(cls)
        object.__setattr__(made, "made_with", (args, options))  # a module takes attributes after its __init__ only
        return made


def as_config(value: Any) -> Any:
    """What a config would hold for a value: plain data, a class, a `functools.partial` of one, a `Recorded` object.

    Raises:
        ValueError: it cannot be written down: a function, another object, a class that cannot be imported.
    """
    if type(value) in PLAIN:
        return value
    if isinstance(value, list | tuple):
        return [as_config(item) for item in value]
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {key: as_config(item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class_path": class_path(value)}
    if isinstance(value, functools.partial) and isinstance(value.func, type) and not value.args:
        return {"class_path": class_path(value.func), "init_args": as_config(value.keywords)}
    if isinstance(value, Recorded):
        positional, named = value.made_with
        signature = inspect.signature(type(value))
        given = signature.bind(*positional, **named).arguments
        for name, parameter in signature.parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL and given.pop(name, None):
                raise ValueError(f"{type(value).__name__} was made with arguments that have no name")
            if parameter.kind is parameter.VAR_KEYWORD:
                given |= given.pop(name, {})
        return {"class_path": class_path(type(value)), "init_args": as_config(given)}
    raise ValueError(f"{value!r} is no plain data")


def class_path(kind: type) -> str:
    """Module and name that a class can be imported by.

    Raises:
        ValueError: it cannot: it is of a script or of a function.
    """
    found: Any = None if kind.__module__ == "__main__" else sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    if found is not kind:
        raise ValueError(f"{kind.__qualname__} cannot be imported")
    return f"{kind.__module__}.{kind.__qualname__}"
