"""The Python API in ten lines: compile the bundled checkpoint, save it, load it, run it on held-out digits."""

from pathlib import Path

import cstep
from compiler.frontend.model import open_model
from runtime.dataset import load_dataset

HERE = Path(__file__).parent
OUT = Path("out/quickstart")

trained = open_model("spikformer-2-96", HERE / "spikformer-digits.safetensors")
digits = {"shape": trained.input, "mean": trained.mean, "std": trained.std}
images = load_dataset("digits", split="train", **digits).take(64, seed=0).images
program = cstep.compile(trained.module, images[:1], calibration=images)

OUT.mkdir(parents=True, exist_ok=True)
program.save(OUT / "digits.cstep")
held_out = load_dataset("digits", split="test", **digits)
result = cstep.run(cstep.load(OUT / "digits.cstep"), held_out.images)
print(f"top-1 {(result.labels == held_out.labels).mean():.2%} of {len(held_out)} digits")
print(
    f"{result.counters.total('sop_hw').mean():,.0f} accumulations, {result.counters.total('cycles').mean():,.0f} cycles"
)
