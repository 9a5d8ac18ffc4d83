"""`cstep tune`: what it writes keeps its bound and was measured; a search that was killed goes on to the same end."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

import cstep
from command.tune_files import trials_csv, write_tuned
from command.tune_table import TunedTable
from compiler.calibrate.journal import NAME, About, Journal
from compiler.calibrate.space import Point, Space
from compiler.calibrate.trials import front_passes, integer_network
from compiler.calibrate.tune import BOUNDS, Goal, Tuned
from compiler.frontend.importer import import_model
from compiler.settings import Halting, Model, RowSharing, Settings, Timesteps, read_settings
from isa.errors import CStepError
from isa.machine import load_machine
from runtime.report.costs import CHARGED, costs_of
from tests.models import DIGITS_CHECKPOINT, Shape, spikformer

IMAGES, TRIALS = 100, 26
RANGES = 16
Refuses = Callable[..., str]


@dataclass(frozen=True)
class Case:
    """A small network, images, and labels of which it has most right."""

    model: nn.Module
    images: NDArray[np.float32]
    labels: NDArray[np.int64]

    def tune(self, folder: Path | None = None, **options: Any) -> Tuned:
        given = {"max_loss": 2.0, "trials": TRIALS, "workers": 1} | options
        return cstep.tune(
            self.model, self.images[:1], self.images[RANGES:], self.labels[RANGES:], folder=folder,
            calibration=self.images[:RANGES], **given,
        )  # fmt: skip


@pytest.fixture(scope="module")
def case() -> Case:
    model, _ = spikformer(Shape(classes=5))
    random = np.random.default_rng(3)
    images = random.standard_normal((RANGES + IMAGES, 1, 16, 16)).astype(np.float32)
    labels = cstep.run(cstep.compile(model, images[:1], calibration=images[:RANGES], check=False), images).labels
    wrong = random.random(len(labels)) < 0.2
    return Case(model, images, np.where(wrong, (labels + 1) % 5, labels))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned") / "out"


@pytest.fixture(scope="module")
def tuned(case: Case, folder: Path) -> Tuned:
    return case.tune(folder)


def test_what_is_written_keeps_its_bound_and_costs_no_more(tuned: Tuned) -> None:
    assert {each.bound for each in tuned.points} == {*BOUNDS, 2.0}
    assert tuned.best.bound == 2.0
    for each in tuned.points:
        assert each.whole.images == IMAGES
        assert each.loss == pytest.approx(100 * (tuned.reference.right - each.whole.right) / IMAGES)
        assert each.loss <= each.bound + 1e-9
        assert each.costed.costs["operations"] <= each.baseline.costs["operations"]
    assert tuned.best.relative("operations") < 0.95
    ascending = sorted(tuned.points, key=lambda each: each.bound)
    costs = [each.costed.costs["operations"] for each in ascending]
    assert costs == sorted(costs, reverse=True)


def test_a_program_of_what_is_written_costs_and_loses_the_same(case: Case, tuned: Tuned, folder: Path) -> None:
    for each in {point.settings.canonical(): point for point in tuned.points}.values():
        program = cstep.compile(
            case.model, case.images[:1], calibration=case.images[:RANGES], check=False,
            settings=folder / f"settings-{each.bound:g}.toml",
        )  # fmt: skip
        done = cstep.run(program, case.images[RANGES:], workers=1)
        assert int((done.labels == case.labels[RANGES:]).sum()) == each.whole.right
        found = costs_of(program, done.counters, "cacti-28nm-lop")
        assert {name: values.mean() for name, values in found.items()} == pytest.approx(each.costed.costs)


def test_the_baseline_is_the_plain_model_and_shares_nothing(case: Case, tuned: Tuned) -> None:
    plain = cstep.compile(case.model, case.images[:1], calibration=case.images[:RANGES], check=False)
    done = cstep.run(plain, case.images[RANGES:], share=False, workers=1)
    costs = tuned.baseline.costs
    assert costs["operations"] == costs["sop_bit"] == pytest.approx(done.counters.total("sop_bit").mean())
    assert costs["cycles"] == pytest.approx(done.counters.total("cycles").mean())


def test_what_holds_on_images_of_the_search_alone_is_passed_over(case: Case, tmp_path: Path) -> None:
    """Images of which a program that always leaves after a timestep has most right, then those of the model's own."""
    early = cstep.compile(
        case.model, case.images[:1], calibration=case.images[:RANGES], check=False,
        settings={"schema": "cstep-settings/1", "model": {"name": "x"}, "exit": {"after": 1, "tau": 1e-9}},
    )  # fmt: skip
    plain = cstep.compile(case.model, case.images[:1], calibration=case.images[:RANGES], check=False)
    seen, unseen = case.images[:-50], case.images[-50:]
    labels = np.concatenate([cstep.run(early, seen, workers=1).labels, cstep.run(plain, unseen, workers=1).labels])
    images = np.concatenate([seen, case.images[RANGES:], unseen])
    labels = np.concatenate([labels[: len(seen)], labels[RANGES : len(seen)], labels[-50:], labels[-50:]])
    other = Case(case.model, images, labels)
    found = other.tune(tmp_path / "out", confirm=50, max_loss=0.0)
    assert any("that it did not see, and were passed over" in note for note in found.notes)
    for each in found.points:
        assert each.confirmed is not None and each.confirmed.images == 50 and each.confirmed.holds(each.bound)
        written = read_settings(tmp_path / "out" / f"settings-{each.bound:g}.toml")
        program = cstep.compile(
            case.model, case.images[:1], calibration=case.images[:RANGES], check=False, settings=written
        )
        right = cstep.run(program, unseen, workers=1).labels == labels[-50:]
        assert each.confirmed.loss == pytest.approx(100 * (~right).mean())
        assert each.confirmed.error == pytest.approx(100 * right.std() / 50**0.5)
    searched = [each for each in found.trials if not each.unseen and each.exit_rate > 0.5]
    assert any(each.right >= found.reference.right for each in searched), "exits lost nothing in the search"
    again = other.tune(tmp_path / "out", confirm=50, max_loss=0.0, resume=True)
    assert again.ran == 0 and _known(again) == _known(found)
    with pytest.raises(CStepError, match="holds a search on other images or labels"):
        other.tune(tmp_path / "out", confirm=40, max_loss=0.0, resume=True)


