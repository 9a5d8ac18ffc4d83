"""Tokens that halt in training: the rules against a loop that takes them one by one, gradients, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from families import FAMILIES
from halted import rules_in_reals
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from command.compile import as_trained
from compiler import settings as settings_file
from compiler.frontend.importer import import_model
from compiler.frontend.neurons import neurons_of
from compiler.halting import halts
from compiler.nn import (
    halting_of,
    ponder_loss,
    token_depths,
    tokens_used,
    with_halting,
    with_integrated_patch_splitting,
)
from compiler.settings import Settings
from compiler.zoo import LIF, Spikformer
from compiler.zoo.layers import at_every_timestep
from compiler.zoo.spikformer import MLP, Block, SpikingSelfAttention
from isa.errors import CStepError

IMAGES = ("spikformer-cifar", "spikformer-imagenet", "spikingformer", "spikingformer-cml", "spikingformer-imagenet")
EVENTS = ("spikformer-events", "spikingformer-events")
RULES = {"alpha": -1.0, "beta": -0.5}
"""Under which tokens of random models halt, and some do not."""


@dataclass
class Recorder:
    """What a block put out, as a hook sees it behind those of `with_halting`."""

    outputs: list[Tensor] = field(default_factory=list[Tensor])

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(output)


def as_tokens(model: nn.Module, x: Tensor) -> Tensor:
    """[T, B, N, C] of any of the zoo's layouts."""
    return x if isinstance(model, Spikformer) else x.flatten(3).transpose(2, 3)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the blocks' outputs [L, T, B, N, C]."""
    recorder = Recorder()
    handles = [block.register_forward_hook(recorder) for block in model.get_submodule("block").children()]
    with torch.no_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, torch.stack([as_tokens(model, output) for output in recorder.outputs])


def check(model: nn.Module, x: Tensor, alpha: float, beta: float, epsilon: float) -> Tensor:
    """A model that halts equals the loop, in float64; returns keep [L, T, B, N]."""
    with_halting(model, alpha=alpha, beta=beta, epsilon=epsilon)
    logits, outputs = run(model, x)
    halting = halting_of(model)
    keep = torch.stack(halting.keeps)
    assert halting.ponder is not None
    head = model.get_submodule("head")
    for image in range(len(x)):
        expected = rules_in_reals(outputs[:, :, image, :, 0].tolist(), alpha, beta, epsilon)
        assert keep[:, :, image].tolist() == expected["keep"]
        ponder = torch.tensor(expected["ponder"], dtype=x.dtype)
        assert torch.allclose(halting.ponder[:, image], ponder, atol=1e-9)
        weights = torch.tensor(expected["p"], dtype=x.dtype)
        features = (outputs[:, :, image] * weights[..., None]).sum(0).mean((0, 1))
        with torch.no_grad():
            assert torch.allclose(logits[image], halted_head(head, features), atol=1e-9)
    assert torch.equal(token_depths(model), keep.sum(0))
    assert tokens_used(model) == pytest.approx(keep.mean().item())
    return keep


def halted_head(head: nn.Module, features: Tensor) -> Tensor:
    """The classifier by itself, without the hook that gives it the weighted mean."""
    assert isinstance(head, nn.Linear)
    return nn.functional.linear(features, head.weight, head.bias)


