"""The settings file: what it says, what is refused, and the passes that it stands for."""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler.pipeline import DEFAULT_PASSES
from compiler.settings import (
    CurvePoint,
    Data,
    Exit,
    Guard,
    Model,
    RowSharing,
    Settings,
    Timesteps,
    read_settings,
    settings_from,
    write_settings,
)
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
