"""Keys are made long, kept hashed, compared whole, and shown nowhere."""

import pytest

from nearfar.errors import ConfigError
from nearfar.serving.gateway.keys import Key, KeyRing, hash_key, new_key, scrub
from nearfar.serving.gateway.settings import GatewaySettings


def test_a_new_key_opens_the_door_that_holds_its_hash():
    """What `new_key` makes is taken once `hash_key` has put it in the settings; its hash does not contain it."""
    key = new_key()

    ring = KeyRing([Key(hash_key(new_key())), Key(hash_key(key), "ours")])

    assert ring.find(f"Bearer {key}".encode()).name == "ours"
    assert ring.find(f"bearer  {key} ".encode()).name == "ours"
    assert key not in hash_key(key)


@pytest.mark.parametrize("header", [None, b"", b"Bearer", b"Bearer ", b"Basic abc", b"Bearer wrong", b"\xff\xfe"])
def test_anything_else_stays_out(header):
    """A missing, malformed or wrong key is not taken."""
    ring = KeyRing([Key(hash_key(new_key()))])

    assert ring.find(header) is None


def test_a_key_that_is_nearly_right_stays_out():
    """Neither a prefix of a key nor its hash is the key."""
    key = new_key()
    ring = KeyRing([Key(hash_key(key))])

    assert ring.find(f"Bearer {key[:-1]}".encode()) is None
    assert ring.find(f"Bearer {hash_key(key)}".encode()) is None


def test_a_key_may_not_approve_unless_somebody_said_so():
    """The usual key asks models and runs agents; one that is held twice has the rights of both."""
    key = new_key()
    usual, approving = Key(hash_key(key), "usual"), Key(hash_key(key), "approving", frozenset({"approve"}))
    header = f"Bearer {key}".encode()

    assert KeyRing([usual]).find(header).rights == {"ask", "run"}
    assert KeyRing([approving]).find(header).rights == {"approve"}
    assert KeyRing([usual, approving]).find(header).rights == {"ask", "run", "approve"}


def test_a_right_that_is_none_is_refused_by_name():
    """A misspelt right must not be taken for none, nor for all."""
    with pytest.raises(ConfigError, match="'desk' has the right 'aprove'; the rights are 'ask', 'run', 'approve'"):
        Key(hash_key(new_key()), "desk", frozenset({"aprove"}))


def test_new_keys_hold_32_random_bytes():
    """256 bits in base64 are 43 characters, and no two keys are alike."""
    keys = {new_key() for _ in range(100)}

    assert len(keys) == 100
    assert {len(key.removeprefix("nf-")) for key in keys} == {43}


@pytest.mark.parametrize("key", ["", "secret", "nf-short", "nf-" + "x" * 42])
def test_short_keys_are_not_hashed(key):
    """A key that a person made up is refused, with the command that makes one."""
    with pytest.raises(ConfigError, match="nearfar keys new") as caught:
        hash_key(key)

    assert not key or key not in str(caught.value)


def test_a_hash_that_is_none_is_refused_by_its_name():
    """A plain key among the hashes is a mistake that must not be served with, nor shown."""
    key = new_key()
    with pytest.raises(ConfigError, match="the key 'laptop' is not a SHA-256") as caught:
        Key(key, "laptop")

    assert key not in str(caught.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org"])
def test_beyond_this_machine_only_with_a_key(host):
    """An address that others reach needs a key; with one it is fine."""
    with pytest.raises(ConfigError, match="nearfar keys new"):
        GatewaySettings(host=host)

    assert GatewaySettings(host=host, keys=(Key("0" * 64),)).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    """Only this machine reaches these."""
    assert GatewaySettings(host=host).is_loopback


@pytest.mark.parametrize(
    ("name", "value"), [("port", 65536), ("port", -1), ("max_body_bytes", 0), ("request_timeout_s", -1.0)]
)
def test_numbers_out_of_range_are_refused_by_name(name, value):
    """A limit of nothing would refuse every request."""
    with pytest.raises(ConfigError, match=f"gateway.{name}"):
        GatewaySettings(**{name: value})


@pytest.mark.parametrize(
    "secret", ["sk-proj-abcdefghijklmnop", "nf-" + "A" * 43, "hf_abcdefghijklmnopq", "s3cr3t-t0ken"]
)
def test_secrets_are_scrubbed(secret):
    """Keys are recognised by their prefix, by a bearer scheme or by the field that they stand in."""
    text = f'401 for Bearer {secret}; {{"api_key": "{secret}"}}, password={secret}'

    shown = scrub(text)

    assert secret not in shown
    assert "401 for Bearer ***" in shown
    assert scrub("a task-oriented answer, token by token") == "a task-oriented answer, token by token"
