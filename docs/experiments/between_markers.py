"""Put text between two markers of a page."""

from pathlib import Path

from sa_plugin._files import write_text


def put(page: Path, begin: str, end: str, text: str) -> None:
    """Replace what stands between two markers, which stay.

    Raises:
        ValueError: The page does not have each marker once.
    """
    old = page.read_text(encoding="utf-8")
    for marker in (begin, end):
        if old.count(marker) != 1:
            raise ValueError(f"{page} has {marker!r} {old.count(marker)} times: write it once.")
    before, rest = old.split(begin)
    _, after = rest.split(end)
    write_text(page, f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


def show(text: str, into: Path | None, begin: str, end: str) -> None:
    """Print text, or put it between the markers of a page."""
    if into is None:
        print(text)
    else:
        put(into, begin, end, text)


def short(value: float, decimals: int = 3) -> str:
    """A share or a p as tables of findings have it: ".731", and 0 for none."""
    return f"{value:.{decimals}f}".removeprefix("0") if value else "0"
