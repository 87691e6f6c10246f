"""Files of annotation tools are refused with a call that reads them: the call is run as it is printed."""

import json
from pathlib import Path

import pytest

import sa_plugin as sa

TEXT, SPAN = "The dog barks at {}.", (4, 7)


def as_lines(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")


def prodigy(path, texts):
    mark = {"start": SPAN[0], "end": SPAN[1], "label": "animal", "token_start": 1}
    rows = [
        {"text": text, "_input_hash": 1, "tokens": [], "spans": [mark], "answer": "accept"} for text in texts
    ]
    as_lines(
        path, [*rows, {"text": "A wrong one.", "spans": [{**mark, "label": "wrong"}], "answer": "reject"}]
    )


def doccano(path, texts):
    as_lines(path, [{"id": k, "text": text, "label": [[*SPAN, "animal"]]} for k, text in enumerate(texts)])


def relations(path, texts):
    mark = {"id": 1, "start_offset": SPAN[0], "end_offset": SPAN[1], "label": "animal"}
    as_lines(path, [{"id": 1, "text": text, "entities": [mark], "relations": []} for text in texts])


def chats(path, texts):
    turns = [[{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": text}] for text in texts]
    rows = [{"messages": t, "label": ["animal"] if k % 2 else []} for k, t in enumerate(turns)]
    as_lines(path, rows)


def label_studio(path, texts):
    value = {"start": SPAN[0], "end": SPAN[1], "text": "dog", "labels": ["animal"]}
    tasks = [
        {
            "id": 1,
            "data": {"text": text},
            "annotations": [{"id": 9, "result": [{"type": "labels", "value": value}]}],
        }
        for text in texts
    ]
    path.write_text(json.dumps(tasks), "utf-8")


def brat(path, texts):
    path.mkdir()
    for k, text in enumerate(texts):
        (path / f"{k:02}.txt").write_text(text, "utf-8")
        (path / f"{k:02}.ann").write_text(
            f"T1\tanimal {SPAN[0]} {SPAN[1]}\tdog\nR1\tof Arg1:T1 Arg2:T1\n", "utf-8"
        )


@pytest.mark.parametrize(
    ("write", "name", "looks_like"),
    [
        (prodigy, "a.jsonl", "a file of Prodigy"),
        (doccano, "a.jsonl", "a file of doccano"),
        (relations, "a.jsonl", "a file of doccano with relations"),
        (chats, "a.jsonl", "lines of chats"),
        (label_studio, "a.json", "a file of Label Studio"),
        (brat, "a", "a folder of brat"),
    ],
)
def test_the_call_that_is_named_reads_the_file(tmp_path, write, name, looks_like):
    path, texts = tmp_path / name, [TEXT.format(k) for k in range(12)]
    write(path, texts)
    with pytest.raises(ValueError, match=f"it looks like {looks_like}: ") as refused:
        sa.load(path)
    code = str(refused.value).split(f"it looks like {looks_like}: ")[1].removesuffix(".")
    rows, call = code.split("; ")
    known = {"json": json, "Path": Path, "path": path, "ConceptData": sa.ConceptData}
    exec(rows, known)
    data = eval(call, known)
    assert data.concepts == ("animal",)
    samples = [sample for split in ("train", "cal", "test") for sample in data.split(split).samples]
    assert len(samples) == 12
    if write is not chats:
        assert {tuple(span[:2]) for sample in samples for span in sample.spans} == {SPAN}


@pytest.mark.parametrize(
    ("name", "text", "fix"),
    [
        (
            "a.xml",
            "<annotations><version>1.1</version></annotations>",
            "file of CVAT: export it as 'COCO 1.0'",
        ),
        ("a.json", '{"images": [], "annotations": []}', r"annotations of COCO: give load\('coco', folder\)"),
    ],
)
def test_pictures_go_by_coco(tmp_path, name, text, fix):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"is not read as it is; it looks like .*{fix}"):
        sa.load(tmp_path / name)
