"""Passes on time: exact ones on every family, options, errors and warnings, and what the pipeline says of them."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from golden import Golden, made_up_inputs
from models import Shape, compiled, emulate, spikformer
from test_lossy_passes import STEPS, integer_module

from compiler.check import Checker
from compiler.frontend.importer import import_model
from compiler.ir import spike
from compiler.ir.meaning import NEURONS, Executor
from compiler.ir.network import Network, parse
from compiler.ir.onnx.integer import Oracle
from compiler.passes.network_pass import Keeps
from compiler.passes.set_timesteps import SetTimesteps
from compiler.passes.timesteps import average_timesteps, timesteps_of
from compiler.pipeline import DEFAULT_PASSES, parse_passes
from isa.errors import CStepError, CStepWarning

GOLDEN = Path(__file__).parent / "passes"
FAMILY = pytest.mark.parametrize("name", FAMILIES)
SMALL = "spikformer-cifar"


def applied(network: Network, passes: str) -> Network:
    for each in parse_passes(passes):
        network = each.apply(network)
        network.verify()
    return network


def masks(network: Network, seed: int, *choices: str) -> str:
    """The pass that draws a mask for every neuron layer."""
    draw = random.Random(seed)
    labels = [op.label for op in network.operations() if isinstance(op, NEURONS)]
    return "set-timesteps{masks=" + ",".join(f'"{label}={draw.choice(choices)}"' for label in labels) + "}"


@FAMILY
def test_masked_and_hoisted_modules_have_no_differing_integer(name: str) -> None:
    """Every layer's mask is drawn, the last one's too: timesteps disappear from the end, up to the input."""
    network = integer_module(name)
    checker = Checker(FAMILIES[name].inputs(2, seed=9, steps=STEPS), None)
    drawn = masks(network, 1, "1111", "1110", "1100", "1000", "0000", "0110")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CStepWarning)
        for each in parse_passes(f"{drawn},mask-timesteps,hoist-invariant"):
            network = each.apply(network)
            network.verify()
            compared = checker.compare(each, network, None).compared
            assert compared > 0 or each.keeps == Keeps.LOSSY
    assert average_timesteps(network) < STEPS


EXACT = ",mask-timesteps,hoist-invariant"


@pytest.mark.filterwarnings("ignore:.*has holes")
@pytest.mark.parametrize(
    ("name", "then"),
    [(SMALL, ""), ("sdt-v3-events", ""), (SMALL, EXACT), ("qkformer-cifar", EXACT), ("sdt-v1", EXACT)],
)
def test_onnxruntime_masks_neurons_as_the_module_does(name: str, then: str) -> None:
    network = integer_module(name)
    masked = applied(network, masks(network, 2, "1111", "1100", "0110") + then)
    oracle, executor = Oracle(masked), Executor(masked)
    for x in FAMILIES[name].inputs(2, seed=1, steps=STEPS):
        expected, found = executor.run(x), oracle.run(x)
        assert np.array_equal(expected.output, found.output)
        assert all(np.array_equal(current, found.currents[label]) for label, current in expected.currents.items())


@pytest.mark.parametrize("decision", ["guard-channels{after=1}", "insert-exits{after=2 tau=0.9}"])
def test_decisions_have_no_onnx_form(decision: str) -> None:
    with pytest.raises(CStepError, match="depends on the input; ONNX is written without guards and exits"):
        Oracle(applied(integer_module(SMALL), decision))


def test_a_prefix_mask_leaves_only_its_timesteps() -> None:
    """Of the layer, and of those that only it reads."""
    network = integer_module(SMALL)
    lowered = applied(network, 'set-timesteps{masks="block.0.mlp.fc2_lif=1100"},mask-timesteps')
    assert dict.fromkeys(("block.0.mlp.fc1_lif", "block.0.mlp.fc2_lif"), 2) == {
        label: steps for label, steps in timesteps_of(lowered).items() if steps != STEPS
    }
    assert not any(op.get("mask") for op in lowered.operations() if isinstance(op, NEURONS))
    assert average_timesteps(lowered) == STEPS - 4 / len(timesteps_of(network))


def test_hoisting_leaves_events_as_they_are() -> None:
    network = integer_module("qkformer-events")
    assert applied(network, "hoist-invariant").text() == network.text()


def test_hoisting_leaves_a_network_of_one_timestep_as_it_is() -> None:
    text = Golden.read(GOLDEN / "hoist-invariant.spike").network().text().replace("T=4", "T=1")
    assert Network(parse(text)).text() == parse_passes("hoist-invariant")[0].apply(Network(parse(text))).text()


def test_an_exit_that_is_never_taken_leaves_every_logit_as_it_is() -> None:
    network = integer_module(SMALL)
    with pytest.warns(CStepWarning, match="exit after 2: tau=1 is never passed"):
        never = applied(network, "insert-exits{after=2 tau=1}")
    for x in FAMILIES[SMALL].inputs(4, seed=2):
        assert np.array_equal(Executor(never).run(x).output, Executor(network).run(x).output)


def test_an_exit_that_no_input_can_reach_is_a_warning_that_names_the_bound() -> None:
    text = Golden.read(GOLDEN / "insert-exits-entropy.spike").network().text().replace("scale=0.001", "scale=0.0001")
    said = r"exit after 1: no input can reach tau=0\.9999; .* allow 0\.998\d+ at most$"
    with pytest.warns(CStepWarning, match=said):
        after = parse_passes("insert-exits{after=1 tau=0.9999}")[0].apply(Network(parse(text)))
    (leave,) = (op for op in after.operations() if isinstance(op, spike.Exit))
    assert leave.get("thresholds") == (2 * 2 * 9200 + 1,)


def test_a_mask_with_holes_is_a_warning() -> None:
    network = integer_module(SMALL)
    with pytest.warns(CStepWarning, match=r"block\.0\.mlp\.fc2_lif: mask 1010 has holes; .* 3 timesteps"):
        applied(network, 'set-timesteps{masks="block.0.mlp.fc2_lif=1010"},mask-timesteps')


REFUSED = {
    "insert-exits{after=4}": r"after=4; .* must be after 1\.\.3$",
    "insert-exits{after=0}": r"after=0; .* must be after 1\.\.3$",
    "insert-exits{after=2,1 tau=0.5,0.5}": r"after=2,1; exits must ascend",
    "insert-exits{after=1,2 tau=0.5}": r"tau=0\.5; it must be 2 numbers, one each for after=1,2$",
    "insert-exits{after=1,2 tau=0.5,0.6 variance=1,2,3}": r"variance=1\.0,2\.0,3\.0; it must be 2 numbers",
    "insert-exits{after=1 tau=1.5}": r"tau=1\.5; a confidence is above 0, and 1 at most$",
    "insert-exits{after=1 tau=0}": r"tau=0\.0; a confidence is above 0, and 1 at most$",
    "insert-exits{after=1 variance=-1}": r"variance=-1\.0; it must be in 0\.\.1000000$",
    "insert-exits{after=1 variance=1.0e+308}": r"variance=1e\+308; it must be in 0\.\.1000000$",
    "insert-exits{criterion=margin}": r"criterion=margin; it must be one of lightsoftmax, softmax, entropy$",
    "insert-exits{after=half}": r"after=half; it must be whole numbers with commas between$",
    "insert-exits{after=1},insert-exits{after=2}": "the network has exits; give all of them at once$",
    "guard-channels{after=4}": r"after=4; with T=4 it must be in 1\.\.3$",
    "guard-channels{after=0}": r"after=0; with T=4 it must be in 1\.\.3$",
    "guard-channels{mode=none}": "mode=none; it must be one of rows, columns, both$",
    "guard-channels{threshold=65535}": r"threshold=65535; it must be in 0\.\.65534$",
    "guard-channels,guard-channels": "the network has guards; give their mode at once$",
    "set-timesteps{masks=1100}": r"masks=1100; it must be words \(quoted where they are no plain ones\) with commas",
    'set-timesteps{masks="block.0.mlp.fc3_lif=1100"}': r"no neuron layer is called .*fc3_lif; did you mean .*fc2_lif",
    'set-timesteps{masks="block.0.mlp.fc2_lif=110"}': r"fc2_lif=110: 3 timesteps; the layer has T=4$",
    'set-timesteps{masks="block.0.mlp.fc2_lif=1120"}': r'fc2_lif=1120; it must read "label=1100"',
    'set-timesteps{masks="a=1100","a=1000"}': "two masks for a; it takes one$",
}


@pytest.mark.parametrize("passes", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(passes: str) -> None:
    with pytest.raises(CStepError, match=REFUSED[passes]) as error:
        applied(integer_module(SMALL), passes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("passes", ["insert-exits{after=1}", "guard-channels{after=1}"])
def test_one_timestep_has_no_later_one(passes: str) -> None:
    text = Golden.read(GOLDEN / "insert-exits-entropy.spike").network().text().replace("T=4", "T=1")
    with pytest.raises(CStepError, match="the network has T=1"):
        parse_passes(passes)[0].apply(Network(parse(text)))


def test_one_class_has_no_exits() -> None:
    text = Golden.read(GOLDEN / "insert-exits-entropy.spike").network().text().replace("3xint", "1xint")
    with pytest.raises(CStepError, match="the network has one class"):
        parse_passes("insert-exits{after=1}")[0].apply(Network(parse(text)))


def test_a_network_without_neurons_has_no_channels_to_guard() -> None:
    text = """%x = spike.input : !spike.train<T=4, 8xf32>
