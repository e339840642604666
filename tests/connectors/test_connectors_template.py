"""Templates of a configuration, filled with what jobs bring."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empd.connectors.failures import InvalidInput
from empd.connectors.protocol.json_pointer import join
from empd.connectors.protocol.template import Template

NAMES = ("job_id", "payload")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def filled(shape: Any, payload: Any = None) -> Any:
    return Template(shape, NAMES).render({"job_id": "j-1", "payload": payload})


def escaped(shape: Any) -> Any:
    """The template that gives `shape`."""
    if isinstance(shape, str):
        return shape.replace("{", "{{").replace("}", "}}")
    if isinstance(shape, dict):
        return {key: escaped(value) for key, value in shape.items()}
    return [escaped(item) for item in shape] if isinstance(shape, list) else shape


@given(JSON)
def test_a_value_without_places_stays_as_it_is(shape: Any) -> None:
    assert filled(escaped(shape)) == shape


@given(JSON, st.text("ab/~é", min_size=1, max_size=5))
def test_a_place_alone_becomes_the_value_of_whatever_type(value: Any, key: str) -> None:
    assert filled("{payload}", value) == value
    assert filled(["{payload" + join(key) + "}"], {key: value}) == [value]


@given(JSON)
def test_within_a_text_a_place_becomes_text(value: Any) -> None:
    text = filled("<{payload}> of {job_id}", value)
    assert text.startswith("<")
    assert text.endswith("> of j-1")
    assert not isinstance(value, str) or text == f"<{value}> of j-1"


def test_what_is_not_there_is_the_jobs_fault_or_left_out() -> None:
    with pytest.raises(InvalidInput, match="the payload has nothing at /prompt"):
        filled({"prompt": "{payload/prompt}"}, {"text": 1})
    assert filled({"a": "{payload/x?}", "b": ["{payload/y?}", 1], "c": "={payload/x?}"}, {}) == {"b": [1], "c": "="}
    assert filled({"a": "{payload/x?}"}, {"x": None}) == {"a": None}


@pytest.mark.parametrize("text", ["{}", "{nobody}", "{payload/~2}", "{payload.x}", "a {Payload} b"])
def test_what_is_no_place_is_refused_before_any_job(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no place for a value|is not a JSON pointer"):
        Template({"deep": [text]}, NAMES)
