"""The one decorator of public functions: what it takes, how it refuses, and that it hides nothing."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from doubles import added
from jaxtyping import Float

import sa_plugin as sa
from sa_plugin._check import nearest, require_known
from sa_plugin._face import ByArguments, arguments_of, face, passing
from sa_plugin.attribution import Design
from sa_plugin.data import Sample
from sa_plugin.heads import Intervention
from sa_plugin.show import Shown
from sa_plugin.stages import AttributionPart


@face
def asked(
    n: int,
    names: Sequence[str] | None = None,
    *,
    share: float | Mapping[str, float] | None = None,
    draws: int = 3,
    keep: bool = True,
    sinks: Literal["drop", "keep"] = "drop",
    stream: Float[torch.Tensor, "batch d_model"] | None = None,
    heads: Sequence[tuple[int, int] | str] = (),
    folder: str | Path | None = None,
    sample: Any = None,
) -> dict[str, Any]:
    """Gives what it got."""
    return {key: value for key, value in locals().items() if value is not None}


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"n": np.int64(3)}, {"n": 3}),
        ({"names": ("a", "b")}, {"names": ("a", "b")}),
        ({"names": np.array(["a", "b"])}, {"names": ["a", "b"]}),
        ({"names": pd.Series(["a", "b"])}, {"names": ["a", "b"]}),
        ({"share": 1}, {"share": 1.0}),
        ({"share": {"a": np.float32(0.5)}}, {"share": {"a": 0.5}}),
        ({"keep": np.bool_(False)}, {"keep": False}),
        ({"heads": [[4, 1], "L4H1"]}, {"heads": [(4, 1), "L4H1"]}),
        ({"folder": Path("a")}, {"folder": Path("a")}),
    ],
)
def test_what_is_meant_is_taken(given, taken):
    found = asked(**{"n": 1} | given)
    for name, value in taken.items():
        assert found[name] == value
        assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"n": "x"}, TypeError, "n is the text 'x', not a whole number from 1 to 2147483647."),
        ({"n": True}, TypeError, "n is True, not a whole number"),
        ({"n": 2**63}, ValueError, "n is 9223372036854775808, not a whole number from 1"),
        ({"n": float("nan")}, TypeError, "n is nan, not a whole number"),
        ({"draws": 2**40}, ValueError, "draws is 1099511627776, not a whole number from 1 to 1000000."),
        ({"names": "abc"}, TypeError, "names is the text 'abc', not a list of names: give ['abc']."),
        ({"names": ["a", None]}, TypeError, "names[1] is None, not a text."),
        ({"names": ["a", "b\ud800"]}, ValueError, r"names[1] is the text 'b\ud800', not a text: it holds"),
        ({"names": ["ä", "\ud800"]}, ValueError, r"names[1] is the text '\ud800', not a text: it holds"),
        ({"names": ["a\0"]}, ValueError, r"names[0] is the text 'a\x00', not a text: it holds a null"),
        ({"names": {"a": 1}}, TypeError, "names is a dict, not a list of texts."),
        ({"names": iter("ab")}, TypeError, "not a list of texts: give list(...) of it."),
        ({"share": float("nan")}, ValueError, "share is nan, not a finite number"),
        ({"share": {"a": "b"}}, TypeError, "share['a'] is the text 'b', not a finite number."),
        ({"keep": 1}, TypeError, "keep is 1, not True or False."),
        ({"sinks": "drp"}, ValueError, "sinks is the text 'drp', not 'drop' or 'keep': did you mean 'drop'"),
        ({"stream": torch.zeros(3)}, ValueError, "stream is a Tensor of float32 [3], not a tensor of float"),
        ({"stream": [1.0]}, TypeError, "stream is a list, not a tensor of float [batch, d_model]."),
        ({"heads": [(1, 2, 3)]}, TypeError, "heads[0] is a tuple, not (a whole number, a whole number) or"),
        ({"folder": ""}, ValueError, "folder is the text '', not a path."),
        ({"folder": "a\0b"}, ValueError, r"folder is the text 'a\x00b', not a path."),
        ({"draw": 3}, TypeError, "asked has no argument 'draw': did you mean 'draws'? It takes n, names,"),
    ],
)
def test_refusals_name_function_argument_value_and_fix(given, error, text):
    with pytest.raises(error) as raised:
        asked(**{"n": 1} | given)
    assert type(raised.value) is error
    assert str(raised.value).startswith("asked")
    assert text in str(raised.value)


def test_what_is_missing_and_has_no_place_in_the_order_is_asked_for_by_name():
    @face
    def predicted(scores: list[float], *, tokens: int) -> int:
        return tokens

    with pytest.raises(TypeError, match=r"predicted: tokens is missing: give tokens=\.\.\."):
        predicted([0.5])


def test_a_call_that_does_not_fit_is_told_the_order():
    for arguments, given, text in (
        ((), {}, "asked: n is missing: the order is asked(n, names)."),
        (
            (1, ["a"], 2),
            {},
            "asked was given 3 arguments in order, not at most 2: the order is asked(n, names)",
        ),
        ((1,), {"n": 2}, "asked: n is given twice: the order is asked(n, names)."),
    ):
        with pytest.raises(TypeError) as raised:
            asked(*arguments, **given)
        assert text in str(raised.value)
    with pytest.raises(
        TypeError, match=r"host is an empty list, not a Host: .*; the order is fit\(host, data, kind"
    ):
        sa.fit([], [], "lda")


def test_keywords_that_are_passed_on_are_answered_by_the_function_that_was_called():
    with pytest.raises(
        TypeError, match=r"^fit has no argument 'layer': did you mean 'layers'\? It takes host"
    ):
        sa.fit(layer=3)
    with pytest.raises(TypeError, match=r"^fit: normaliser is 3, not a text"):
        sa.fit(normaliser=3)

    @passing(ByArguments(lambda given: [asked] if given.get("method") == "a" else []))
    def chosen(method: str = "b", **options: Any) -> Any:
        return options

    assert chosen("a", draws=np.int64(4)) == {"draws": 4}
    with pytest.raises(TypeError, match=r"^chosen has no argument 'draw': did you mean 'draws'"):
        chosen("a", draw=4)
    with pytest.raises(TypeError, match=r"^chosen has no argument 'n'"):
        chosen("a", n=4)


def test_short_names_are_understood():
    known = ["direct_alignment", "integrated_gradients", "rise", "lime", "input_x_gradient"]
    assert nearest("ig", known) == "integrated_gradients"
    assert nearest("Integrated", known) == "integrated_gradients"
    assert nearest("limes", known) == "lime"
    with pytest.raises(ValueError, match="method 'ig' is unknown: did you mean 'integrated_gradients'"):
        require_known("method", "ig", known)


def test_records_are_checked_when_they_are_made():
    for make, text in (
        (lambda: sa.Resampling("x"), "Resampling: draws is the text 'x', not a whole number from 1 to"),
        (lambda: sa.Resampling(seed=-1), "Resampling: seed is -1, not a whole number from 0 to 4294967295"),
        (lambda: sa.Resampling(draw=3), "Resampling has no argument 'draw': did you mean 'draws'"),
        (lambda: sa.Plan("lda"), "Plan: kinds is the text 'lda', not a mapping to lists of whole"),
        (lambda: Intervention(keep="yes"), "Intervention: keep is the text 'yes', not True or False"),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            make()
        assert text in str(raised.value)


def test_a_sample_is_a_text_with_names():
    for given, text in (
        ({"id": " "}, "Sample: id is the text ' ', not a text: fill it in."),
        ({"text": "a\ud800"}, r"Sample: text is the text 'a\ud800', not a text: it holds half a character"),
        ({"document": "a\0"}, r"Sample: document is the text 'a\x00', not a text: it holds a null"),
        ({"docment": "a"}, "Sample has no argument 'docment': did you mean 'document'"),
    ):
        with pytest.raises((TypeError, ValueError)) as raised:
            Sample(**{"id": "a", "text": "a cat", "document": "b"} | given)
        assert text in str(raised.value)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda own: sa.Plan(["lda"], options={"lda": own}), "Plan: options of 'lda': "),
        (lambda own: Design(options={"rise": own}), "Design: options of 'rise': "),
        (lambda own: AttributionPart(["rise"], options={"rise": own}), "Design: options of 'rise': "),
    ],
)
def test_options_in_a_mapping_are_held_against_who_takes_them(make, text):
    with pytest.raises(TypeError) as raised:
        make({"x": 1})
    assert f"{text}'x' is no option" in str(raised.value)
    assert " It takes " in str(raised.value)


def test_options_in_a_mapping_are_of_their_kind():
    with pytest.raises(TypeError, match="'rigde' is no option: did you mean 'ridge'"):
        sa.Plan(["lda"], options={"lda": {"rigde": 1}})
    with pytest.raises(TypeError, match="ridge is the text 'x', not a finite number"):
        sa.Plan(["lda"], options={"lda": {"ridge": "x"}})
    # The seed is the plan's own.
    with pytest.raises(TypeError, match="'seed' is no option"):
        sa.Plan(["lda"], options={"lda": {"seed": 1}})
    with pytest.raises(ValueError, match="method 'ris' is unknown: did you mean 'rise'"):
        AttributionPart(["ris"])


def test_methods_of_whatever_shows_itself_are_checked():
    class Own(Shown):
        @added
        def top(self, n: int = 5) -> int:
            return n

    assert Own().top(np.int64(2)) == 2
    with pytest.raises(TypeError, match=r"top: n is the text 'x', not a whole number"):
        Own().top("x")


def faces():
    """Every public function, constructor and method that the root has."""
    for name in sa.__all__:
        one = getattr(sa, name)
        if not inspect.isclass(one):
            yield name, one
            continue
        if name != "Host":
            yield name, one.__init__
        for method, made in vars(one).items():
            made = made.__func__ if isinstance(made, classmethod) else made
            public = inspect.isfunction(made) and not method.startswith("_")
            if public and len(inspect.signature(made).parameters) > 1 and name not in ("Host", "Objective"):
                yield f"{name}.{method}", made


@pytest.mark.parametrize(("name", "made"), list(faces()))
def test_every_public_function_is_a_face_and_its_hints_can_be_read(name, made):
    assert hasattr(made, "__faced__"), name
    known = arguments_of(made)
    assert set(known.takers) <= set(inspect.signature(made).parameters)


def test_a_face_keeps_signature_name_and_text():
    assert str(inspect.signature(asked)).startswith("(n: int, names: ")
    assert asked.__name__ == "asked"
    assert asked.__doc__ == "Gives what it got."

    @face
    @dataclass(frozen=True)
    class Record:
        """Of one number."""

        n: int = 1

    assert Record(2) == Record(n=2)
    assert "n: int = 1" in str(inspect.signature(Record))
