"""A request's width is read from its model's name or its arguments, and no two widths share a salt."""

import pytest

from nearfar.errors import RequestError
from nearfar.serving.quantization.precision import precision_of, salt, with_precision

OFFERED = (2, 4, 6, 8)


@pytest.mark.parametrize(
    ("page", "model", "bits"),
    [
        ({"model": "smollm2@4"}, "smollm2", 4),
        ({"model": "smollm2", "vllm_xargs": {"bits": 8}}, "smollm2", 8),
        ({"model": "smollm2@8", "vllm_xargs": {"bits": 8, "other": "x"}}, "smollm2", 8),
        ({"model": "who@home@2"}, "who@home", 2),
    ],
)
def test_a_width_is_found_in_either_place(page, model, bits):
    """And put where vLLM looks, with the rest left as it was."""
    made = with_precision(page, OFFERED)

    assert made["model"] == model
    assert made["vllm_xargs"] == page.get("vllm_xargs", {}) | {"bits": bits}
    assert made["cache_salt"] == salt(bits)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"model": "smollm2"}, "A width is missing"),
        ({"model": "smollm2", "vllm_xargs": {}}, "A width is missing"),
        ({"model": "smollm2@home"}, "A width is missing"),
        ({"model": "smollm2@3"}, "bits is 3; this model was stored for 2, 4, 6, 8"),
        ({"model": "smollm2@4", "vllm_xargs": {"bits": 8}}, "asks for 4 bits and vllm_xargs for 8"),
        ({"vllm_xargs": {"bits": "4"}}, "bits is '4'"),
        ({"vllm_xargs": {"bits": True}}, "bits is True"),
        ({"vllm_xargs": {"bits": None}}, "bits is None"),
        ({"vllm_xargs": {"bits": [4]}}, r"bits is \[4\]"),
        ({"vllm_xargs": [4]}, "vllm_xargs is no object"),
        ({"vllm_xargs": {"bits": 4}, "cache_salt": 4}, "cache_salt is no text"),
    ],
)
def test_a_width_that_is_missing_or_illegal_is_refused(page, message):
    """With what there is."""
    with pytest.raises(RequestError, match=message):
        with_precision(page, OFFERED)


def test_no_two_widths_share_a_salt():
    """Whatever salts the clients gave, also ones that look like ours."""
    given = [None, "", "x", "nearfar-bits-2", ":x", "2:x"]

    salts = [salt(bits, own) for bits in (2, 4, 22) for own in given]

    assert len(set(salts)) == len(salts)


def test_a_request_is_not_changed_in_place():
    """The caller's body stays as it was."""
    page = {"model": "smollm2@4", "vllm_xargs": {"other": 1}}

    with_precision(page, OFFERED)

    assert page == {"model": "smollm2@4", "vllm_xargs": {"other": 1}}
    assert precision_of({"bits": 2}, OFFERED) == 2