%e = spike.quantise_image %x scale=1.0 : !spike.train<T=4, 8xi8>
%s = spike.sum_time %e : !spike.tensor<8xint<-508, 508>>
spike.output %s
"""
    with pytest.raises(CStepError, match=r"^guard-channels: the network has no integer neurons to guard"):
        parse_passes("guard-channels")[0].apply(Network(parse(text)))


def test_a_layer_that_lost_a_timestep_too_many_is_found() -> None:
    """What is left of each layer may still be right: the logits are not."""
    golden = Golden.read(GOLDEN / "mask-timesteps.spike")
    network, (each,) = golden.network(), parse_passes(golden.passes)
    checker = Checker(made_up_inputs(network, 3), emulate)
    checker.compare(SetTimesteps(), network, None)
    after = each.apply(network)
    wrong = after.text().replace("%mean = ", "%cut = spike.truncate %f.lif : !spike.train<T=1, 6x8xi1>\n%mean = ")
    wrong = wrong.replace("spike.sum %f.lif axis=0 : !spike.train<T=3", "spike.sum %cut axis=0 : !spike.train<T=1")
    with pytest.raises(CStepError, match=r"^mask-timesteps: logits: image 0"):
        checker.compare(each, Network(parse(wrong), after.weights), None)


@pytest.mark.parametrize("schedule", ["layers", "windows"])
def test_the_pipeline_compares_modules_and_programs_of_lossy_passes(schedule: str) -> None:
    """Behind the new references every integer that is computed is the same, on the emulator too."""
    network, images = spikformer(Shape(rate=0.08))
    lossy = 'set-timesteps{masks="block.0.mlp.fc1_lif=1110"},mask-timesteps,hoist-invariant,'
    lossy += "guard-channels{threshold=3},insert-exits{after=1,3 tau=0.3,0.4},"
    passes = DEFAULT_PASSES.replace("mask-timesteps,hoist-invariant,", lossy)
    made = compiled(
        import_model(network, torch.from_numpy(images[:1])), images, check=4, passes=passes, schedule=schedule
    )
    notes = {check.name: check.note for check in made.checks}
    assert notes["set-timesteps"] == "new reference: lossy, T_avg 3.92"
    assert notes["guard-channels"] == notes["insert-exits"] == "new reference: lossy"
    assert notes["mask-timesteps"] == notes["hoist-invariant"] == "== integer model"
    assert notes["synchronise"] == "emulator == integer model"
