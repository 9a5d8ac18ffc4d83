"""How rows of spikes share their sums: five modes, all exact, each giving a `Reuse` (docs/sharing.md)."""
