"""The generated pages of the documentation are up to date."""

import runpy
import sys

import pytest
from launching import CHECKOUT

WRITTEN = runpy.run_path(str(CHECKOUT / "scripts" / "docs_pages.py"))["PAGES"]


@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="argparse of other versions of Python prints other help")
@pytest.mark.parametrize("page", WRITTEN)
def test_generated_pages_are_current(page: str) -> None:
    text = (CHECKOUT / "docs" / "reference" / page).read_text()
    assert text == WRITTEN[page](), "run scripts/docs_pages.py"
