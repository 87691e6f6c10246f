"""Pages that are to be read and are no findings stay short."""

import re

import docs_setup

MOST = 20_000
COMMENTS = re.compile(r"<!--.*?-->", re.S)
FENCES = re.compile(r"^```.*?^```", re.S | re.M)
# What a script writes or a test compares stands between two comments, the second of which says "end".
WRITTEN = re.compile(r"<!--(?:(?!-->).)*-->(?:(?!<!--).)*<!--(?:(?!-->).)*\bend\b(?:(?!-->).)*-->", re.S)
TARGETS = re.compile(r"\]\([^)]*\)")


def words(text):
    """How many words a page has: with a letter, outside code, targets of links, and what a script wrote."""
    for left_out in (FENCES, WRITTEN, COMMENTS, TARGETS):
        text = left_out.sub(" ", text)
    return sum(bool(re.search("[A-Za-z]", word)) for word in text.split())


def test_pages_to_be_read_have_at_most_twenty_thousand_words():
    counts = {
        page.name: words(page.read_text()) for page in docs_setup.pages() if page.parent.name != "findings"
    }
    table = "\n".join(f"{count:6} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))
    assert sum(counts.values()) <= MOST, f"{sum(counts.values())} words, shorten a page:\n{table}"


def test_readme_is_a_screen_and_a_half():
    assert words((docs_setup.ROOT / "README.md").read_text()) <= 600


def test_words_are_counted_outside_code_and_tables_of_scripts():
    code, table = "```python\nfour = 5\n```", "<!-- table: by x.py -->\n| six |\n<!-- end of table -->"
    assert words(f"one [two](three.md)\n{code}\n{table}\nseven 8") == 3
