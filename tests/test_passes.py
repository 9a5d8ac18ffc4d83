"""Passes: golden text, equal currents, dumps that read back, and a pipeline that stops at what is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from golden import Golden, made_up_inputs
from models import emulate

from compiler.check import Checker
from compiler.ir.network import Network, parse
from compiler.passes.network_pass import Keeps
from compiler.pipeline import PASSES, parse_passes
from isa.errors import CStepError

CALIBRATION = 8
"""Inputs for a pass that finds something out from data."""
GOLDEN = sorted((Path(__file__).parent / "passes").glob("*.spike"))


pytestmark = pytest.mark.filterwarnings("ignore::isa.errors.CStepWarning")


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden.read(request.param)


def test_a_pass_gives_its_golden_text(golden: Golden, request: pytest.FixtureRequest) -> None:
    network = golden.network()
    for each in parse_passes(golden.passes):
        network = each.apply_with(network, made_up_inputs(network, CALIBRATION))
        network.verify()
    if request.config.getoption("--update-golden"):
        golden.update(network.text())
    assert network.text() == Golden.read(golden.path).after


def test_a_pass_keeps_every_current(golden: Golden) -> None:
    """Both modules run; a pass that changes what a neuron sees is caught here even if its golden text was updated."""
    network = golden.network()
    checker = Checker(made_up_inputs(network, 3), emulate)
    checker.compare(None, network, None)
    for each in parse_passes(golden.passes):
        network = each.apply_with(network, made_up_inputs(network, CALIBRATION))
        assert checker.compare(each, network, None).compared > 0 or each.keeps == Keeps.LOSSY


def test_a_pass_leaves_the_module_it_was_given(golden: Golden) -> None:
    """The dump before a pass must still be what the pass was given."""
    network = golden.network()
    text = network.text()
    for each in parse_passes(golden.passes)[:1]:
        each.apply_with(network, made_up_inputs(network, CALIBRATION))
    assert network.text() == text


def test_both_sides_of_a_golden_file_read_back(golden: Golden) -> None:
    """The spelling loses nothing: text to module to text, and to an equal module."""
    for text in (golden.network().text(), golden.after):
        module = parse(text)
        assert Network(module).text() == text
        assert parse(Network(module).text()).is_structurally_equivalent(module)


def test_every_pass_has_a_golden_file() -> None:
    named = {each.name for path in GOLDEN for each in parse_passes(Golden.read(path).passes)}
    assert named == {kind.name for kind in PASSES}


def test_a_part_that_is_cut_wrong_is_found() -> None:
    """Neurons that are gone are compared with their parts, channel by channel."""
    golden = Golden.read(Path(__file__).parent / "passes" / "split-channels.spike")
    network, (split,) = golden.network(), parse_passes(golden.passes)
    checker = Checker(made_up_inputs(network, 3), emulate)
    checker.compare(None, network, None)
    after = split.apply(network)
    after.weights["qk.bias.channels.1"] = after.weights["qk.bias.channels.0"]
    with pytest.raises(CStepError, match=r"^split-channels: s\.channels\.1 \(model\.py:12\): image 0, element "):
        checker.compare(split, after, None)
