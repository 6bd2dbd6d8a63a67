"""Policies on disk: saved, loaded, and refused with a reason."""

from datetime import UTC, datetime

import msgspec
import pytest

from nearfar.errors import ConfigError, DataError
from nearfar.router.policies import FORMAT_VERSION, DataFingerprint, Policy, TierPolicy
from nearfar.router.scorers import IsotonicScorer, LogisticScorer, MeanProbability

POLICY = Policy(
    name="support",
    version=3,
    created_at=datetime(2026, 11, 21, 10, 0, tzinfo=UTC),
    nearfar_version="0.1.0",
    tiers={
        "near": TierPolicy(
            "smollm2",
            LogisticScorer(("mean_logprob",), (1.25,), -0.1, (-0.4,), (0.2,)),
            0.7,
            data=DataFingerprint("ab" * 32, 200, 0.4),
            measured={"auroc": 0.8},
        ),
        "middle": TierPolicy("qwen", IsotonicScorer("mean_logprob", (-1.0, 0.0), (0.1, 0.9)), None),
        "third": TierPolicy("other", MeanProbability(), 1.0, guarantee={"risk": 0.1, "confidence": 0.95}),
    },
)


def edited(path, **changes):
    """The file with some keys changed, as somebody's editor would."""
    content = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(content | changes))
    return path


@pytest.fixture
def saved(tmp_path):
    """POLICY on disk."""
    path = tmp_path / "support.json"
    POLICY.save(path)
    return path


def test_a_policy_survives_the_disk(saved):
    """Saved and loaded, it is the same."""
    loaded = Policy.load(saved)

    assert loaded == POLICY
    assert loaded.label == "support@3"
    assert loaded.tiers["near"].signals == ("mean_logprob",)


def test_saving_replaces_the_file_as_a_whole(saved):
    """Nothing but the new policy is left in the folder."""
    newer = msgspec.structs.replace(POLICY, version=4)

    newer.save(saved)

    assert Policy.load(saved) == newer
    assert list(saved.parent.iterdir()) == [saved]


def test_a_folder_that_is_not_one_is_a_data_error(saved):
    """A policy cannot be saved below a file."""
    with pytest.raises(DataError, match="Cannot write the policy") as caught:
        POLICY.save(saved / "below.json")

    assert "\n" not in str(caught.value)


def test_a_tier_is_given_for_the_model_that_it_was_fitted_on(saved):
    """The right tier and model pass."""
    tier = Policy.load(saved).tier("near", model="smollm2")

    assert tier.threshold == 0.7
    assert not tier.accepts_nothing


def test_a_tier_without_a_threshold_accepts_nothing(saved):
    """null is not the default threshold."""
    assert Policy.load(saved).tier("middle", model="qwen").accepts_nothing


def test_another_model_is_refused(saved):
    """Signals of another model mean something else."""
    with pytest.raises(ConfigError, match=r"'support@3' was fitted on answers of 'smollm2', and tier 'near' is 'phi'"):
        Policy.load(saved).tier("near", model="phi")


def test_an_unknown_tier_is_refused(saved):
    """The message lists the tiers that there are."""
    with pytest.raises(ConfigError, match="no tier 'far'; it has 'middle', 'near', 'third'"):
        Policy.load(saved).tier("far", model="gpt")


def test_a_newer_format_is_refused_by_its_version_whatever_else_it_holds(saved):
    """A newer file may have keys of which we know nothing; the version is what the message names."""
    edited(saved, format_version=FORMAT_VERSION + 1, tiers="elsewhere", something="new")

    with pytest.raises(DataError, match=f"format version {FORMAT_VERSION + 1}.*Upgrade nearfar"):
        Policy.load(saved)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"colour": "red"}, "unknown field `colour`"),
        ({"tiers": {}}, "at least one tier"),
        ({"tiers": {"near": {"model": "m"}}}, "scorer"),
        (
            {"tiers": {"near": {"model": "m", "scorer": {"kind": "mean_probability"}, "threshold": 1.5}}},
            r"threshold must be in \[0, 1\]",
        ),
        ({"tiers": {"near": {"model": "m", "scorer": {"kind": "guess"}, "threshold": 0.5}}}, "guess"),
        ({"version": 0}, "version must be at least 1"),
        ({"name": "a@b"}, "without '@'"),
        ({"created_at": "2026-11-21T10:00:00"}, "time zone"),
        ({"format_version": "one"}, "format_version"),
    ],
)
def test_a_file_that_is_no_policy_is_refused_in_one_line(saved, changes, reason):
    """The line names the file, what is wrong and the way out."""
    edited(saved, **changes)

    with pytest.raises(DataError, match=reason) as caught:
        Policy.load(saved)

    assert str(saved) in str(caught.value)
    assert "nearfar calibrate" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.path == str(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_what_is_not_json_of_a_policy_is_refused(saved, content):
    """Empty, cut off, of another type, not UTF-8."""
    saved.write_bytes(content)

    with pytest.raises(DataError, match="is not a policy"):
        Policy.load(saved)


def test_a_missing_file_is_a_matter_of_configuration(tmp_path):
    """The message says how to get one."""
    with pytest.raises(ConfigError, match=r"No policy at .*nearfar calibrate"):
        Policy.load(tmp_path / "none.json")
