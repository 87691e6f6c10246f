"""Every page of docs/findings opens with its five points, and is listed with its verdict."""

import re

import docs_setup
import pytest
import quoted

FINDINGS = docs_setup.ROOT / "docs" / "findings"
POINTS = ("Question", "Answer", "How sure", "What could have been found", "Command")
PAGES = sorted(page.stem for page in FINDINGS.glob("*.md") if page.stem != "index")
MOST_WORDS = 90


def points(text: str) -> dict[str, str]:
    """The points that a page opens with, right below its title: what stands after each bold word."""
    title, _, rest = text.partition("\n\n")
    assert re.fullmatch(r"# \S[^\n]*", title), f"the page opens with {title!r}, not with its title"
    opening = quoted.COMMENT.sub("", rest.partition("\n\n")[0])
    found = re.findall(r"^- \*\*(.+?):\*\* (.+(?:\n  .+)*)$", opening, re.M)
    assert sum(len(f"- **{name}:** {said}\n") for name, said in found) == len(opening) + 1, opening
    return {name: " ".join(said.split()) for name, said in found}


@pytest.mark.parametrize("page", PAGES)
def test_a_finding_opens_with_its_five_points(page):
    said = points((FINDINGS / f"{page}.md").read_text())
    assert tuple(said) == POINTS
    assert said["Question"].endswith("?")
    scripts = re.findall(r"`(?:python (docs/experiments/\w+\.py)|sa-plugin) [^`]+`", said["Command"])
    assert scripts, f"no command in {said['Command']!r}"
    assert all((docs_setup.ROOT / script).exists() for script in scripts)
    words = {name: len(text.split()) for name, text in said.items()}
    assert max(words.values()) <= MOST_WORDS, words


def test_findings_are_listed_with_their_verdicts():
    rows = re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\) \| (\S.*) \|$", (FINDINGS / "index.md").read_text(), re.M)
    assert sorted(page for page, _ in rows) == PAGES
    assert all(len(verdict.split()) <= 25 for _, verdict in rows)
