"""rookie#167, spacy-stanza#33, DeepPavlov#1145 (text rebuilt by ' '.join is not the text), Chinese NER sets (msra, weibo) with one
character a token. Right: a way to say how words are joined (e.g. no space), so that the model reads '我喜欢猫', not '我 喜 欢 猫'."""

import inspect
from _tiny import *
import sa_plugin as sa
from sa_plugin.loaders.own import from_dataset
from sa_plugin.host import find_folder as folder

tok = hf.AutoTokenizer.from_pretrained(folder("smollm2"))


class Rows(list):
    column_names = ["t", "g"]


data = from_dataset(
    Rows({"t": list("我喜欢猫"), "g": ["O", "O", "O", "B-animal"]} for _ in range(10)),
    {"tokens": "t", "tags": "g"},
)
text = data.samples[0].text
knobs = [
    p
    for p in {
        **inspect.signature(sa.ConceptData.from_words).parameters,
        **inspect.signature(from_dataset).parameters,
    }
    if any(w in p for w in ("join", "sep", "space", "text"))
]
print(
    "text:",
    repr(text),
    "tokens:",
    len(tok(text).input_ids),
    "against",
    len(tok("我喜欢猫").input_ids),
    "options:",
    knobs,
)
verdict(text == "我喜欢猫" or bool(knobs))
