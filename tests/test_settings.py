"""The settings file: what it says, what is refused, and the passes that it stands for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import Shape, spikformer
from numpy.typing import NDArray
from torch import Tensor, nn

import cstep
from compiler.pipeline import DEFAULT_PASSES
from compiler.settings import (
    CurvePoint,
    Data,
    Exit,
    Guard,
    Halting,
    Model,
    RowSharing,
    Settings,
    Timesteps,
    Tokens,
    read_settings,
    settings_from,
    write_settings,
)
from compiler.zoo import LIF
from isa.errors import CStepError

WHOLE = Settings(
    model=Model(name="spikformer-2-96", checkpoint="0123abcd"),
    data=Data(source="digits:train", images=413, digest="ff" * 32),
    timesteps=Timesteps(masks={"block.0.mlp.fc1_lif": "1100", "head_lif": "1000"}, average=2.5, loss=0.0),
    exit=Exit(after=(1, 2), tau=(0.75, 0.9999999), variance=(1.25, 2.0), target_rate=0.4, rate=0.31, loss=-0.1),
    guard=Guard(mode="rows", after=2, threshold=4, loss=0.1),
    curve=(CurvePoint(loss_bound=0.5, tau=(0.5, 1.0), guard_threshold=-1, rate=0.6, loss=0.48),),
)
LEAST = 'schema = "cstep-settings/1"\n[model]\nname = "net"\n'
RULES = "[halting]\nalpha = -5\nbeta = 0\n"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    write_settings(WHOLE, tmp_path / "settings.toml")
    assert read_settings(tmp_path / "settings.toml") == WHOLE
    assert WHOLE.canonical() == read_settings(tmp_path / "settings.toml").canonical()


def test_one_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    (tmp_path / "hand.toml").write_text(LEAST + "[exit]\nafter = 2\ntau = 0.83\n[guard]\n")
    found = read_settings(tmp_path / "hand.toml")
    assert found.exit == Exit(after=(2,), tau=(0.83,))
    assert found.guard == Guard(mode="both", after=2, threshold=0)


def test_settings_stand_in_the_pipeline_before_what_they_change() -> None:
    parts = WHOLE.passes()
    text = parts.pipeline()
    assert parts.timesteps == 'set-timesteps{masks="block.0.mlp.fc1_lif=1100","head_lif=1000"},'
    assert "guard-channels{mode=rows after=2 threshold=4},insert-exits{after=1,2 criterion=lightsoftmax" in text
    assert "tau=0.75,0.9999999 variance=1.25,2.0},lower-to-cstep" in text
    assert 'masks="block.0.mlp.fc1_lif=1100","head_lif=1000"},mask-timesteps,' in text
    assert Settings(model=Model(name="net")).passes().pipeline() == DEFAULT_PASSES
    assert "hoist-invariant" not in parts.pipeline(hoist=False)


@pytest.mark.parametrize(
    ("tables", "passes"),
    [
        (
            "[tokens]\nkeep = [0.5, 1]\nscore = 'code'\nseed = 3\n",
            "mask-timesteps,stop-tokens{keep=0.5,1.0 score=code kernel=3 seed=3},hoist-invariant,",
        ),
        (
            "[tokens]\nkeep = 0.25\n",
            "mask-timesteps,stop-tokens{keep=0.25 score=paper kernel=3 seed=0},hoist-invariant",
        ),
        (RULES, "mask-timesteps,halt-tokens{alpha=-5.0 beta=0.0 epsilon=0.01 output=weighted},hoist-invariant,"),
        (
            RULES + "epsilon = 0.3\noutput = 'mean'\nloss = 0.5\n",
            "mask-timesteps,halt-tokens{alpha=-5.0 beta=0.0 epsilon=0.3 output=mean},hoist-invariant,",
        ),
    ],
)
def test_tokens_are_left_out_behind_the_masks(tmp_path: Path, tables: str, passes: str) -> None:
    (tmp_path / "hand.toml").write_text(LEAST + tables + "[patch_splitting]\n")
    found = read_settings(tmp_path / "hand.toml")
    text = found.passes().pipeline()
    assert text.startswith("integrate-patch-splitting,fuse-attention,") and passes in text
    write_settings(found, tmp_path / "again.toml")
    assert read_settings(tmp_path / "again.toml") == found


def test_sharing_is_the_last_pass_in_front_of_the_lowering(tmp_path: Path) -> None:
    (tmp_path / "hand.toml").write_text(LEAST + '[sharing]\nmode = "forest"\nlayers = { "block.0.mlp.fc1" = "pair" }\n')
    found = read_settings(tmp_path / "hand.toml")
    assert 'factor-common-spikes{mode=forest layers="block.0.mlp.fc1=pair"},lower-to-cstep' in found.passes().pipeline()
    write_settings(found, tmp_path / "again.toml")
    assert read_settings(tmp_path / "again.toml") == found
    assert RowSharing().mode == "pair"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name = 1", "schema None; this version reads"),
        ("[model", "no TOML"),
        (LEAST + "[exit]\nafter = 2\n", "exit.tau: is missing"),
        (LEAST + "[exit]\nafter = 2\ntau = 1.5\n", "exit.tau.0 = 1.5: it should be less than or equal to 1"),
        (LEAST + "[exit]\nafter = 0\ntau = 0.5\n", "exit.after.0 = 0: it should be greater than or equal to 1"),
        (LEAST + "[exit]\nafter = [2, 1]\ntau = [0.5, 0.5]\n", "it should ascend"),
        (LEAST + "[exit]\nafter = [1, 2]\ntau = 0.5\n", "one each for after = [1, 2]"),
        (LEAST + "[exit]\nafter = 2\ntau = '0.5'\n", 'exit.tau.0 = "0.5": it should be a valid number'),
        (LEAST + "[exit]\nafter = 2\ntau = nan\n", "exit.tau.0"),
        (LEAST + "[exit]\nafter = 2\ntau = 0.5\ncriterion = 'sure'\n", "'lightsoftmax', 'softmax' or 'entropy'"),
        (LEAST + "[guard]\nmode = 'none'\n", "'rows', 'columns' or 'both'"),
        (LEAST + "[guard]\nthreshhold = 2\n", "guard.threshhold: no such key; there are mode, after, threshold"),
        (LEAST + "[sharing]\nmode = 'trees'\n", "sharing.mode = \"trees\": it should be 'none', 'pair', 'group4'"),
        (LEAST + "[guards]\n", "guards: no such key; there are schema, model, data"),
        (LEAST + "[timesteps]\nmasks = { lif = '12' }\n", "it should be 0s and 1s, one a timestep"),
        (LEAST + "[timesteps]\nmasks = {}\n", "timesteps.masks = {}: it should hold one or more"),
        (LEAST + "[exit]\nafter = 2\ntau = 0.5\nvariance = 1e300\n", "it should be less than or equal to 1000000"),
        (LEAST + "[tokens]\n", "tokens.keep: is missing"),
        (LEAST + "[tokens]\nkeep = []\n", "tokens.keep = []: it should hold one or more"),
        (LEAST + "[tokens]\nkeep = [0.5, 1.5]\n", "tokens.keep.1 = 1.5: it should be less than or equal to 1"),
        (LEAST + "[tokens]\nkeep = -0.5\n", "tokens.keep.0 = -0.5: it should be greater than or equal to 0"),
        (LEAST + "[tokens]\nkeep = nan\n", "tokens.keep.0"),
        (LEAST + "[tokens]\nkeep = 0.5\nscore = 'best'\n", "'magnitude', 'code' or 'random'"),
        (LEAST + "[tokens]\nkeep = 0.5\nkernel = 2\n", "tokens.kernel = 2: it should be 1, 3, 5 or 7"),
        (LEAST + "[tokens]\nkeep = 0.5\nseed = -1\n", "tokens.seed = -1: it should be greater than or equal to 0"),
        (LEAST + "[tokens]\nkeep = 1\nk = 3\n", "tokens.k: no such key; there are keep, score, kernel, seed, loss"),
        (LEAST + "[halting]\nbeta = 0\n", "halting.alpha: is missing"),
        (LEAST + RULES + "epsilon = 1\n", "halting.epsilon = 1: it should be less than 1"),
        (LEAST + RULES + "epsilon = -0.1\n", "halting.epsilon = -0.1: it should be greater than or equal to 0"),
        (LEAST + RULES + "epsilon = nan\n", "halting.epsilon"),
        (LEAST + RULES + "output = 'last'\n", "halting.output = \"last\": it should be 'weighted' or 'mean'"),
        (LEAST + "[halting]\nalpha = 1001\nbeta = 0\n", "halting.alpha = 1001: it should be less than or equal to"),
        (LEAST + RULES + "limit = 3\n", "halting.limit: no such key; there are alpha, beta, epsilon, output, loss"),
        (LEAST + RULES + "[tokens]\nkeep = 0.5\n", "[tokens] and [halting]: both leave tokens out; it should have one"),
        (LEAST + "[patch_splitting]\nintegrated = false\n", "patch_splitting.integrated = false: it should be"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(CStepError) as error:
        read_settings(tmp_path / "wrong.toml")
    line = str(error.value)
    assert line.startswith(f"{tmp_path / 'wrong.toml'}: ")
    assert "\n" not in line
    assert said in line


def test_settings_are_for_one_model_and_one_checkpoint() -> None:
    WHOLE.require_model("./spikformer-2-96", "s.toml")
    with pytest.raises(CStepError, match=r"s\.toml: settings for model spikformer-2-96, not other"):
        WHOLE.require_model("other", "s.toml")
    assert WHOLE.checkpoint_note("net.safetensors sha256:0123abcd99") == ""
    assert "sha256:0123abcd, this one is net.safetensors sha256:ffff" in WHOLE.checkpoint_note(
        "net.safetensors sha256:ffff"
    )


def test_python_gives_settings_as_a_file_a_dict_or_themselves(tmp_path: Path) -> None:
    table = {"schema": "cstep-settings/1", "model": {"name": "net"}, "guard": {"mode": "rows", "after": 2}}
    made = settings_from(table)
    assert made.guard is not None and made.guard.mode == "rows"
    write_settings(made, tmp_path / "a.toml")
    assert settings_from(str(tmp_path / "a.toml")) == settings_from(tmp_path / "a.toml") == settings_from(made) == made
    for wrong, said in (({"schema": "other"}, "settings: schema 'other'"), (3, "settings: int; give a file")):
        with pytest.raises(CStepError, match=said):
            settings_from(wrong)


class Plain(nn.Module):
    """One layer of neurons behind another, without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lif, self.head = nn.Linear(256, 8), LIF(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lif(self.first(x.flatten(1).unsqueeze(0).repeat(4, 1, 1))).mean(0))