def test_operations_charge_everything_that_is_decided(case: Case) -> None:
    settings = {
        "schema": "cstep-settings/1", "model": {"name": "x"}, "exit": {"after": 2, "tau": 0.5},
        "guard": {"mode": "both"}, "tokens": {"keep": 0.5},
    }  # fmt: skip
    program = cstep.compile(
        case.model, case.images[:1], calibration=case.images[:RANGES], check=False, settings=settings
    )
    counters = cstep.run(program, case.images[:4], workers=1).counters
    assert all(counters.total(name).sum() > 0 for name in CHARGED)
    heads = [index for index, layer in enumerate(program.header.layers) if layer.operation == "exit"]
    charged = sum(counters.total(name) for name in CHARGED)
    charged = charged + sum(counters.by_layer(name)[:, heads].sum(axis=1) for name in ("mac", "add"))
    found = costs_of(program, counters, "45nm-int8")
    assert found["operations"].tolist() == charged.tolist()
    assert (found["operations"] > counters.total("sop_hw") + counters.total("token_scores")).all()


def _known(tuned: Tuned) -> list[object]:
    """All of a search but the seconds."""
    each = [trial.model_copy(update={"seconds": 0.0}) for trial in tuned.trials]
    return [each, [(point.bound, point.settings, point.loss, point.costed) for point in tuned.points]]


@pytest.mark.parametrize("kept", [0, 20])
def test_a_search_that_was_killed_goes_on_and_runs_nothing_twice(
    case: Case, tuned: Tuned, folder: Path, tmp_path: Path, kept: int
) -> None:
    lines = (folder / NAME).read_bytes().splitlines(keepends=True)
    assert len(lines) == len(tuned.trials) + 1
    whole, torn = lines[: kept + 1], b"".join(lines[kept + 1 : kept + 2])[:-7]
    (tmp_path / NAME).write_bytes(b"".join(whole) + torn)
    again = case.tune(tmp_path, resume=True)
    assert again.ran == len(lines) - len(whole)
    assert _known(again) == _known(tuned)
    assert len((tmp_path / NAME).read_bytes().splitlines()) == len(lines)
    for name in ("settings.toml", "settings-0.5.toml", "curve.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_longer_search_begins_with_the_shorter_one(case: Case, tuned: Tuned, folder: Path, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes((folder / NAME).read_bytes())
    longer = case.tune(tmp_path, resume=True, trials=TRIALS + 6)
    assert 0 < longer.ran < len(longer.trials) / 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_loss": 3.0}, r"holds a search with another bound of the loss \(2\.0, now 3\.0\)"),
        ({"objective": "energy"}, "holds a search for another objective"),
        ({"energy": "45nm-int8"}, "holds a search for another objective"),
        ({"machine": "c-step-64"}, "holds a search for another machine"),
        ({"seed": 1}, "holds a search with another seed"),
        ({"settings": {"schema": "cstep-settings/1", "model": {"name": "x"}, "guard": {}}}, "other base settings"),
        ({"resume": False}, "is not empty; --resume goes on"),
    ],
)
def test_a_journal_of_another_search_is_refused(
    case: Case, tuned: Tuned, folder: Path, options: dict[str, Any], said: str
) -> None:
    before = (folder / NAME).read_bytes()
    with pytest.raises(CStepError, match=said):
        case.tune(folder, **{"resume": True, **options})
    assert (folder / NAME).read_bytes() == before


