"""α-UMi's two stages on the real weights: every role's adapter begins as the backbone's and learns its own turns.

Needs the [train] extra, which `make test` does not install.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from support.weights import smollm2_path

from nearfar.errors import ConfigError, DataError
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.training.role_adapters import RolesRecipe, RoleTurn, train_roles
from nearfar.types import Message, Query, SamplingOptions

torch = pytest.importorskip("torch", reason="needs the [train] extra")
for _package in ("transformers", "peft", "gguf"):
    pytest.importorskip(_package, reason="needs the [train] extra")

RECIPE = RolesRecipe(
    rank=8,
    alpha=16.0,
    layers=2,
    backbone_epochs=3,
    role_epochs=3,
    batch_size=1,
    backbone_rate=5e-3,
    role_rate=2e-3,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.timeout(600),
]


def turns(n: int = 8) -> list[RoleTurn]:
    """A planner that always says one thing, and a caller that always says another."""
    found = []
    for place in range(n):
        asked = (Message("user", f"Task {place}. What is next?"),)
        found.append(RoleTurn("planner", asked, "call zebra"))
        told = (*asked, Message("assistant", "call zebra"), Message("user", "Arguments?"))
        found.append(RoleTurn("caller", told, '{"a": 7}'))
    return found


@pytest.mark.soak
async def test_roles_learn_their_own_turns_and_llama_cpp_reads_the_adapters(tmp_path: Path) -> None:
    """A run that was stopped comes to the same adapters, which say what they were taught."""
    whole = train_roles(smollm2_path(), turns(), tmp_path / "whole", recipe=RECIPE, validation=turns(2))
    folder = tmp_path / "stopped"
    begun = train_roles(smollm2_path(), turns(), folder, recipe=RECIPE, validation=turns(2), seconds=1e-9)
    stopped = train_roles(smollm2_path(), turns(), folder, recipe=RECIPE, validation=turns(2))

    backbone, planner, caller = whole.stages
    assert (backbone.name, planner.name, caller.name) == ("backbone", "planner", "caller")
    assert (backbone.num_turns, planner.num_turns, caller.num_turns) == (16, 8, 8)
    assert planner.validation["planner"] < backbone.validation["planner"] < whole.untrained["planner"]
    assert caller.validation["caller"] < backbone.validation["caller"] < whole.untrained["caller"]
    assert planner.gguf_bytes == planner.gguf.stat().st_size < 1_000_000
    assert (caller.peft / "adapter_model.safetensors").is_file()
    assert not begun.is_complete
    assert begun.stages == ()
    assert stopped.is_complete
    assert stopped.untrained == whole.untrained == begun.untrained
    assert [each.loss for each in stopped.stages] == pytest.approx([each.loss for each in whole.stages], rel=1e-4)
    assert not (tmp_path / "stopped" / "states.pt").exists()

    model = LlamaCppModel(
        smollm2_path(),
        name="smollm2",
        context_window=256,
        parallel=1,
        threads=1,
        loras={"planner": planner.gguf, "caller": caller.gguf},
    )
    told = turns()[-1]
    try:
        asked = Query(told.messages[:1], sampling=SamplingOptions(temperature=0.0, max_tokens=8))
        assert (await model.with_lora("planner").complete(asked)).text == "call zebra"
        asked = Query(told.messages, sampling=SamplingOptions(temperature=0.0, max_tokens=8))
        assert (await model.with_lora("caller").complete(asked)).text == '{"a": 7}'
    finally:
        await model.aclose()


def test_other_data_do_not_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    """It would be neither the one nor the other."""
    short = replace(RECIPE, layers=1, backbone_epochs=1)
    train_roles(smollm2_path(), turns(2), tmp_path, recipe=short, seconds=1e-9)

    with pytest.raises(ConfigError, match="other data or settings"):
        train_roles(smollm2_path(), turns(4), tmp_path, recipe=short)


def test_turns_that_are_too_long_are_an_error_where_nothing_is_left(tmp_path: Path) -> None:
    """The error says how to go on."""
    with pytest.raises(DataError, match="most_tokens"):
        train_roles(smollm2_path(), turns(2), tmp_path, recipe=RolesRecipe(layers=1, most_tokens=2))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Before anything is computed."""
    with pytest.raises(ConfigError, match="no 'cuda' device"):
        train_roles(smollm2_path(), turns(2), tmp_path, recipe=RECIPE, device="cuda")