@cache
def two_blocks() -> tuple[nn.Module, NDArray[np.float32]]:
    return spikformer(Shape(depths=2))


HALTING = {"alpha": -5.0, "beta": 0.0}
NO_BLOCKS = "the network has no transformer blocks: no attention under a numbered prefix"


@pytest.mark.parametrize(
    ("plain", "tables", "said"),
    [
        (False, {"tokens": {"keep": [0.5, 0.5, 0.5]}}, "stop-tokens: keep=0.5,0.5,0.5 has 3 shares; the network has 2"),
        (True, {"tokens": {"keep": 0.5}}, f"stop-tokens: {NO_BLOCKS}"),
        (True, {"halting": HALTING}, f"halt-tokens: {NO_BLOCKS}"),
        (False, {"halting": HALTING | {"epsilon": 1.0}}, "settings: halting.epsilon = 1.0: it should be less than 1"),
        (False, {"halting": HALTING | {"epsilon": -0.5}}, "settings: halting.epsilon = -0.5: it should be greater"),
        (False, {"halting": HALTING, "tokens": {"keep": 0.5}}, "settings: [tokens] and [halting]: both leave tokens"),
    ],
)
def test_compiling_refuses_tokens_that_cannot_be_left_out(plain: bool, tables: dict[str, Any], said: str) -> None:
    model, images = two_blocks()
    table = {"schema": "cstep-settings/1", "model": {"name": "net"}, **tables}
    with pytest.raises(CStepError) as caught:
        cstep.compile(Plain().eval() if plain else model, images[:1], calibration=images, check=False, settings=table)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_settings_made_in_python_have_one_way_to_leave_tokens_out() -> None:
    """They were not read from anywhere; then it is the second pass that says so."""
    model, images = two_blocks()
    both = Settings(model=Model(name="net"), tokens=Tokens(keep=(0.5,)), halting=Halting(alpha=-5, beta=0))
    with pytest.raises(CStepError, match=r"^halt-tokens: the network leaves tokens out already; there can be one"):
        cstep.compile(model, images[:1], calibration=images, check=False, settings=both)


def test_the_command_says_which_file_has_wrong_tokens(tmp_path: Path, refuses: Callable[..., str]) -> None:
    file = tmp_path / "tokens.toml"
    text = LEAST.replace("net", "spikformer-2-96")
    for tables, said in (
        (RULES + "epsilon = 2\n", f"{file}: halting.epsilon = 2: it should be less than 1"),
        (RULES + "[tokens]\nkeep = 0.5\n", f"{file}: [tokens] and [halting]: both leave tokens out; it should have"),
    ):
        file.write_text(text + tables)
        command = ("compile", "spikformer-2-96", "--settings", file, "--output", tmp_path / "net.cstep")
        assert refuses(*command).startswith(said)
    assert not (tmp_path / "net.cstep").exists()
