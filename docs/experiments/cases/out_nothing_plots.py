import transformers as tr
from common import SCRATCH, my_detector, sa, tryit
from mydata import ROWS
from sa_plugin.host import find_folder as folder
from sa_transformer_lens.host import load_bridge

data, _, host, bank, sc, det = my_detector()
print("#### ten mistakes in Python")
tryit("typo kind", lambda: sa.fit(host, data, "seperator"))
tryit("typo arg", lambda: sa.fit(host, data, "separator", layer=[4]))
tryit("typo arg calibrate", lambda: sa.calibrate(host, data, bank, score=sc))
tryit("wrong layer", lambda: sa.fit(host, data, "separator", layers=[30]))
tryit(
    "hook name as hook_point", lambda: sa.fit(host, data, "separator", hook_point="blocks.4.hook_resid_post")
)
tryit("raw HF model", lambda: sa.attach(tr.AutoModelForCausalLM.from_pretrained(folder("smollm2"))))
tryit("attach a path", lambda: sa.attach(str(folder("smollm2"))))
tryit("unequal lengths", lambda: sa.ConceptData.from_words([["a", "b"]], [["x"]]))
tryit(
    "2 samples of a concept",
    lambda: sa.ConceptData.from_words(
        [r[1] for r in ROWS] + [["a", "quokka", "ran"], ["b", "quokka", "sat"]],
        [r[2] for r in ROWS] + [[None, "rare", None]] * 2,
    ),
)
tryit(
    "span mid word",
    lambda: sa.ConceptData.from_spans(
        ["The dog slept well %d" % i for i in range(12)],
        [[(5, 7, "animal")] if i % 2 else [] for i in range(12)],
    ).train.samples[0],
)
tryit("span swapped", lambda: sa.ConceptData.from_spans(["The dog slept"] * 6, [[(7, 4, "animal")]] * 6))
tryit("evaluate on train", lambda: det.evaluate(data.train))
tryit("evaluate without scores", lambda: det.evaluate(data.test))
tryit(
    "find unknown concept objective",
    lambda: sa.objective(
        "superactivator", detector=det, concept="anmal", sample=data.test.samples[0], host=host
    ),
)
tryit(
    "objective no SA in sample",
    lambda: sa.objective("superactivator", detector=det, concept="anger", sample="The cat sat.", host=host),
)
tryit(
    "attribute unknown method",
    lambda: sa.attribute(
        host,
        sa.objective("global", detector=det, concept="anger", sample=data.test.samples[0], host=host),
        data.test.samples[0],
        method="ig",
    ),
)
det.save_pretrained(f"{SCRATCH}/det_x")


def other():
    m = load_bridge(folder("minilm"))
    h = sa.attach(m)
    return sa.Detector.from_pretrained(f"{SCRATCH}/det_x", host=h)


tryit("detector of another model", other)
tryit("detector path wrong", lambda: sa.Detector.from_pretrained(f"{SCRATCH}/det_nope", host=host))
tryit(
    "head out of range",
    lambda: sa.ablate_heads(host, data, det, [(4, 99)], scores=sc, resampling=sa.Resampling(20)),
)
tryit("scores of other data", lambda: sa.calibrate(host, data.subset(40), bank, scores=sc))
print("#### containers")
tryit("len(data)", lambda: len(data))
tryit("len(train)", lambda: len(data.train))
tryit("iter train", lambda: next(iter(data.train)))
tryit("train[0]", lambda: data.train[0])
tryit(
    "evaluation.to_dict / table",
    lambda: [
        n
        for n in dir(det.evaluate(data.test, scores=sc, resampling=sa.Resampling(20)))
        if not n.startswith("_")
    ],
)
tryit("Detector dir", lambda: [n for n in dir(det) if not n.startswith("_")])
tryit("ScoreTable dir", lambda: [n for n in dir(sc) if not n.startswith("_")])
tryit("bank dir", lambda: [n for n in dir(bank) if not n.startswith("_")])
import pandas as pd

tryit("DataFrame(find)", lambda: pd.DataFrame(det.find("The dog and the storm.")).columns.tolist())
ev = det.evaluate(data.test, scores=sc, resampling=sa.Resampling(20))
tryit("ev.to_dict", lambda: list(ev.to_dict()))
tryit("ev.table", lambda: ev.table())
tryit("ev.to_frame", lambda: ev.to_frame())
tryit("pd.DataFrame(det.table())", lambda: pd.DataFrame(det.table()))
tr_ = sa.trace(scores=sc, resampling=sa.Resampling(20))
tryit("trace dir", lambda: [n for n in dir(tr_) if not n.startswith("_")])
print("#### plots")
found = det.find("The dog and the storm.")
led = sa.head_ledger(host, data, det, scores=sc, resampling=sa.Resampling(20))
for name, result in {
    "evaluation": ev,
    "trace": tr_,
    "ledger": led,
    "detector": det,
    "bank": bank,
    "scores": sc,
    "data": data,
    "find": found,
}.items():
    tryit(f"plot of {name}", lambda: result.plot())
