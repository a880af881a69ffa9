"""Docstrings are sentences: functions say what they do, and nothing begins with a subordinate clause."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]

PACKAGES = ("shards", "model", "pipeline", "scripts")

_CLAUSE = re.compile(r"(What|That|Those|Whether|Which|Where|How|All that|So many|Of)\b")
_NOUN = re.compile(r"(The|A|An|Every|Each|All|Bytes|Number|Names|Position|Positions|Text)\b")


def docstrings(*packages: str) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield the place, the node and the first line of every docstring in these packages."""
    for package in packages:
        for file in sorted((CHECKOUT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                    text = ast.get_docstring(node)
                    if text:
                        place = f"{file.relative_to(CHECKOUT)}:{getattr(node, 'lineno', 1)}"
                        yield place, node, text.splitlines()[0]


def is_property(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(name) for name in node.decorator_list)


def test_no_docstring_begins_with_a_clause() -> None:
    wrong = [f"{place}: {text}" for place, node, text in docstrings(*PACKAGES, "tests") if _CLAUSE.match(text)]
    assert wrong == []


def test_docstrings_of_functions_are_imperative() -> None:
    """Ruff's D401 finds the third person; this finds what begins with a noun."""
    functions = (
        (p, n, t) for p, n, t in docstrings(*PACKAGES) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    wrong = [f"{place}: {text}" for place, node, text in functions if _NOUN.match(text) and not is_property(node)]
    assert wrong == []
