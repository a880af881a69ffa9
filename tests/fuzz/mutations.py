"""Ways to spoil inputs: values, JSON, bytes, text and tables. Everything is drawn from a seeded `random.Random`."""

import copy
import random
from typing import Any

import pyarrow as pa

DEEP: Any = []
for _ in range(200):
    DEEP = [DEEP]

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**80, -(2**63), 0.5, 1e308, float("nan"), float("inf")),
    *("", " ", "0", "\0", "x" * 5000, "../../x", "/etc/passwd", "a\nerror: b", "\x1b[2J", "[/x]", "<script>", "\u2028"),
    *("pipe:touch PWNED", "reference://x::file:///y", "http://u:SEKRET@127.0.0.1:9/x", "-oProxyCommand=x", "\udcff"),
    *([], {}, [None], {"a": 1}, [[1]], DEEP),
)

_CHUNKS = (
    bytes(64),
    b"\xff" * 64,
    b"<html>404</html>",
    b"\xff\xd9",
    b"\0",
    b"\n",
    b"'",
    b'"',
    b",",
    b"[" * 3000,
    b"&a *a",
)


def json_value(rng: random.Random, value: Any) -> Any:
    """A copy of nested dictionaries and lists in which one thing is replaced, removed, doubled or added."""
    spoilt = copy.deepcopy(value)
    places = list(_places(spoilt))
    holder, key = rng.choice(places)
    change = rng.choice(("replace", "replace", "replace", "remove", "add", "double"))
    if change == "replace":
        holder[key] = rng.choice(NASTY)
    elif change == "remove":
        del holder[key]
    elif change == "add" and isinstance(holder, dict):
        holder[rng.choice(("extra", "", "a\nb", "x" * 300))] = rng.choice(NASTY)
    elif isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[key] = [holder[key]]
    return spoilt


def _places(value: Any) -> Any:
    """Every (container, key) in nested dictionaries and lists."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def data(rng: random.Random, content: bytes) -> bytes:
    """The bytes with one to three places flipped, cut out, overwritten, doubled, or with everything behind cut off."""
    spoilt = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        if not spoilt:
            break
        at = rng.randrange(len(spoilt))
        length = rng.choice((1, 2, 16, 512))
        change = rng.choice(("flip", "set", "insert", "remove", "double", "cut"))
        if change == "flip":
            spoilt[at] ^= 1 << rng.randrange(8)
        elif change == "set":
            chunk = rng.choice(_CHUNKS)[: len(spoilt) - at]
            spoilt[at : at + len(chunk)] = chunk
        elif change == "insert":
            spoilt[at:at] = rng.choice(_CHUNKS)
        elif change == "remove":
            del spoilt[at : at + length]
        elif change == "double":
            spoilt[at:at] = spoilt[at : at + length]
        else:
            del spoilt[at:]
    return bytes(spoilt)


def table(rng: random.Random, rows: pa.Table) -> pa.Table:
    """The table with one column dropped, doubled, of another type, or with one value replaced; or rows rearranged."""
    column = rng.randrange(rows.num_columns)
    name = rows.column_names[column]
    change = rng.choice(("drop", "cast", "value", "value", "value", "rows", "rename"))
    if change == "drop":
        return rows.drop_columns([name])
    if change == "rename":
        return rows.rename_columns([f"{other} " if other == name else other for other in rows.column_names])
    if change == "rows":
        order = [rng.randrange(len(rows)) for _ in range(rng.choice((0, 1, len(rows), len(rows) + 3)))]
        return rows.take(pa.array(order, pa.int64()))
    values = rows[name].to_pylist()
    if change == "cast":
        kind = rng.choice((pa.string(), pa.float64(), pa.list_(pa.int64()), pa.binary()))
        try:
            return rows.set_column(column, name, rows[name].cast(kind))
        except pa.ArrowException:
            return rows.set_column(column, name, pa.nulls(len(rows), kind))
    values[rng.randrange(len(values))] = rng.choice(NASTY)
    for kind in (rows.schema.field(name).type, None, pa.string()):
        try:
            return rows.set_column(column, name, pa.array(values, kind))
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            continue
    return rows.set_column(column, name, pa.nulls(len(rows), rows.schema.field(name).type))
