"""The trial of docs/findings/prompting.md: SmolLM2-135M-Instruct asked about the embedded data.

python docs/experiments/weights.py --model smollm2
python docs/experiments/prompting_runs.py ask cal --every 3 --out runs
python docs/experiments/prompting_runs.py ask test --every 3 --out runs
python docs/experiments/prompting_runs.py detect --out runs
python docs/experiments/prompting_runs.py wordings --out runs
python docs/experiments/prompting_runs.py tables runs --into docs/findings/prompting.md

`ask` writes the answers about every third passage of a split (`--every 1` asks about all);
calibration needs p(yes) alone, so replies are written for test only. `detect` gives every method
those calibration and test passages and no others: separators and prototypes of one block of the
same model, fitted on all train passages, beside its answers. `wordings` asks about a few train
passages in other words. One core is enough: `ask` takes one to
three seconds a passage. Everything is seeded; nothing is downloaded here.
"""

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from between_markers import show
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM, AutoTokenizer
from trials import setting, signed, some_of, summed_up, unsigned, write

from sa_plugin._files import write_text
from sa_plugin.data import ConceptData
from sa_plugin.detection import Evaluation, calibrate
from sa_plugin.host import attach, find_folder
from sa_plugin.loaders import load
from sa_plugin.scores import PROMPT_P, TEMPLATE, PromptAnswers, Wording, prompt, with_answers
from sa_plugin.show import kind_label
from sa_plugin.stages import Graph, Plan, markdown
from sa_transformer_lens.host import load_bridge

BEGIN = "<!-- tables: written by docs/experiments/prompting_runs.py tables -->"
END = "<!-- end of tables -->"
REPLY_TOKENS = {"cal": 0, "test": 4}
LAYER = 14
KINDS = ("separator", "prototype")
WORDINGS = (
    TEMPLATE,
    "Passage: {text}\n\nQuestion: Does the passage mention any {concept}? Answer Yes or No.\nAnswer:",
    "Read this passage.\n\n{text}\n\nThe concepts to look for are: {concepts}.\n"
    'Is the concept "{concept}" present in the passage? Answer with Yes or No only.',
    "Answer Yes or No.\n\nPassage: {text}\n\nConcepts: {concepts}.\n\n"
    "Does the passage mention something of the concept {concept}? Reply with one word: Yes or No.",
    "Passage:\n{text}\n\nConcepts: {concepts}.\n\nYes or no: does the passage mention the concept {concept}?",
)


def instructed() -> tuple[Any, Any]:
    """The model that is asked, and its tokenizer."""
    place = find_folder("smollm2")
    model = AutoModelForCausalLM.from_pretrained(place, dtype="float32").train(False)
    return model, AutoTokenizer.from_pretrained(place)


def save(answers: PromptAnswers, path: Path, about: dict[str, Any]) -> None:
    """Answers as JSON, with what they are of."""
    record = {
        **about,
        "samples": [s.id for s in answers.samples],
        "concepts": answers.concepts,
        "p_yes": answers.p_yes.tolist(),
        "mass": answers.mass.tolist(),
        "replies": answers.replies,
        "template": answers.template,
        "tokens": answers.tokens,
    }
    write_text(path, json.dumps(record) + "\n")


def load_answers(path: Path, data: ConceptData) -> tuple[PromptAnswers, dict[str, Any]]:
    """The answers that `ask` wrote."""
    record = json.loads(path.read_text())
    known = {s.id: s for s in data.samples}
    answers = PromptAnswers(
        tuple(known[i] for i in record["samples"]),
        tuple(record["concepts"]),
        np.array(record["p_yes"]),
        np.array(record["mass"]),
        tuple(tuple(row) for row in record["replies"]),
        record["template"],
        "SmolLM2-135M-Instruct",
        record["tokens"],
    )
    return answers, record


