"""Docstrings are plain text with backticks; this makes Sphinx show them as they are written.

A paragraph with an indented line or a bar is layout (a formula, a table): it is set as it stands.
Elsewhere the signs that reStructuredText would read as markup are escaped, but for what is in
backticks.
"""

import re

SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:", "Example:", "Examples:")
OURS = re.compile(r"sa_\w+(\.\w+)+")
MARKUP = re.compile(r"(?<!\\)([*|]|_(?=\W|$))")


def process(app, what, name, obj, options, lines):
    """Sphinx's `autodoc-process-docstring`: change the lines in place."""
    if lines and lines[0].startswith("Alias for field number"):
        return lines.clear()
    start = next((k for k, line in enumerate(lines) if line in SECTIONS), len(lines))
    head, tail = lines[:start], "\n".join(lines[start:])
    lines[:] = [line for part in paragraphs(head) for line in [*shown(part), ""]]
    code = tail.find(">>>") if ">>>" in tail else len(tail)
    lines += (escaped(tail[:code]) + tail[code:]).split("\n")


def paragraphs(lines):
    """The lines between blank ones."""
    found = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [part for part in found if part]


def shown(part):
    """A paragraph as reStructuredText."""
    if not any(line.startswith((" ", "|")) for line in part):
        return escaped("\n".join(part)).split("\n")
    return [".. code-block:: text", "", *(f"    {line}" for line in part)]


def escaped(text):
    """Text in which nothing is markup but backticks: code, or a link to one of our names."""
    pieces = re.split(r"(`+[^`]*`+)", text)
    return "".join(quoted(piece) if k % 2 else plain(piece) for k, piece in enumerate(pieces))


def plain(text):
    """Text without backticks."""
    return MARKUP.sub(r"\\\1", text)


def quoted(piece):
    """What stands in backticks: full names of ours stay links, the rest is literal."""
    inside = piece.strip("`")
    return f"`{inside}`" if OURS.fullmatch(inside) else f"``{inside}``"
