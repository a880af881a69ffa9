"""Find the tests that start processes by what they call, so that `scripts/test.sh --quick` leaves out new ones, too."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

TESTS = Path(__file__).resolve().parent
STARTERS = {"subprocess", "multiprocessing", "ray"}


def starts_processes(*functions: Callable[..., object]) -> bool:
    """Return whether one of them uses a module that starts processes, by itself or by helpers in tests/.

    Processes that the code under test starts by itself are not seen.
    """
    seen: set[CodeType] = set()
    return any(_leads_there(function, set(), seen) for function in functions)


def _leads_there(value: object, names: set[str], seen: set[CodeType]) -> bool:
    """Return whether a value leads to one of STARTERS; of a module, only the attributes with these names count."""
    value = getattr(value, "__wrapped__", value)
    origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or ""
    if origin.partition(".")[0] in STARTERS:
        return True
    if isinstance(value, FunctionType):
        if value.__code__ in seen or not _is_ours(value.__code__.co_filename):
            return False
        seen.add(value.__code__)
        space, names = value.__globals__, set(_names(value.__code__))
    elif isinstance(value, ModuleType) and _is_ours(getattr(value, "__file__", None) or ""):
        space = vars(value)
    elif isinstance(value, type):
        space, names = dict(vars(value)), set(vars(value))
    else:
        return False
    return any(_leads_there(space[name], names, seen) for name in names & space.keys())


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes that a function uses, those of functions within it included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _is_ours(file: str) -> bool:
    return Path(file).is_relative_to(TESTS)