def ask(arguments: argparse.Namespace) -> None:
    """Ask about one split."""
    began = time.time()
    model, tokenizer = instructed()
    data = load("supersense")
    samples = data.split(arguments.split).samples[:: arguments.every]
    answers = prompt(
        model,
        tokenizer,
        samples,
        data.concepts,
        reply_tokens=REPLY_TOKENS[arguments.split],
        progress=arguments.progress,
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {"split": arguments.split, "every": arguments.every, "data": data.hash[:12]}
    about["seconds"] = round(time.time() - began)
    save(answers, arguments.out / f"answers_{arguments.split}.json", about)
    print(repr(answers), f"{about['seconds']} s", flush=True)


def wordings(arguments: argparse.Namespace) -> None:
    """p(yes) of other words on a few train passages: its mass, and its AUROC against labels."""
    model, tokenizer = instructed()
    data = load("supersense")
    samples = data.train.samples[:: len(data.train) // arguments.samples][: arguments.samples]
    truth = np.array([[c in s.positive for c in data.concepts] for s in samples])
    both = truth.any(0) & ~truth.all(0)
    rows = []
    for template in WORDINGS:
        found = prompt(
            model,
            tokenizer,
            samples,
            data.concepts,
            wording=Wording(template),
            reply_tokens=0,
            progress=False,
        )
        scores = [roc_auc_score(truth[:, c], found.p_yes[:, c]) for c in np.flatnonzero(both)]
        rows.append(
            {
                "template": template,
                "mass": float(found.mass.mean()),
                "p_yes": float(found.p_yes.mean()),
                "auroc": float(np.mean(scores)),
            }
        )
        print(rows[-1], flush=True)
    record = {"samples": len(samples), "concepts": int(both.sum()), "rows": rows}
    write(record, arguments.out / "wordings.json")


def asked_about(data: ConceptData, answers: list[PromptAnswers]) -> ConceptData:
    """All train passages, and the calibration and test passages that were asked about."""
    wanted = {sample.id for one in answers for sample in one.samples}
    rows = zip(data.samples, data.split_of, strict=True)
    kept = [(sample, of) for sample, of in rows if of == "train" or sample.id in wanted]
    return some_of(data, kept, name="supersense, passages asked about")


def detect(arguments: argparse.Namespace) -> None:
    """Both methods of the answers beside those that read block 14."""
    began = time.time()
    full = load("supersense")
    found = [load_answers(arguments.out / f"answers_{name}.json", full) for name in REPLY_TOKENS]
    answers = [one for one, _ in found]
    data = asked_about(full, answers)
    host = attach(load_bridge("smollm2"))
    made = Graph(host, data, Plan(KINDS, [LAYER]))
    record: dict[str, Any] = {"kinds": {}}
    for kind in KINDS:
        table = with_answers(made.table(kind), *answers)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector = calibrate(host, data, made.bank(kind), scores=table)
        evaluation = detector.evaluate(data.test, scores=table)
        print(evaluation.summary(), flush=True)
        record["kinds"][kind] = summed_up(evaluation)
    record["asked"] = {
        name: _about(one, about)
        for one, (name, about) in zip(answers, ((r["split"], r) for _, r in found), strict=True)
    }
    record["concepts"] = _by_concept(evaluation, answers[1])
    record["settings"] = setting(data, LAYER, began, full)
    write(record, arguments.out / "prompting.json")


def _about(answers: PromptAnswers, record: dict[str, Any]) -> dict[str, Any]:
    said = float(answers.said_yes.mean()) if answers.replies else None
    first: dict[str, int] = {}
    for reply in (reply for row in answers.replies for reply in row):
        first[reply] = first.get(reply, 0) + 1
    commonest = sorted(first.items(), key=lambda pair: -pair[1])[:4]
    return {
        "passages": len(answers.samples),
        "tokens": answers.tokens,
        "seconds": record["seconds"],
        "mass": float(answers.mass.mean()),
        "p_yes": float(answers.p_yes.mean()),
        "sd": float(answers.p_yes.std()),
        "said_yes": said,
        "replies": commonest,
    }


def _by_concept(evaluation: Evaluation, answers: PromptAnswers) -> list[dict[str, Any]]:
    tail, asked = evaluation.of("SuperActivators"), evaluation.of(PROMPT_P)
    return [
        {
            "concept": c,
            "positive": evaluation.n_positive[c],
            "p_yes": float(answers.p_yes[:, answers.concepts.index(c)].mean()),
            "auroc": asked.concept["auroc"].estimate[k],
            "tail_auroc": tail.concept["auroc"].estimate[k],
        }
        for k, c in enumerate(evaluation.concepts)
    ]


def tables(arguments: argparse.Namespace) -> None:
    """All results as Markdown, between the markers of a file or on the screen."""
    record = json.loads((arguments.folder / "prompting.json").read_text())
    other = json.loads((arguments.folder / "wordings.json").read_text())
    text = "\n\n".join([*_sections(record), *_wordings(other)])
    show(text, arguments.into, BEGIN, END)


def _sections(record: dict[str, Any]) -> list[str]:
    about = record["settings"]
    asked = [
        [
            name,
            str(a["passages"]),
            f"{a['tokens']:,}",
            str(a["seconds"]),
            f"{a['mass']:.3f}",
            f"{a['p_yes']:.3f}",
            f"{a['sd']:.3f}",
            "not written" if a["said_yes"] is None else f"{a['said_yes']:.3f}",
        ]
        for name, a in record["asked"].items()
    ]
    commonest = ", ".join(f"{text!r} ({n})" for text, n in record["asked"]["test"]["replies"])
    found = [
        f"{len(record['concepts'])} questions a passage, float32, one shared core:",
        markdown(
            [
                "split",
                "passages",
                "tokens read",
                "seconds",
                "mass of yes and no",
                "mean p(yes)",
                "sd",
                "replies with Yes",
            ],
            asked,
        ),
        f"Commonest replies on test: {commonest}.",
    ]
    for kind, rows in record["kinds"].items():
        found += [
            f"### {kind_label(kind).capitalize()}s",
            f"Weighted by positive samples, on {about['test']} test passages of "
            f"{about['documents']} documents; thresholds chosen on {about['cal']} calibration "
            f"passages; token methods: {kind} at block {about['layer']}. Data {about['data']}.",
            markdown(
                ["method", "F1", "precision", "recall", "AUROC", "F1 - SuperActivators"],
                [_method(name, row) for name, row in rows.items()],
            ),
        ]
    rows = [
        [r["concept"], str(r["positive"]), f"{r['p_yes']:.3f}", f"{r['auroc']:.3f}", f"{r['tail_auroc']:.3f}"]
        for r in record["concepts"]
    ]
    names = ["concept", "positive", "mean p(yes)", "AUROC of p(yes)", "AUROC of SuperActivators"]
    return [*found, "### By concept", f"Token method: {KINDS[-1]}.", markdown(names, rows)]


def _wordings(record: dict[str, Any]) -> list[str]:
    rows = [
        [f"`{json.dumps(r['template'])[1:-1]}`", f"{r['mass']:.3f}", f"{r['p_yes']:.3f}", f"{r['auroc']:.3f}"]
        for r in record["rows"]
    ]
    about = (
        f"On {record['samples']} train passages (the first is the template; AUROC: "
        f"plain mean over {record['concepts']} concepts):"
    )
    return ["### Other words", about, markdown(["wording", "mass", "mean p(yes)", "AUROC of p(yes)"], rows)]


def _method(name: str, row: dict[str, Any]) -> list[str]:
    by = row["difference"]
    change = signed(by) if by else ""
    return [name, unsigned(row["f1"]), *(f"{row[m]:.3f}" for m in ("precision", "recall", "auroc")), change]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("ask")
    one.add_argument("split", choices=list(REPLY_TOKENS))
    one.add_argument("--every", type=int, default=3)
    one.add_argument("--out", type=Path, default=Path("runs"))
    one.add_argument("--progress", action="store_true")
    one.set_defaults(run=ask)
    two = commands.add_parser("detect")
    two.add_argument("--out", type=Path, default=Path("runs"))
    two.set_defaults(run=detect)
    four = commands.add_parser("wordings")
    four.add_argument("--samples", type=int, default=40)
    four.add_argument("--out", type=Path, default=Path("runs"))
    four.set_defaults(run=wordings)
    three = commands.add_parser("tables")
    three.add_argument("folder", type=Path)
    three.add_argument("--into", type=Path)
    three.set_defaults(run=tables)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
