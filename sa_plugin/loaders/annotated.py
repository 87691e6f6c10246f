"""What annotation tools write, told apart, so that the refusal says how each is read.

`load` does not read them itself: whether a rejected text is a negative or unknown, and which of several
annotators counts, is the user's to say. A call that begins with the plain case is named instead:
`RECIPES`, of which every one is run by the tests on a file of its tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

_LINES = "rows = [json.loads(line) for line in open(path, encoding='utf-8')]"
_TEXTS = "[r['text'] for r in rows]"
RECIPES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "Prodigy": (
            "rows = [r for r in map(json.loads, open(path, encoding='utf-8')) if r['answer'] == 'accept']",
            f"ConceptData.from_spans({_TEXTS}, "
            "[[(s['start'], s['end'], s['label']) for s in r.get('spans', [])] for r in rows])",
        ),
        "doccano": (
            _LINES,
            f"ConceptData.from_spans({_TEXTS}, [[tuple(span) for span in r['label']] for r in rows])",
        ),
        "doccano with relations": (
            _LINES,
            f"ConceptData.from_spans({_TEXTS}, "
            "[[(e['start_offset'], e['end_offset'], e['label']) for e in r['entities']] for r in rows])",
        ),
        "chats": (
            _LINES,
            "ConceptData.from_texts([r['messages'] for r in rows], [r['label'] for r in rows])",
        ),
        "Label Studio": (
            "rows = json.load(open(path, encoding='utf-8'))",
            "ConceptData.from_spans([r['data']['text'] for r in rows], [[(v['start'], v['end'], name) "
            "for a in r['annotations'][:1] for v in [one['value'] for one in a['result']] "
            "for name in v['labels']] for r in rows])",
        ),
        "brat": (
            "pairs = [(p.with_suffix('.txt').read_text('utf-8'), "
            "[line.split('\\t')[1].split() for line in p.open(encoding='utf-8') if line[0] == 'T']) "
            "for p in sorted(Path(path).glob('*.ann'))]",
            "ConceptData.from_spans([text for text, _ in pairs], "
            "[[(int(start), int(end), name) for name, start, end in marks] for _, marks in pairs])",
        ),
    }
)
"""By tool: what makes `rows` of `path`, and the call that makes data of them."""


def tool_of_row(row: Mapping[str, Any]) -> str | None:
    """Whose line of JSONL it is; None of no tool known here."""
    first = {key: many[0] for key, many in row.items() if isinstance(many, list) and many}
    if "text" in row and "answer" in row:
        return "Prodigy"
    if "text" in row and isinstance(first.get("entities"), dict) and "start_offset" in first["entities"]:
        return "doccano with relations"
    if "text" in row and isinstance(first.get("label"), list):
        return "doccano"
    return "chats" if isinstance(first.get("messages"), dict) and "text" not in row else None


def recipe(tool: str) -> str:
    """How a refusal goes on that knows the tool."""
    rows, call = RECIPES[tool]
    what = "lines of chats" if tool == "chats" else f"a file of {tool}"
    return f"it looks like {what}: {rows}; {call}."


def tool_of_path(path: Path) -> str | None:
    """What is said of a file or folder of a tool; None where it is of none known here."""
    if path.is_dir():
        return recipe("brat").replace("a file", "a folder") if any(path.glob("*.ann")) else None
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", errors="replace") as file:
        begins = file.read(4096)
    if path.suffix.lower() == ".xml" and "<annotations" in begins:
        return "it looks like a file of CVAT: export it as 'COCO 1.0' and give load('coco', folder)."
    if path.suffix.lower() == ".json" and '"data"' in begins and '"annotations"' in begins:
        return recipe("Label Studio")
    if path.suffix.lower() == ".json" and '"images"' in begins:
        return "it looks like annotations of COCO: give load('coco', folder), the folder that holds them."
    return None
