"""The pages about the project: their links lead somewhere, nothing comes from another host, and the site builds."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from utils.files import REPO

ROOT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")  # docs/hooks.py makes them pages of the site
DOCS = sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").rglob("*.md"))
PAGES = ["README.md", *ROOT_PAGES, ".github/PULL_REQUEST_TEMPLATE.md", *DOCS]
FENCE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
LOADED = re.compile(
    r"<(?:img|script|iframe|video|audio|source|embed|object|link)\b[^>]*?\b(?:src|href|data)=[\"']?([^\"'\s>]+)"
)
REMOTE = re.compile(r"(?:https?:)?//")
FOLDERS = "models|utils|data|tools|tests|docs|examples"


def read(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The page without its blocks of code."""
    return FENCE.sub("", read(page))


def links(page: str) -> Iterator[str]:
    """Targets of links and images, those in code left out."""
    text = re.sub(r"`[^`]*`", "", prose(page))
    yield from re.findall(r"\]\(([^)\s]+)\)", text)
    yield from re.findall(r"(?:href|src)=\"([^\"]+)\"", text)


def anchors(page: str) -> set[str]:
    """What #... may name: a heading in lower case, its spaces as hyphens, other marks left out."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.M):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = next(n for n in range(100) if (f"{slug}-{n}" if n else slug) not in found)
        found.add(f"{slug}-{number}" if number else slug)
    return found


def nav(items: list[Any]) -> Iterator[str]:
    """The pages of a nav and of the groups in it."""
    for item in items:
        if isinstance(item, str):
            yield item
            continue
        for value in item.values():
            yield from nav([value] if isinstance(value, str) else value)


def config() -> dict[str, Any]:
    return yaml.safe_load(read("mkdocs.yml"))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    for link in links(page):
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = ((REPO / page).parent / name).resolve() if name else REPO / page
        if not target.exists() or (anchor and anchor not in anchors(target.relative_to(REPO).as_posix())):
            wrong.append(link)
    assert wrong == []


def test_the_check_of_links_finds_wrong_ones() -> None:
    assert {"docs/val.md", "CONTRIBUTING.md#add-a-block"} <= set(links("README.md"))
    assert {"val.md#labels-in-other-forms"} <= set(links("docs/index.md"))
    assert "labels-in-other-forms" in anchors("docs/val.md") and "measure-valpy" in anchors("docs/val.md")
    assert "labels" not in anchors("docs/val.md") and "yolov5-mobilevit" not in anchors("docs/val.md")


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page: str) -> None:
    named = set(re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/.-]+\.(?:py|yaml|md|txt|html)\b", read(page)))
    named |= set(re.findall(r"(?<![\w/.-])requirements[\w-]*\.txt", read(page)))
    assert sorted(name for name in named if not (REPO / name).exists()) == []


@pytest.mark.parametrize("page", PAGES)
def test_pages_load_nothing_from_other_hosts(page: str) -> None:
    loaded = [*LOADED.findall(prose(page)), *re.findall(r"!\[[^\]]*\]\(([^)\s]+)", prose(page))]
    assert [source for source in loaded if REMOTE.match(source)] == []


def test_every_page_is_in_the_nav_once() -> None:
    pages = list(nav(config()["nav"]))
    assert sorted(pages) == sorted([*(page.removeprefix("docs/") for page in DOCS), *map(str.lower, ROOT_PAGES)])
    assert all((REPO / page).is_file() for page in ROOT_PAGES) and pages[0] == "index.md"


def test_the_site_asks_for_nothing_that_is_fetched() -> None:
    site = config()
    assert site["strict"] is True and site["theme"]["font"] is False and site["plugins"] == ["search"]
    assert not {"extra_javascript", "extra", "repo_url"} & set(site)
    assert [css for css in site["extra_css"] if not (REPO / "docs" / css).is_file()] == []
    assert "://" not in read("docs/site.css")


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material is not installed: make docs installs it")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(REPO / "mkdocs.yml"), site_dir=str(tmp_path)))  # strict: a warning is an error
    for page in nav(config()["nav"]):
        html = (tmp_path / page).with_suffix(".html").read_text(encoding="utf-8")
        assert [source for source in LOADED.findall(html) if REMOTE.match(source)] == [], page
        assert "```" not in html, page  # a fence that was not understood


def test_versions_agree() -> None:
    from utils.files import VERSION

    project = tomllib.loads(read("pyproject.toml"))["project"]
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"]["test"]["strategy"]["matrix"]
    least, most = matrix["python"][0], matrix["python"][-1]
    assert project["requires-python"].startswith(f">={least}")
    for page in ("README.md", "CONTRIBUTING.md", "docs/index.md"):
        assert f"Python {least} to {most}" in read(page), page
    assert yaml.safe_load(read("CITATION.cff"))["version"] == VERSION
    assert f"\n## {VERSION} - 2" in read("CHANGELOG.md") and "\n## Unreleased\n" in read("CHANGELOG.md")


@pytest.mark.parametrize("name", ["bug", "feature", "question"])
def test_issue_forms_are_whole(name: str) -> None:
    form = yaml.safe_load(read(f".github/ISSUE_TEMPLATE/{name}.yml"))
    assert form["name"] and form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 2
    assert all(field["attributes"]["label"] for field in fields)
    assert any(field.get("validations", {}).get("required") for field in fields)
