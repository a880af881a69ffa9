"""The documentation: it builds as a site without a broken link, and every page and picture is where links say."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import CHECKOUT

DOCS = CHECKOUT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [CHECKOUT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")] + PAGES
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchor(heading: str) -> str:
    """Return the anchor of a heading, as both GitHub and the site make it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def site(folder: Path, text: str = "") -> "subprocess.CompletedProcess[str]":
    """Build the site in `folder`, with `text` added to its first page."""
    shutil.copytree(DOCS, folder / "docs")
    shutil.copy(CHECKOUT / "mkdocs.yml", folder)
    with (folder / "docs" / "index.md").open("a") as page:
        page.write(text)
    command = [str(Path(sys.executable).parent / "zensical"), "build", "--strict"]
    return subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)


def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    built = site(tmp_path)
    assert built.returncode == 0 and "No issues found" in built.stdout, built.stdout
    for page in PAGES:
        html = (tmp_path / "site" / page.relative_to(DOCS)).with_suffix(".html").read_text()
        assert not re.search(r'<(?:script|img)[^>]+src="?(?:https?:)?//|<link[^>]+stylesheet[^>]+//', html), page


@pytest.mark.parametrize("link", ["nowhere.md", "how-to/launching.md#nowhere"])
def test_a_broken_link_fails(tmp_path: Path, link: str) -> None:
    built = site(tmp_path, f"\n[A link]({link}).\n")
    assert built.returncode == 1 and "1 issue found" in built.stdout


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((CHECKOUT / "mkdocs.yml").read_text())["nav"]

    def listed(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [page for child in children for page in listed(child)]  # type: ignore[attr-defined]

    assert sorted(listed(nav)) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_links_lead_to_files_and_headings(text: Path) -> None:
    for link in LINK.findall(prose(text.read_text())):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, wanted = link.partition("#")
        target = (text.parent / name).resolve() if name else text
        assert target.exists(), f"{text.name}: {link}"
        if wanted:
            headings = re.findall(r"^#+ (.+)$", prose(target.read_text()), re.MULTILINE)
            assert wanted in map(anchor, headings), f"{text.name}: {link}"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_prose_fits_in_120_columns(text: Path) -> None:
    lines = prose(text.read_text()).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_mentions_in_the_code_name_pages_that_exist() -> None:
    for folder in ("pipeline", "model", "shards", "scripts", "tests"):
        for file in (CHECKOUT / folder).rglob("*"):
            if file.suffix in {".py", ".sh", ".yaml"}:
                for page in re.findall(r"\bdocs/[\w/-]+\.(?:md|png|gif)\b", file.read_text()):
                    assert (CHECKOUT / page).exists(), f"{file.relative_to(CHECKOUT)} mentions {page}"
