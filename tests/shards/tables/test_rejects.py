from pathlib import Path

import pyarrow as pa
import pytest
from resealing import Change, put, retype, rewrite

from shards.files import ShardError
from shards.tables.rejects import count_rejects


@pytest.mark.parametrize(
    ("change", "why"),
    [(put("reason", 0, None), "column reason has nulls"), (retype("reason", pa.large_binary()), "column reason is of")],
)
def test_rejects_without_a_reason_are_refused(root: Path, change: Change, why: str) -> None:
    assert count_rejects(root) == {"empty": 1}
    rewrite(root, change, "rejects.parquet")
    with pytest.raises(ShardError, match=rf"rejects\.parquet: is not a maskfeat-shards table \({why}"):
        count_rejects(root)
