"""From a trained spiking transformer to an accelerator program."""