class Tokens(Spikformer):
    """A Spikformer of any number of tokens, whose input is what its patch splitting would put out."""

    def __init__(self, depths: int) -> None:
        super().__init__(img_size_h=4, img_size_w=4, embed_dims=8, num_heads=2, mlp_ratios=1, depths=depths)
        self.patch_embed = nn.Identity()  # type: ignore[assignment]
        self.block = nn.ModuleList(
            Block(SpikingSelfAttention(8, 2, 0.125, 2.0, 0.25, 0.25), MLP(8, 8, 2.0, 0.25)) for _ in range(depths)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        for block in self.block:
            x = block(x)
        return self.head(x.mean(2).mean(0))


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.sampled_from([1, 2, 3, 7]),
    steps=st.integers(1, 5),
    depths=st.integers(1, 4),
    epsilon=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999]),
    alpha=st.sampled_from([-5.0, -1.0, -0.3, 0.0, 0.7]),
    beta=st.sampled_from([-3.0, -0.7, 0.0, 1.3]),
    seed=st.integers(0, 1 << 16),
)
def test_masks_weights_and_ponder_are_those_of_the_loop(
    tokens: int, steps: int, depths: int, epsilon: float, alpha: float, beta: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Tokens(depths).double().eval()
    x = torch.randint(0, 3, (2, steps, tokens, 8)).double()
    keep = check(model, x, alpha, beta, epsilon)
    assert keep[0].all(), "the first block works on every token, at every timestep"
    assert (keep[1:] <= keep[:-1]).all(), "a token that is halted stays so in its timestep"
    assert (keep[:, 1:] <= keep[:, :-1]).all(), "it halts no later than at the timestep before"


@pytest.mark.parametrize("name", [*IMAGES, *EVENTS])
def test_every_architecture_halts_by_the_rules(name: str) -> None:
    family = FAMILIES[name]
    steps = 3 if family.events else None
    model = family.build(steps).double()
    parts: Any = model
    parts.block.extend(copy.deepcopy(parts.block))  # two blocks at least
    x = torch.from_numpy(family.inputs(2, seed=3, steps=steps)).double()
    keep = check(model, x, **RULES, epsilon=0.1)
    assert 0 < keep[-1].mean() < 1 or name in EVENTS


@pytest.mark.parametrize("output", ["weighted", "mean"])
@pytest.mark.parametrize("name", ["spikformer-cifar", "spikformer-imagenet", "spikingformer"])
def test_a_halted_token_is_zero_in_every_neuron_and_in_what_a_block_puts_out(name: str, output: Any) -> None:
    family = FAMILIES[name]
    model = family.build()
    parts: Any = model
    parts.block.append(copy.deepcopy(parts.block[0]))
    with_halting(model, alpha=0.0, beta=2.0, output=output)  # h = 0.88: two blocks at t=0, one after that
    fired: dict[str, list[Tensor]] = {}
    for path, neuron in neurons_of(parts.block[1]):
        recorder = Recorder()
        neuron.register_forward_hook(recorder)
        fired[path] = recorder.outputs
    logits, outputs = run(model, torch.from_numpy(family.inputs(2, seed=1)))
    assert torch.stack(halting_of(model).keeps)[1].amax((1, 2)).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert not outputs[1, 1:].any() and outputs[1, 0].any()
    for path, spikes in fired.items():
        assert not spikes[0][1:].any(), path
    if output == "mean":
        with torch.no_grad():
            assert torch.allclose(logits, halted_head(parts.head, outputs[-1].mean((0, 2))), atol=1e-5)


@pytest.mark.parametrize(("beta", "used"), [(-60.0, 1.0), (60.0, 0.5)])
def test_none_halt_and_all_do(beta: float, used: float) -> None:
    """Scores of 0: the last block has all the weight, and logits are the plain model's. Of 1: only block 0 works."""
    model, plain = FAMILIES["spikformer-imagenet"].build(), FAMILIES["spikformer-imagenet"].build()
    x = torch.from_numpy(FAMILIES["spikformer-imagenet"].inputs(2))
    logits, outputs = run(with_halting(model, alpha=0.0, beta=beta), x)
    assert tokens_used(model) == used
    if used == 1:
        with torch.no_grad():
            assert torch.allclose(logits, plain(x), atol=1e-5)
        assert ponder_loss(model, 1.0).item() == pytest.approx(len(outputs) + 1)
    else:
        assert not outputs[1:].any()
        assert ponder_loss(model, 1.0).item() == pytest.approx(2.0)  # a block, and the remainder of 1


def test_gradients_go_through_scores_and_weights_and_not_through_masks() -> None:
    """Finite differences of the ponder loss by an offset of channel 0 that is added to all blocks' outputs."""
    torch.manual_seed(1)
    model = with_halting(Tokens(3).double().eval(), alpha=-1.0, beta=-0.3, epsilon=0.1)
    x = torch.randint(0, 3, (2, 3, 5, 8)).double()
    offset = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    halting = halting_of(model)
    plain = halting.first_channel

    def moved(value: Tensor) -> Tensor:
        return plain(value) + offset

    halting.first_channel = moved  # type: ignore[method-assign]

    def loss() -> Tensor:
        return cross_entropy(model(x), torch.tensor([1, 4])) + ponder_loss(model, 0.3)

    (gradient,) = torch.autograd.grad(loss(), offset)
    assert gradient.abs().max() > 0
    for token in range(5):
        values: list[float] = []
        for change in (1e-6, -1e-6):
            with torch.no_grad():
                offset[token] = change
                values.append(loss().item())
                offset[token] = 0.0
        assert gradient[token].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_training_lowers_the_ponder_loss() -> None:
    torch.manual_seed(0)
    model = with_halting(Tokens(3), alpha=-1.0, beta=-0.5)
    x = torch.randint(0, 3, (8, 4, 6, 8)).float()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(x)
    before = ponder_loss(model, 1.0).item()
    for _ in range(20):
        optimizer.zero_grad()
        model(x)
        ponder_loss(model, 1.0).backward()
        optimizer.step()
    model(x)
    assert ponder_loss(model, 1.0).item() < before


@pytest.mark.parametrize("name", IMAGES)
def test_no_key_moves_and_a_copy_halts_like_the_model(name: str) -> None:
    family = FAMILIES[name]
    plain, model = family.build(), with_halting(with_integrated_patch_splitting(family.build()), **RULES)
    assert list(model.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(model.state_dict())
    x = torch.from_numpy(family.inputs(1))
    model.train()
    model(x).sum().backward()
    ponder_loss(model)
    twin = copy.deepcopy(model)
    model.eval()
    twin.eval()
    assert torch.equal(run(model, x)[0], run(twin, x)[0])
    assert halting_of(twin) is not halting_of(model) and torch.equal(token_depths(twin), token_depths(model))


def test_the_rules_of_a_model_that_halts_are_replaced() -> None:
    model = FAMILIES["spikformer-cifar"].build()
    for epsilon in (0.01, 0.3):
        assert with_halting(model, alpha=0.0, beta=0.0, epsilon=epsilon) is model
    assert halting_of(model).epsilon == 0.3
    hooks = vars(model)["_forward_pre_hooks"]
    assert len(hooks) == 1


@pytest.mark.parametrize("name", IMAGES)
def test_integrated_spikes_are_their_sum_at_every_timestep(name: str) -> None:
    """A hand-written forward, from the plain model's own parts, makes the same logits."""
    family = FAMILIES[name]
    x = torch.from_numpy(family.inputs(2))
    plain, model = family.build(), with_integrated_patch_splitting(family.build())
    parts: Any = plain
    with torch.no_grad():
        embed = parts.patch_embed
        images = x.unsqueeze(0).repeat(4, 1, 1, 1, 1)
        if name.startswith("spikformer"):
            spikes = embed(images)
            features = torch.stack([spikes[0] + spikes[1] + spikes[2] + spikes[3]] * 4)
        else:
            caught: list[Tensor] = []
            last = embed.get_submodule(f"{embed.stages[-1]}_conv")
            handle = last.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
            embed(images)
            handle.remove()
            spikes = caught[0].reshape(4, 2, *caught[0].shape[1:])
            features = torch.stack([embed.current(embed.stages[-1], spikes[0] + spikes[1] + spikes[2] + spikes[3])] * 4)
        tokens = features.flatten(3).transpose(2, 3).contiguous() if isinstance(plain, Spikformer) else features
        for block in parts.block:
            tokens = block(tokens)
        mean = as_tokens(plain, tokens).mean(2).mean(0)
        assert torch.allclose(model(x), parts.head(mean), atol=1e-4)
        assert set(spikes.unique().tolist()) <= {0.0, 1.0, 2.0}


def test_what_repeats_a_sum_has_the_gradient_of_every_timestep() -> None:
    x = torch.ones(3, 2, requires_grad=True)
    (at_every_timestep(x) * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[7.0, 7.0]] * 3


class Stranger(nn.Module):
    """No architecture of the zoo."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleList([LIF()])
        self.head = nn.Linear(2, 2)


def test_what_cannot_halt_is_refused_in_one_line() -> None:
    known = r"it takes the zoo's Spikformer, ConvolutionalSpikformer, Spikingformer$"
    with pytest.raises(CStepError, match=f"^with_halting: Stranger is not known; {known}"):
        with_halting(Stranger(), alpha=0.0, beta=0.0)
    with pytest.raises(CStepError, match=f"^with_integrated_patch_splitting: Stranger is not known; {known}"):
        with_integrated_patch_splitting(Stranger())
    with pytest.raises(CStepError, match="its input is events, another image at every timestep"):
        with_integrated_patch_splitting(FAMILIES["spikformer-events"].build())
    model = FAMILIES["spikformer-cifar"].build()
    with pytest.raises(CStepError, match="halts no tokens; call with_halting"):
        ponder_loss(model)
    for wrong in ({"epsilon": 1.0}, {"epsilon": -0.1}, {"output": "last"}):
        with pytest.raises(CStepError, match=r"expected 0 <= epsilon < 1, and weighted or mean$"):
            with_halting(model, alpha=0.0, beta=0.0, **wrong)  # type: ignore[arg-type]
    with_halting(model, alpha=0.0, beta=0.0)
    with pytest.raises(CStepError, match=r"was not run since with_halting; call model\(images\) first"):
        tokens_used(model)
    with pytest.raises(CStepError, match="compile the plain model with a settings file that has"):
        import_model(model, torch.zeros(1, 3, 16, 16))


def test_the_float_model_that_a_program_is_compared_with_halts_as_it_was_trained_to() -> None:
    """A checkpoint does not say so, settings do; the model that is compiled stays plain."""
    model = FAMILIES["spikformer-cifar"].build()
    rules = settings_file.Halting(alpha=0.0, beta=2.0, epsilon=0.2, output="mean")
    plain = Settings(model=settings_file.Model(name="net"))
    chosen = plain.model_copy(update={"patch_splitting": settings_file.PatchSplitting(), "halting": rules})
    name, trained = as_trained(model, chosen)
    found = halting_of(trained)
    assert (found.alpha, found.beta, found.epsilon, found.output) == (0.0, 2.0, 0.2, "mean")
    assert name == "float model" and trained.get_submodule("patch_embed").integrated and not halts(model)
    assert as_trained(model, None) == as_trained(model, plain) == ("float model", model)


def test_of_an_architecture_that_is_not_known_the_comparison_says_what_it_leaves_out() -> None:
    model = nn.Linear(2, 2)
    rules = settings_file.Halting(alpha=0.0, beta=2.0)
    chosen = Settings(model=settings_file.Model(name="net"), halting=rules)
    assert as_trained(model, chosen) == ("float model without [halting]", model)
