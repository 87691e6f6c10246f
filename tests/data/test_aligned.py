"""Spans that cut words are counted with their probable cause; repeats cross no split unseen."""

import unicodedata
import warnings

import pytest

from sa_plugin.data import ConceptData, CutWordsWarning, RepeatedTextWarning, text_key

WORDS = ("cat", "dog", "horse")


def texts(lead, n=12):
    return [f"{lead} text {k} is where the {WORDS[k % 3]} sat down" for k in range(n)]


def spans_of(found, unit=lambda text, at: at, ends=0, move=0):
    rows = []
    for k, text in enumerate(found):
        start = text.index(f"the {WORDS[k % 3]}") + 4
        end = start + len(WORDS[k % 3])
        rows.append([(unit(text, start) + move, unit(text, end) + ends + move, "animal")])
    return rows


def utf16(text, at):
    return len(text[:at].encode("utf-16-le")) // 2


def utf8(text, at):
    return len(text[:at].encode())


def returns(text, at):
    return at - text[:at].count("\r\n")


def stripped(text, at):
    return at - (len(text) - len(text.lstrip()))


def without_mark(text, at):
    return at - 2


def two_ends(text, at):
    return at + text[:at].count("\n")


def composed(text, at):
    return len(unicodedata.normalize("NFC", text[:at]))


def decomposed(text, at):
    return len(unicodedata.normalize("NFD", text[:at]))


CAUSES = [
    ("😀", {"unit": utf16}, "in UTF-16 units: make of each position k len"),
    ("a 👩‍🚀 é", {"unit": utf16}, "in UTF-16 units"),
    ("café naïve", {"unit": utf8}, "in bytes of UTF-8: make of each position k len"),
    ("日本", {"unit": utf8}, "in bytes of UTF-8"),
    ("plain", {"ends": -1}, "with the last character as end: add 1 to each end"),
    ("plain", {"move": 3}, "moved by 3 characters: add -3 to each"),
    ("plain", {"move": -2}, "moved by 2 characters: add 2 to each"),
    ("one\r\ntwo\r\n", {"unit": returns}, "with line ends as one character: replace"),
    ("   lead", {"unit": stripped}, "without the white space that texts begin with: strip"),
    ("\ufeff lead", {"unit": without_mark}, "without the white space that texts begin with: strip"),
    ("one\ntwo\n", {"unit": two_ends}, "with line ends as two characters: replace"),
    ("cafe\u0301 nai\u0308ve", {"unit": composed}, "in texts of Unicode's form NFC: give the texts as"),
    ("caf\xe9 stra\xdfe", {"unit": decomposed}, "in texts of Unicode's form NFD: give the texts as"),
]


@pytest.mark.parametrize(("lead", "how", "cause"), CAUSES)
def test_shifted_labels_are_counted_and_their_cause_is_named(lead, how, cause):
    found = texts(lead)
    with pytest.warns(CutWordsWarning, match=r"\d+ of 12 spans cut words.*sample '\d'") as raised:
        ConceptData.from_spans(found, spans_of(found, **how))
    said = str(raised[0].message)
    assert cause in said or "moved by" in said, said
    if "moved" not in cause:
        assert cause in said, said


@pytest.mark.parametrize("lead", ["plain", "😀", "café", "日本", "a_b", "one\r\n"])
def test_whole_words_are_no_reason_to_warn(lead):
    found = texts(lead)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutWordsWarning)
        ConceptData.from_spans(found, spans_of(found))


@pytest.mark.parametrize(
    ("text", "start", "end"), [("我喜欢猫", 3, 4), ("고양이를 보다", 0, 3), ("แมวกิน", 0, 3)]
)
def test_scripts_without_spaces_are_not_looked_at(text, start, end):
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutWordsWarning)
        ConceptData.from_spans([f"{text} {k}" for k in range(12)], [[(start, end, "x")]] * 12)


def test_a_span_beyond_its_text_says_in_what_it_was_perhaps_counted():
    found = [f"éééé the {word}" for word in WORDS] * 4
    spans = [[(utf8(text, 9), utf8(text, len(text)), "animal")] for text in found]
    with pytest.raises(ValueError, match=r"characters\. Were they counted in bytes of UTF-8\?"):
        ConceptData.from_spans(found, spans)


CHANGES = {
    "exact": lambda t: t,
    "space behind": lambda t: t + " ",
    "tab": lambda t: t.replace(" the", "\tthe"),
    "line ends": lambda t: t + "\r\n",
    "double": lambda t: t.replace(" the", "  the"),
    "no-break": lambda t: t.replace(" the", "\u00a0the"),
    "case": str.upper,
    "decomposed": lambda t: unicodedata.normalize("NFD", t),
    "byte order": lambda t: "\ufeff" + t,
    "full width": lambda t: t.replace("1", "\uff11"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_repeats_in_any_writing_cross_no_split_unseen(change):
    first = [f"in café {k} the cat sat down 1" for k in range(12)]
    both = [one for text in first for one in (text, CHANGES[change](text))]
    spans = [[(text.lower().index("the"), text.lower().index("the") + 3, "x")] for text in both]
    with pytest.warns(RepeatedTextWarning, match=r"12 text\(s\) stand in two splits.*Give repeated"):
        ConceptData.from_spans(both, spans, splits=["train", "test"] * 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RepeatedTextWarning)
        data = ConceptData.from_spans(both, spans)
    home = {}
    for sample, of in zip(data.samples, data.split_of, strict=True):
        assert home.setdefault(text_key(sample.text), (sample.document, of)) == (sample.document, of)


def test_other_texts_are_no_repeats():
    assert len({text_key(one) for one in ("a cat", "a cats", "acat", "a-cat", "a cat.")}) == 5


@pytest.mark.parametrize("sign", ["\U0001f468\u200d\U0001f469", "\U0001f44d\U0001f3fd", "\u2764\ufe0f"])
def test_a_span_that_cuts_a_sign_of_several_characters_is_counted(sign):
    found = [f"{sign} {k}" for k in range(12)]
    with pytest.warns(CutWordsWarning, match="12 of 12 spans"):
        ConceptData.from_spans(found, [[(0, 1, "sign")]] * 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CutWordsWarning)
        ConceptData.from_spans(found, [[(0, len(sign), "sign")]] * 12)


@pytest.mark.parametrize(
    ("typed", "printed"),
    [('it\'s "so"', "it\u2019s \u201cso\u201d"), ("1990-95", "1990\u201395"), ("a 'b'", "a \u2018b\xb4")],
)
def test_quotes_and_dashes_of_printers_are_those_of_keyboards(typed, printed):
    assert text_key(typed) == text_key(printed)


def test_words_that_were_searched_for_inside_of_others_are_told_from_shifted_ones():
    found = [f"we ordered a red car, number {k}" for k in range(12)]
    spans = [[(text.find("red"), text.find("red") + 3, "colour")] for text in found]
    more = [[*row, (13, 16, "colour")] for row in spans]
    with pytest.warns(CutWordsWarning, match="12 of 24 spans") as raised:
        ConceptData.from_spans(found, more)
    said = str(raised[0].message)
    assert "moved" not in said
    assert r"re.finditer(rf'\b{word}\b', text)" in said
