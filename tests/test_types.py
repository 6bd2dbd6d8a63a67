"""The values that cross folders: frozen, equal by their fields, made with fresh defaults, and brief as JSON."""

import pickle
from copy import copy
from dataclasses import asdict, fields, is_dataclass, replace

import msgspec
import pytest

from nearfar import types
from nearfar.types import Answer, Candidate, Decision, Message, Query, SamplingOptions, Step, Usage

STEP = Step("near", "m", "near", "accepted", "the last tier that could take it", usage=Usage(3, 4))
DECISION = Decision(
    "1", 2.0, "answered", "confident", "python", "auto", "near", "m", 0.5, 0.4, True, "p@1", 1.0,
    (Candidate("near", "m", "near", True, ""),), (STEP,), (), 0.0, False, {"total": 0.1}, {"prompt": []},
)  # fmt: skip
VALUES = [
    Message("user", "Hello"),
    SamplingOptions(temperature=0.5, stop=("x",)),
    Query("Hello", budget_usd=1.0),
    Answer("Hi", "m", usage=Usage(1, 2)),
    Candidate("near", "m", "near", True, ""),
    STEP,
    DECISION,
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_are_frozen_equal_by_field_and_survive_copies(value):
    name = fields(value)[0].name
    with pytest.raises(AttributeError):
        setattr(value, name, "other")
    with pytest.raises(AttributeError):
        delattr(value, name)
    for same in (replace(value), copy(value), pickle.loads(pickle.dumps(value))):
        assert same == value
        assert type(same) is type(value)
    assert replace(value, **{name: ()}) != value


def test_a_default_that_can_change_is_made_anew_for_each():
    assert Answer().extra == {}
    assert Answer().extra is not Answer().extra
    assert SamplingOptions().extra is not SamplingOptions().extra
    assert Query("x").metadata is not Query("x").metadata


def test_a_value_takes_its_fields_and_no_others():
    with pytest.raises(TypeError, match="colour"):
        Answer(colour="red")
    with pytest.raises(TypeError, match="role"):
        Message()
    with pytest.raises(TypeError):
        Candidate("near")


def test_every_public_value_is_frozen_and_a_data_class_to_the_standard_library():
    classes = [each for each in vars(types).values() if isinstance(each, type) and is_dataclass(each)]
    assert len(classes) > 20
    assert all(issubclass(each, types.Value) and each.__struct_config__.frozen for each in classes)


def test_copies_take_the_values_own_fields_and_no_others():
    with pytest.raises(TypeError, match="colour"):
        replace(Answer(), colour="red")
    assert [each.name for each in fields(Usage)] == list(Usage.__struct_fields__)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_json_is_brief_and_plain_is_whole(value):
    assert msgspec.json.decode(msgspec.json.encode(value), type=type(value)) == value
    assert msgspec.convert(types.plain(value), type(value)) == value
    assert set(types.plain(value)) == set(asdict(value)) == {each.name for each in fields(value)}


def test_a_record_says_nothing_of_defaults():
    assert msgspec.json.encode(Query("Hello", budget_usd=1.0)) == (
        b'{"prompt":[{"role":"user","content":"Hello"}],"sampling":{},"budget_usd":1.0}'
    )
    assert "routing" not in msgspec.to_builtins(DECISION)
    assert types.plain(DECISION)["routing"] is None