def test_a_journal_of_other_weights_images_or_labels_is_refused(case: Case, tuned: Tuned, folder: Path) -> None:
    other, _ = spikformer(Shape(classes=5, seed=1))
    with pytest.raises(CStepError, match="holds a search of another checkpoint"):
        Case(other, case.images, case.labels).tune(folder, resume=True)
    with pytest.raises(CStepError, match="holds a search on other images"):
        Case(case.model, np.concatenate([case.images[:RANGES], -case.images[RANGES:]]), case.labels).tune(
            folder, resume=True
        )
    with pytest.raises(CStepError, match="holds a search on other images or labels"):
        Case(case.model, case.images, case.labels[::-1].copy()).tune(folder, resume=True)
    with pytest.raises(CStepError, match="holds a search with other ranges"):
        Case(case.model, np.concatenate([case.images[:RANGES] * 2, case.images[RANGES:]]), case.labels).tune(
            folder, resume=True
        )


def test_a_folder_that_holds_something_else_is_refused(case: Case, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in (False, True):
        with pytest.raises(CStepError, match="holds no search of `cstep tune`"):
            case.tune(tmp_path, resume=resume)
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_journal_with_a_broken_line_is_refused(tuned: Tuned, folder: Path, tmp_path: Path) -> None:
    lines = (folder / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(lines[0] + b"{}\n" + lines[1])
    about = About.model_validate_json(lines[0])
    with pytest.raises(CStepError, match="line 2 is none of `cstep tune`"):
        Journal.open(tmp_path, about, resume=True)


def test_every_trial_is_in_the_table_and_the_files(tuned: Tuned, folder: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(trials_csv(tuned))))
    assert len(rows) == len(tuned.trials) <= TRIALS + 12
    assert {int(row["images"]) for row in rows} <= {16, IMAGES}
    assert {path.name for path in write_tuned(tuned, folder)} == {
        each.name for each in folder.iterdir() if each.name != NAME
    }
    chosen = read_settings(folder / "settings.toml")
    assert chosen == tuned.best.settings
    assert chosen.data is not None and chosen.data.images == IMAGES
    from rich.console import Console

    screen = Console(width=200, file=io.StringIO(), record=True)
    screen.print(TunedTable(tuned, "cacti-28nm-lop"))
    text = screen.export_text()
    assert "best for operations at a loss of 2 points or less" in text
    assert f"{len(tuned.trials)} trials" in text
    assert "cacti-28nm-lop, modelled" in text


def test_sharing_is_chosen_among_the_machines_modes_and_says_on_how_many_images(case: Case) -> None:
    found = case.tune(machine="c-step-reuse", trials=14)
    tried = {json.loads(each.settings)["sharing"]["mode"] for each in found.trials}
    assert tried == {"none", *load_machine("c-step-reuse").sharing}
    best = found.best
    assert best.settings.sharing is not None
    assert best.costed.images == best.baseline.images == IMAGES
    few = [each for each in found.trials if each.images == 16]
    modes = {json.loads(each.settings)["sharing"]["mode"]: each.costs["operations"] for each in few[:8]}
    assert best.settings.sharing.mode in sorted(modes, key=lambda mode: modes[mode])[:3]


def space_of(base: Settings, **shape: Any) -> Space:
    model, images = spikformer(Shape(**shape))
    machine = load_machine("c-step-reuse")
    import torch

    network = integer_network(
        import_model(model, torch.from_numpy(images[:1])), front_passes(machine, images, None), images
    )
    return Space.of(network, machine, base)


PLAIN = Settings(model=Model(name="x"))


def test_moves_are_notches_in_every_dimension() -> None:
    space = space_of(PLAIN, depths=2)
    assert next(iter(space.parts)) == "sps"
    assert {"qkv block.0", "attn block.1", "mlp block.1"} <= space.parts.keys()
    names = [move.name for move in space.forward(space.trained)]
    assert len(names) == len(set(names))
    assert {"T-1 all", "T-1 mlp", "T-1 mlp block.0", "exit 1", "guard both 2", "keep down 0", "keep down all"} <= {
        *names
    }
    assert not list(space.backward(space.trained))
    some = Point((3, *space.trained.kept[1:]), (2,), ("both", 2, 1), (1.0, 0.875), "temporal")
    for move in space.backward(some):
        settings = space.settings(move.point, RowSharing(mode="pair"))
        assert settings != space.settings(some, RowSharing(mode="pair"))
    assert "score code" not in {move.name for move in space.forward(some)}
    assert "score code" in {move.name for move in space.forward(Point(some.kept, keep=some.keep))}


def test_dimensions_that_a_model_cannot_have_are_left_out_with_a_note() -> None:
    single = space_of(PLAIN, depths=1, timesteps=1)
    assert {move.name.partition(" ")[0] for move in single.forward(single.trained)} == {"keep"}
    assert any("T=1" in note for note in single.notes)
    halting = PLAIN.model_copy(update={"halting": Halting(alpha=-5, beta=0)})
    space = space_of(halting, depths=1)
    names = {move.name for move in space.forward(space.trained)}
    assert "epsilon up" in names
    assert not any(name.startswith("keep") for name in names)
    raised = next(move.point for move in space.forward(space.trained) if move.name == "epsilon up")
    assert cast(Any, space.settings(raised, RowSharing()).halting).epsilon == 0.02


def test_trained_masks_are_kept() -> None:
    label = "block.0.mlp.fc1_lif"
    space = space_of(PLAIN.model_copy(update={"timesteps": Timesteps(masks={label: "1010"})}), depths=1)
    assert cast(Any, space.settings(space.trained, RowSharing()).timesteps).masks == {label: "1010"}
    fewer = next(move.point for move in space.forward(space.trained) if move.name == "T-1 all")
    masks = cast(Any, space.settings(fewer, RowSharing()).timesteps).masks
    assert masks[label] == "1010"
    assert masks["block.0.mlp.fc2_lif"] == "1110"
    assert space.plain().timesteps is None


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal(max_loss=-0.1), r"--max-loss -0\.1: must be 0\.\.100"),
        (Goal(max_loss=float("nan")), "--max-loss nan"),
        (Goal(objective=cast(Any, "beauty")), "--for beauty: must be one of operations, cycles, energy"),
        (Goal(minutes=0), "--budget 0"),
        (Goal(trials=0), "--trials 0"),
        (Goal(shared=1), "--sharing-images 1"),
        (Goal(unseen=-1), "--confirm-images -1"),
    ],
)
def test_what_cannot_be_searched_for_is_refused(goal: Goal, said: str) -> None:
    with pytest.raises(CStepError, match=said):
        goal.require()


