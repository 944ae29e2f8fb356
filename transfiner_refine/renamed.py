"""Former names of arguments and of their values, which work until the next version."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def current(value: str, names: Mapping[str, str]) -> str:
    """The value, or the present name of a former one (``names``: old → new), with a DeprecationWarning."""
    if value in names:
        warnings.warn(f"{value} is now called {names[value]}", DeprecationWarning, stacklevel=3)
    return names.get(value, value)


def renamed(**names: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """A decorator that accepts arguments by their former names, with a DeprecationWarning; ``old="new"``."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        @functools.wraps(function)
        def call(*arguments: _P.args, **keywords: _P.kwargs) -> _T:
            for old in names.keys() & keywords.keys():
                warnings.warn(f"{old} is now called {names[old]}", DeprecationWarning, stacklevel=2)
                keywords[names[old]] = keywords.pop(old)
            return function(*arguments, **keywords)

        return call

    return decorate
