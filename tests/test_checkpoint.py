"""Checkpoints: every published container is read, nothing in a file is executed, and every refusal is one line."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compiler.frontend.checkpoint import LISTED, apply_checkpoint, load_checkpoint
from isa.errors import CStepError


class Hostile:
    """A pickle of this creates a file when it is loaded by the full unpickler."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def refused(path: Path) -> str:
    """The one-line message with which a file is refused."""
    with pytest.raises(CStepError) as error:
        load_checkpoint(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize("ending", [".pth", ".pt", ".pth.tar"])
@pytest.mark.parametrize("container", [None, "state_dict", "state_dict_ema", "model", "model_ema"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_published_containers(tmp_path: Path, ending: str, container: str | None, prefix: str) -> None:
    state = model().state_dict()
    wrapped: Any = {prefix + key: tensor for key, tensor in state.items()}
    torch.save(wrapped if container is None else {container: wrapped, "epoch": 3}, tmp_path / f"model{ending}")
    assert_same(load_checkpoint(tmp_path / f"model{ending}").state, dict(state))


@pytest.mark.parametrize(("weights", "average"), [("state_dict", "state_dict_ema"), ("model", "model_ema")])
def test_weights_come_before_their_average(tmp_path: Path, weights: str, average: str) -> None:
    state, other = {"weight": torch.ones(2)}, {"weight": torch.zeros(2)}
    torch.save({average: other, weights: state}, tmp_path / "a.pth.tar")
    assert_same(load_checkpoint(tmp_path / "a.pth.tar").state, state)


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model after one step, so that its optimiser has a state."""
    goal = model()
    optimiser = torch.optim.AdamW(goal.parameters())
    goal(torch.ones(2, 3)).sum().backward()
    optimiser.step()
    return goal, optimiser


def test_what_timms_training_script_writes(tmp_path: Path) -> None:
    goal, optimiser = trained()
    content = {
        "epoch": 299,
        "arch": "spikformer",
        "state_dict": {f"module.{key}": tensor for key, tensor in goal.state_dict().items()},
        "optimizer": optimiser.state_dict(),
        "version": 2,
        "args": argparse.Namespace(model="spikformer", time_step=4, img_size=None, mean=[0.5], distributed=True),
        "amp_scaler": {"scale": 65536.0, "growth_interval": 2000},
        "metric": 95.5,
        "state_dict_ema": {key: tensor * 0 for key, tensor in goal.state_dict().items()},
    }
    torch.save(content, tmp_path / "model_best.pth.tar")
    checkpoint = load_checkpoint(tmp_path / "model_best.pth.tar")
    assert_same(checkpoint.state, dict(goal.state_dict()))
    assert checkpoint.metadata == {"T": "4", "mean": "0.5"}


def test_what_the_fine_tuning_scripts_write(tmp_path: Path) -> None:
    goal, optimiser = trained()
    script = argparse.Namespace(model="metaspikformer_8_512", time_steps=4, input_size=224, kd=True, resume="", gpu=0)
    content = {
        "model": goal.state_dict(),
        "optimizer": optimiser.state_dict(),
        "epoch": 49,
        "scaler": {"scale": 65536.0, "growth_tracker": 3},
        "args": script,
    }
    torch.save(content, tmp_path / "checkpoint-49.pth")
    checkpoint = load_checkpoint(tmp_path / "checkpoint-49.pth")
    assert_same(checkpoint.state, dict(goal.state_dict()))
    assert checkpoint.metadata == {"T": "4", "img_size_h": "224", "img_size_w": "224"}


def test_a_prefix_that_only_some_keys_have_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "bias": torch.ones(1)}
    torch.save(state, tmp_path / "a.pt")
    assert_same(load_checkpoint(tmp_path / "a.pt").state, state)


def test_torchs_format_before_zip(tmp_path: Path) -> None:
    torch.save(model().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_same(load_checkpoint(tmp_path / "a.pth").state, dict(model().state_dict()))


def test_safetensors_with_metadata(tmp_path: Path) -> None:
    save_file(model().state_dict(), tmp_path / "a.safetensors", {"T": "4"})
    checkpoint = load_checkpoint(tmp_path / "a.safetensors")
    assert_same(checkpoint.state, dict(model().state_dict()))
    assert checkpoint.metadata == {"T": "4"}


def test_the_training_scripts_arguments_become_metadata(tmp_path: Path) -> None:
    script = argparse.Namespace(time_step=4, layer=2, dim=64, img_size=32, mean=[0.5, 0.25], num_classes=None, lr=0.1)
    torch.save({"state_dict": model().state_dict(), "args": script}, tmp_path / "a.pth.tar")
    assert load_checkpoint(tmp_path / "a.pth.tar").metadata == {
        "T": "4",
        "depths": "2",
        "embed_dims": "64",
        "img_size_h": "32",
        "img_size_w": "32",
        "mean": "0.5,0.25",
    }


def test_arguments_that_are_no_plain_numbers_say_nothing(tmp_path: Path) -> None:
    script = argparse.Namespace(T=16, input_size=[3, 224, 224], num_heads=True, dim="64", std=["a"], mean=())
    script.layer = script  # it prints without end
    torch.save({"model": model().state_dict(), "args": script}, tmp_path / "a.pth")
    assert load_checkpoint(tmp_path / "a.pth").metadata == {"T": "16"}


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_by_name_and_not_executed(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"state_dict": Hostile(mark)}, protocol))
    assert refused(path).startswith(f"refused, loading it would run {os.mkdir.__module__}.mkdir; ")
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the test's pickle must be one that does harm"


@pytest.mark.parametrize("zipped", [True, False])
def test_harm_beside_the_weights_is_refused_too(tmp_path: Path, zipped: bool) -> None:
    mark = tmp_path / "executed"
    content = {"state_dict": model().state_dict(), "scheduler": Hostile(mark)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    assert f"would run {os.mkdir.__module__}.mkdir; save model.state_dict() alone" in refused(tmp_path / "a.pth")
    assert not mark.exists()


def test_harm_among_the_scripts_arguments_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    script = argparse.Namespace(time_step=4, hook=Hostile(mark))
    torch.save({"model": model().state_dict(), "args": script}, tmp_path / "a.pth")
    assert f"would run {os.mkdir.__module__}.mkdir; save model.state_dict() alone" in refused(tmp_path / "a.pth")
    assert not mark.exists()


class Arguments(argparse.Namespace):
    """A class of the training script's own: only argparse's is let in."""


def test_a_subclass_of_the_scripts_arguments_is_refused(tmp_path: Path) -> None:
    torch.save({"model": model().state_dict(), "args": Arguments(time_step=4)}, tmp_path / "a.pth")
    assert "Arguments; save model.state_dict() alone" in refused(tmp_path / "a.pth")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "a.pt")
    assert "would run torch.nn.modules" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.6, 0.999])
def test_truncated_files(tmp_path: Path, ending: str, zipped: bool, part: float) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".safetensors":
        save_file(model().state_dict(), path)
    else:
        torch.save(model().state_dict(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert refused(path).startswith("truncated, or not a ")


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.pth") == "no such checkpoint"
    assert refused(tmp_path) == "a folder, not a checkpoint"
    (tmp_path / "a.bin").touch()
    assert refused(tmp_path / "a.bin") == "not a checkpoint by its name; expected .safetensors, .pth, .pt, .pth.tar"
    for ending in (".pth", ".safetensors"):
        (tmp_path / f"page{ending}").write_text("<!DOCTYPE html><html>Sign in</html>")
        assert refused(tmp_path / f"page{ending}").startswith("truncated, or not a ")
    for content, message in (
        ([1, 2], "holds list, expected a state_dict; save model.state_dict()"),
        ({}, "holds no tensor; save model.state_dict()"),
        ({"epoch": 1}, "'epoch' is str: int, expected name: Tensor; save model.state_dict()"),
        ({3: torch.ones(1)}, "3 is int: Tensor, expected name: Tensor; save model.state_dict()"),
    ):
        torch.save(content, tmp_path / "other.pt")
        assert refused(tmp_path / "other.pt") == message


def unfit(state: dict[str, Tensor], dead_keys: tuple[str, ...] = ()) -> str:
    """Why a state does not go into the model; the model must be left as it was."""
    goal = model()
    with pytest.raises(CStepError) as error:
        apply_checkpoint(goal, state, dead_keys, "a.pth")
    assert_same(dict(goal.state_dict()), dict(model().state_dict()))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_weights_are_applied_and_dead_keys_dropped() -> None:
    state = {key: tensor + 1 for key, tensor in model().state_dict().items()}
    goal = model()
    apply_checkpoint(goal, {**state, "block.3.norm1.weight": torch.ones(1)}, (r"block\.\d+\.norm1\..*",), "a.pth")
    assert_same(dict(goal.state_dict()), state)


def test_half_precision_weights_are_widened() -> None:
    state = {
        key: tensor.half() if tensor.is_floating_point() else tensor for key, tensor in model().state_dict().items()
    }
    goal = model()
    apply_checkpoint(goal, state, (), "a.pth")
    assert goal.get_parameter("0.weight").dtype == torch.float32
    assert torch.equal(goal.get_parameter("0.weight"), state["0.weight"].float())


def test_everything_that_differs_is_said_at_once() -> None:
    state = dict(model().state_dict())
    del state["0.bias"]
    state["0.weight"] = torch.zeros(4, 5)
    state["1.num_batches_tracked"] = torch.zeros(())
    state["1.running_var"] = torch.full((4,), float("nan"))
    state["extra"] = torch.zeros(1)
    assert unfit(state, (r"norm",)) == (
        "a.pth: does not fit Sequential: 1 missing (0.bias); 1 unknown (extra); 2 of another shape or type "
        "(0.weight 4x5 float32, the model has 4x3 float32, 1.num_batches_tracked scalar float32, the model has scalar "
        "int64); 1 not finite (1.running_var)"
    )


def test_a_dead_pattern_must_match_the_whole_key() -> None:
    state = {**model().state_dict(), "norm1.weight.more": torch.ones(1)}
    assert "1 unknown (norm1.weight.more)" in unfit(state, (r"norm1\.weight",))


def test_long_lists_are_cut_and_counted() -> None:
    state = {**model().state_dict(), **{f"extra{number:02}": torch.ones(1) for number in range(LISTED + 5)}}
    assert f"{LISTED + 5} unknown (extra00, extra01" in unfit(state)
    assert f"extra{LISTED - 1:02}, ...)" in unfit(state)


def test_tensors_that_float32_cannot_hold() -> None:
    state = dict(model().state_dict())
    assert "1 not finite (0.bias)" in unfit({**state, "0.bias": torch.full((4,), 1e300, dtype=torch.float64)})
    assert "0.bias 4 float32 sparse_coo" in unfit({**state, "0.bias": torch.ones(4).to_sparse()})
    assert "0.bias 4 complex64" in unfit({**state, "0.bias": torch.ones(4, dtype=torch.complex64)})
