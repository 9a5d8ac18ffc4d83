"""Integrated patch splitting in the compiler: the pass is the trained module, and the machine computes it exactly."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from families import FAMILIES
from models import compiled
from test_passes import GOLDEN

from compiler.backend.group import plan_stages
from compiler.backend.stages import TimeSumStage
from compiler.frontend.eager import compare_with_eager
from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.ir.meaning import Executor
from compiler.ir.network import Network, parse
from compiler.nn import with_integrated_patch_splitting
from compiler.passes.timesteps import sums_of_logits
from compiler.pipeline import DEFAULT_PASSES, parse_passes, run_passes
from isa.errors import CStepError, CStepWarning
from isa.machine import load_machine
from runtime.interpreter import quantise_input, run

PASS = "integrate-patch-splitting"
IMAGES = ("spikformer-cifar", "spikformer-imagenet", "spikingformer", "spikingformer-cml", "spikingformer-imagenet")
SPIKFORMERS = IMAGES[:2]
SCHEDULES = pytest.mark.parametrize("schedule", ["layers", "windows"])
LATER = "mask-timesteps,hoist-invariant,"


def plain(name: str, steps: int | None = None) -> Network:
    """The network of a model that knows nothing of the pass."""
    return import_model(FAMILIES[name].build(steps), FAMILIES[name].example())


def trained(name: str, steps: int | None = None) -> Network:
    """The network of the module that training uses."""
    return import_model(with_integrated_patch_splitting(FAMILIES[name].build(steps)), FAMILIES[name].example())


@pytest.mark.parametrize("name", IMAGES)
def test_the_trained_module_is_imported_bit_for_bit(name: str) -> None:
    model = with_integrated_patch_splitting(FAMILIES[name].build())
    assert compare_with_eager(model, trained(name), FAMILIES[name].inputs(2)) > 0


@pytest.mark.parametrize("steps", [1, 4, 5])
@pytest.mark.parametrize("name", IMAGES)
def test_the_pass_makes_the_trained_module(name: str, steps: int) -> None:
    """Its currents in float64, and every integer behind quantisation."""
    mine, theirs = run_passes(plain(name, steps), PASS), trained(name, steps)
    images = FAMILIES[name].inputs(8, seed=steps)
    for x in images[:2]:
        found, expected = (Executor(network, torch.float64).run(x) for network in (mine, theirs))
        assert np.allclose(found.output, expected.output, atol=1e-12)
        assert found.currents.keys() == expected.currents.keys()
        assert all(np.allclose(found.currents[label], expected.currents[label]) for label in expected.currents)
    mine, theirs = (compiled(network, images, check=0).integer for network in (mine, theirs))
    for x in images:
        found, expected = (Executor(network).run(x) for network in (mine, theirs))
        assert np.array_equal(found.output, expected.output)
        assert all(np.array_equal(found.currents[label], expected.currents[label]) for label in expected.currents)


@SCHEDULES
@pytest.mark.parametrize("name", IMAGES)
def test_no_integer_differs_on_the_emulator(name: str, schedule: str) -> None:
    passes = f"{PASS},{DEFAULT_PASSES}"
    made = compiled(plain(name), FAMILIES[name].inputs(8), check=3, passes=passes, schedule=schedule)
    notes = {check.name: check.note for check in made.checks}
    assert notes[PASS] == "new reference: lossy"
    assert notes["canonicalise"].startswith("float64") or notes["canonicalise"] == "the same module"
    assert notes["quantise"] == "onnxruntime == integer model"
    assert notes["synchronise"] == "emulator == integer model"


@SCHEDULES
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_any_number_of_timesteps(steps: int, schedule: str) -> None:
    images = FAMILIES["spikformer-cifar"].inputs(8)
    made = compiled(plain("spikformer-cifar", steps), images, passes=f"{PASS},{DEFAULT_PASSES}", schedule=schedule)
    assert made.checks[-1].note == "emulator == integer model"
    sums = [op for op in made.integer.operations() if isinstance(op, spike.SumTime)]
    assert len(sums) == (1 if steps == 1 else 2)


@SCHEDULES
def test_a_sum_of_several_tiles(schedule: str) -> None:
    """In a spike buffer that holds a few pixels of the sum."""
    machine = load_machine("c-step").with_changes(spike_buffer_bytes=1024)
    images = FAMILIES["spikformer-cifar"].inputs(8)
    passes = f"{PASS},{DEFAULT_PASSES}"
    made = compiled(plain("spikformer-cifar"), images, passes=passes, schedule=schedule, machine=machine)
    assert made.checks[-1].note == "emulator == integer model"


@SCHEDULES
def test_both_kernel_families_add_in_place(schedule: str) -> None:
    """The sum grows by planes where it lies; logits, currents and counters are the same."""
    images = FAMILIES["spikformer-imagenet"].inputs(8)
    passes = f"{PASS},{DEFAULT_PASSES}"
    program = compiled(plain("spikformer-imagenet"), images, check=0, passes=passes, schedule=schedule).program
    given = quantise_input(program, images[:3])
    fast, reference = (run(program, given, observe=True, kernels=kernels) for kernels in ("fast", "reference"))
    assert np.array_equal(fast.logits, reference.logits)
    assert fast.currents is not None and reference.currents is not None
    assert all(np.array_equal(fast.currents[layer], reference.currents[layer]) for layer in reference.currents)
    for name in ("sop_hw", "add", "cycles", "spike_buffer_bytes"):
        assert np.array_equal(fast.counters.total(name), reference.counters.total(name)), name


LOSSY = {
    "masks": 'set-timesteps{masks="patch_embed.proj_lif3=1100","patch_embed.rpe_lif=1000"},' + LATER,
    "one timestep of them": 'set-timesteps{masks="patch_embed.proj_lif3=1000","patch_embed.rpe_lif=1000"},' + LATER,
    "guards and exits": LATER + "guard-channels{threshold=3},insert-exits{after=1,3 tau=0.3,0.4},",
    "masks and a guard of what follows": 'set-timesteps{masks="block.0.attn.proj_lif=1110"},'
    + LATER
    + "guard-channels{mode=rows after=2 threshold=1},",
    "masks and an exit": 'set-timesteps{masks="patch_embed.rpe_lif=1000"},' + LATER + "insert-exits{after=2 tau=0.3},",
}


@SCHEDULES
@pytest.mark.parametrize("what", LOSSY)
@pytest.mark.parametrize("name", SPIKFORMERS)
def test_with_the_other_lossy_passes(name: str, what: str, schedule: str) -> None:
    passes = f"{PASS},{DEFAULT_PASSES.replace(LATER, LOSSY[what])}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)
        made = compiled(plain(name), FAMILIES[name].inputs(8), check=3, passes=passes, schedule=schedule)
    assert made.checks[-1].note == "emulator == integer model"


@pytest.mark.parametrize("name", IMAGES)
def test_what_follows_is_computed_once(name: str) -> None:
    """The first block's queries, keys and values; of a Spikingformer, the last convolution of the patch splitting."""
    made = compiled(plain(name), FAMILIES[name].inputs(8), check=0, passes=f"{PASS},{DEFAULT_PASSES}")
    still = {
        op.label
        for op in made.integer.operations()
        if isinstance(op, spike.Conv | spike.Linear) and op.result_type.steps is None
    }
    layer = "linear" if name == "spikformer-cifar" else "conv"
    last = {label for label in still if label.startswith("patch_embed.") and label.endswith("4_conv")}
    assert last if name.startswith("spikingformer") else {f"block.0.attn.{part}_{layer}" for part in "qkv"} <= still


