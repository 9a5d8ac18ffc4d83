"""The search itself: a beam of points that move notch by notch, all dimensions at once, within a bound of the loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from compiler.calibrate.bench import Bench, Exhausted
from compiler.calibrate.journal import Trial
from compiler.calibrate.space import Move, Point, Space
from compiler.settings import RowSharing

BEAM = 3
"""Points that are followed at once."""
WIDTH = 8
"""Moves of a point that are screened in a round: those that saved the most when last tried, and some drawn."""
DRAWN = 3
PROMOTED = 3
"""Candidates of a round that are run on all images."""
KICKS = 3
"""How often the search begins anew near its best point without finding a better one before it ends."""
SPARE = 2
"""Images more than the bound allows that a candidate may lose where it is only screened."""
LAST = 0.03
"""Of the budget, beyond its share, for running on all images what was screened when it was spent."""


@dataclass(frozen=True)
class Found:
    """A point that was run on all images, within the bound."""

    point: Point
    trial: Trial
    cost: float
    """Relative to the baseline."""

    @property
    def order(self) -> tuple[float, int, str]:
        """The cheapest first; of equals the one with more right."""
        return self.cost, -self.trial.right, self.trial.settings


@dataclass(frozen=True)
class Candidate:
    """A move that was screened, and the point that it comes from."""

    origin: Found
    point: Point
    cost: float
    score: float
    """Cost saved over images lost."""


@dataclass
class Beam:
    """The search for one bound of the loss."""

    bench: Bench
    space: Space
    cost: Callable[[Trial], float]
    """Of a trial on all images, relative to the baseline."""
    objective: str
    sharing: RowSharing
    """What all of its trials have."""
    bound: float
    random: np.random.Generator
    gains: dict[str, float]
    """What a move saved when it was tried last, over what it lost."""
    found: dict[Point, Found] = field(default_factory=dict[Point, Found])
    screened: set[Point] = field(default_factory=set[Point])

    def search(self, begin: Sequence[Found]) -> None:
        """Look until nothing better is found some times, or the budget is spent (raises Exhausted)."""
        beam, failed = list(begin), 0
        while beam and failed <= KICKS:
            before = self.best().cost
            self._forward(beam)
            self._swap()
            failed = 0 if self.best().cost < before else failed + 1
            kicked = self._kicked(self.best().point)
            beam = self.top(BEAM - 1) + ([kicked] if kicked else [])

    def best(self) -> Found:
        return self.top(1)[0]

    def top(self, count: int) -> list[Found]:
        """The cheapest."""
        return sorted(self.found.values(), key=lambda each: each.order)[:count]

    def confirm(self, point: Point) -> Found | None:
        """A point on all images; None where it does not hold the bound."""
        if point not in self.found:
            trial = self.bench.tuned(self.space.settings(point, self.sharing), self.bound)
            if trial is None or not self.bench.within(trial, self.bound):
                return None
            self.found[point] = Found(point, trial, self.cost(trial))
        return self.found[point]

    def retune(self, point: Point) -> None:
        """A point that was found within another bound, with the exits that this one allows if that costs less."""
        before = self.found.pop(point)
        try:
            self.confirm(point)
        finally:
            after = self.found.get(point)
            if after is None or before.order < after.order:
                self.found[point] = before

    def _forward(self, beam: Sequence[Found]) -> None:
        """Rounds of moves that save something, until none does within the bound."""
        while beam:
            moves = [(each, move) for each in beam for move in self._some(list(self.space.forward(each.point)))]
            beam = self._step(moves)

    def _swap(self) -> None:
        """From the best point one notch back, alone or with one forward, as long as that saves something."""
        while True:
            best = self.best()
            moves: list[Move] = []
            for back in self.space.backward(best.point):
                forward = sorted(self.space.forward(back.point), key=lambda move: -self.gains.get(move.name, 0.0))
                moves += [back, *(Move(f"{back.name}, {move.name}", move.point) for move in forward[:3])]
            if not self._step([(best, move) for move in self._some(moves)]) or self.best() is best:
                return

    def _some(self, moves: Sequence[Move]) -> list[Move]:
        """Of those that are new: what saved the most when it was tried last, the untried first; and some drawn."""
        new = [move for move in moves if move.point not in self.found and move.point not in self.screened]
        if len(new) <= WIDTH:
            return new
        order = sorted(range(len(new)), key=lambda index: -self.gains.get(new[index].name, float("inf")))
        first, rest = order[: WIDTH - DRAWN], order[WIDTH - DRAWN :]
        drawn = sorted(self.random.choice(len(rest), DRAWN, replace=False).tolist())
        return [new[index] for index in (*first, *(rest[each] for each in drawn))]

    def _step(self, moves: Sequence[tuple[Found, Move]]) -> list[Found]:
        """Screen moves, run the best on all images, and return those that cost less than where they came from."""
        pool: dict[Point, Candidate] = {}
        spent = False
        try:
            for origin, move in moves:
                if move.point not in self.screened and (seen := self._screen(origin, move)) is not None:
                    pool[move.point] = seen
        except Exhausted:
            spent = True
            self.bench.budget.share += LAST
        taken = self._promote(pool)
        if spent:
            raise Exhausted
        return taken

    def _promote(self, pool: dict[Point, Candidate]) -> list[Found]:
        """Run the cheapest and those with the best score; the best score first of what costs less than its origin."""
        cheapest = sorted(pool.values(), key=lambda each: each.cost)[: PROMOTED // 2]
        rest = [each for each in pool.values() if each not in cheapest]
        taken: list[tuple[float, Found]] = []
        for each in cheapest + sorted(rest, key=lambda each: -each.score)[: PROMOTED - len(cheapest)]:
            found = self.confirm(each.point)
            if found is not None and found.cost < each.origin.cost:
                worse = max(0, self.bench.lost(found.trial) - self.bench.lost(each.origin.trial))
                taken.append(((each.origin.cost - found.cost) / (1 + worse), found))
        first = [found for _, found in sorted(taken, key=lambda each: -each[0])[:1]]
        others = sorted((found for _, found in taken if found not in first), key=lambda each: each.order)
        return first + others[: BEAM - 1]

    def _screen(self, origin: Found, move: Move) -> Candidate | None:
        """A move on a few images; None where it saves nothing, or loses too much."""
        bench, images = self.bench, self.bench.screen
        self.gains[move.name] = 0.0
        trial = bench.tuned(self.space.settings(move.point, self.sharing), self.bound, images, SPARE)
        self.screened.add(move.point)
        if trial is None or not bench.within(trial, self.bound, SPARE):
            return None
        relative = trial.costs[self.objective] / origin.trial.on(images).costs[self.objective]
        worse = max(0, bench.lost(trial) - bench.lost(origin.trial, images))
        self.gains[move.name] = (1 - relative) / (1 + worse)
        return Candidate(origin, move.point, relative * origin.cost, self.gains[move.name]) if relative < 1 else None

    def _kicked(self, point: Point) -> Found | None:
        """The best point with a few notches taken back at random, if that holds the bound."""
        for _ in range(2):
            moves = list(self.space.backward(point))
            if not moves:
                break
            point = moves[int(self.random.integers(len(moves)))].point
        return self.confirm(point)
