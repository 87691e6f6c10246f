"""What README and the docs link to exists; every page is on the map."""

import re

import docs_setup
import pytest

LINK = re.compile(r"\]\(((?!http|mailto)[^)#\s]+)(?:#[^)]*)?\)")
# `docs/site_reference.py` makes these when the site is built.
BUILT = ("reference/",)


@pytest.mark.parametrize("page", docs_setup.pages(), ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for target in LINK.findall(page.read_text()):
        assert target.startswith(BUILT) or (page.parent / target).exists(), target


def test_every_page_is_on_the_map():
    index = (docs_setup.ROOT / "docs" / "index.md").read_text()
    (*trees,) = re.findall(r"```\{toctree\}\n(.*?)```", index, re.S)
    listed = {line for tree in trees for line in tree.splitlines() if line and line[0] != ":"}
    pages = {page.stem for page in docs_setup.pages() if page.parent.name == "docs"}
    assert listed - {"reference/index"} == pages - {"index"}
