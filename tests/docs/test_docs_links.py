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
    docs = docs_setup.ROOT / "docs"
    listed = {"index"}
    for index in (docs / "index.md", docs / "findings" / "index.md"):
        trees = re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.S)
        lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
        listed |= {(index.parent / line).relative_to(docs).as_posix() for line in lines}
    pages = {page.relative_to(docs) for page in docs_setup.pages() if docs in page.parents}
    assert listed - {"reference/index"} == {page.with_suffix("").as_posix() for page in pages}