COMMAND = ("tune", "spikformer-2-96", "--checkpoint", str(DIGITS_CHECKPOINT), "--calibration", "digits")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--for", "beauty"), "--for"),
        (("--max-loss", "-1"), "--max-loss -1: must be 0..100 points"),
        (("--budget", "0"), "--budget 0: must be more than 0 minutes"),
        (("--budget", "1", "--trials", "5"), "--budget and --trials: give one of them"),
        (("--images", "50"), "50 held-out images beside 50 to confirm on; at least 100"),
        (("--images", "50", "--confirm-images", "0"), "50 held-out images; at least 100"),
        (("--images", "400", "--confirm-images", "100"), "--confirm-images 100: digits has 18 more; ask for fewer"),
        (("--images", "418", "--confirm-images", "1"), "--confirm-images 1: digits has none left"),
        (("--images", "1000"), "--images 1000: digits has 418 that no range came from"),
        (("--energy", "free"), "energy table free: no such table"),
        (("--settings", "sharing.toml"), "sharing forest: machine c-step has pair"),
        (("--settings", "missing.toml"), "missing.toml"),
    ],
)
def test_bad_input_is_one_line(
    arguments: tuple[str, ...], said: str, refuses: Refuses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sharing.toml").write_text(
        'schema = "cstep-settings/1"\n[model]\nname = "spikformer-2-96"\n[sharing]\nmode = "forest"\n'
    )
    assert said in refuses(*COMMAND, "-o", tmp_path / "out", *arguments)
    assert not (tmp_path / "out" / NAME).exists()


def test_the_command_writes_settings_that_compile_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    tiny = ("--images", "100", "--trials", "8", "--max-loss", "1", "--workers", "1", "-o", str(out))
    assert cstep.main([*COMMAND, *tiny]) == 0
    shown = capsys.readouterr()
    assert "best for operations at a loss of 1 points or less" in shown.out
    built = ["compile", "spikformer-2-96", "--checkpoint", str(DIGITS_CHECKPOINT), "--calibration", "digits"]
    assert (
        cstep.main([*built, "--no-check", "--settings", str(out / "settings.toml"), "-o", str(out / "net.cstep")]) == 0
    )
    before = (out / "settings.toml").read_bytes()
    assert cstep.main([*COMMAND, *tiny, "--resume"]) == 0
    assert ", 0 of them run now" in capsys.readouterr().out.split("net.cstep")[-1]
    assert (out / "settings.toml").read_bytes() == before