def test_layers_in_front_of_a_sum_are_computed_ahead() -> None:
    """All timesteps of the patch splitting come before the first window of what reads their sum."""
    images = FAMILIES["spikformer-cifar"].inputs(8)
    plan = plan_stages(compiled(plain("spikformer-cifar"), images, check=0, passes=f"{PASS},{DEFAULT_PASSES}").integer)
    ahead = {stage.label for stage in plan.stages if stage.timing.is_ahead}
    (total,) = (stage for stage in plan.stages if isinstance(stage, TimeSumStage))
    assert ahead == {stage.label for stage in plan.stages if stage.label.startswith("patch_embed.")} - {total.label}


def test_a_sum_in_the_middle_makes_no_logits() -> None:
    made = compiled(
        plain("spikformer-cifar"), FAMILIES["spikformer-cifar"].inputs(8), check=0, passes=f"{PASS},{DEFAULT_PASSES}"
    )
    assert [op.label for op in sums_of_logits(made.integer)] == ["mean_time"]


REFUSED = {
    "the input is events, another image at every timestep; it must be one image$": ("spikformer-events", PASS),
    r"no label begins with patch_embed\.; prefix must be one of patch_embed1, stage1": ("qkformer-cifar", PASS),
    "patch_embed is summed over time already; leave this pass out$": ("spikformer-cifar", f"{PASS},{PASS}"),
    "no neuron stands between the input and what leaves stem": ("currents", f"{PASS}{{prefix=stem}}"),
    "the network is integers already; it must stand in front of quantise$": ("integers", PASS),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_integrated_is_refused_in_one_line(said: str) -> None:
    name, passes = REFUSED[said]
    if name == "currents":
        text = next(path for path in GOLDEN if path.stem == f"{PASS}-currents").read_text()
        text = text.partition("// becomes")[0].replace("%stem", "%other").replace("%other.conv", "%stem.conv")
        network = Network(parse(text))
    elif name == "integers":
        network = compiled(plain("spikformer-cifar"), FAMILIES["spikformer-cifar"].inputs(8), check=0).integer
    else:
        network = import_model(FAMILIES[name].build(), FAMILIES[name].example())
    with pytest.raises(CStepError, match=f"^{PASS}: {said}") as error:
        run_passes(network, passes)
    assert "\n" not in str(error.value)


def test_the_given_module_is_left_as_it_is() -> None:
    network = plain("spikformer-cifar")
    text = network.text()
    (each,) = parse_passes(PASS)
    assert each.apply(network).text() != text == network.text()
