"""The guards of a plan: which trains are counted, and which stages skip work by that (spike.guard)."""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.ir import SSAValue


@dataclass(frozen=True)
class ChannelGuard:
    """The channels of a train that were not silent in its first `after` timesteps: one count, one mask."""

    counted: SSAValue
    """What is counted: the spikes of neurons (no residual added yet), or a train in DRAM."""
    train: SSAValue
    """The train in DRAM whose channels these are: what is counted, or what it is added to."""
    after: int
    threshold: int


@dataclass
class Guards:
    """The guards of a module's stages, by the train or stream that a stage makes."""

    columns: dict[SSAValue, ChannelGuard] = field(default_factory=dict[SSAValue, ChannelGuard])
    """What a stage's late neurons are computed under."""
    rows: dict[SSAValue, ChannelGuard] = field(default_factory=dict[SSAValue, ChannelGuard])
    """What a weighted stage's late inputs are read under."""
    counted: dict[SSAValue, list[ChannelGuard]] = field(default_factory=dict[SSAValue, list[ChannelGuard]])
    """What a stage counts, and makes masks of."""

    def guard_columns(self, made: SSAValue, guard: ChannelGuard) -> None:
        """The stage that makes `made` computes its late neurons under a guard of theirs."""
        self.columns[made] = guard
        self._count(guard)

    def guard_rows(self, made: SSAValue, guard: ChannelGuard) -> None:
        """The weighted stage that makes `made` reads the late timesteps of a train under a guard."""
        self.rows[made] = guard
        self._count(guard)

    def _count(self, guard: ChannelGuard) -> None:
        found = self.counted.setdefault(guard.train, [])
        if guard not in found:
            found.append(guard)

    def cuts(self, made: SSAValue) -> set[int]:
        """The timesteps at which the windows of a stage must end."""
        skipped = (held.get(made) for held in (self.columns, self.rows))
        return {guard.after for guard in (*self.counted.get(made, ()), *skipped) if guard}
