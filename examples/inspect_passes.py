"""See what every pass does: the module's ops before and after, and the same layer in every dump.

python examples/inspect_passes.py [LAYER]        writes out/passes/*.spike, which `cstep opt` reads back
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np

import cstep
from compiler.ir.network import load_dump
from compiler.zoo import Spikformer

OUT = Path("out/passes")
LAYER = sys.argv[1] if len(sys.argv) > 1 else "block.0.mlp.fc1"

model = Spikformer(
    img_size_h=16, img_size_w=16, in_channels=1, embed_dims=32, num_heads=2, depths=1, num_classes=10, T=3
).eval()
images = np.random.default_rng(0).standard_normal((8, 1, 16, 16)).astype(np.float32)
cstep.compile(model, images[:1], calibration=images, dump_to=OUT)

for path in sorted(OUT.glob("*.spike")):
    ops = Counter(op.name for op in load_dump(path).operations())
    print(f"\n{path.stem}: {', '.join(f'{count} {name}' for name, count in ops.most_common(6))}")
    lines = [line for line in path.read_text().splitlines() if LAYER in line]
    print("\n".join(f"    {line[:150]}" for line in lines[:4]))
