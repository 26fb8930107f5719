"""What the user says of a checkpoint; the rest is believed of its files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """None: as the source says, or its habit. `ExportOptions` has the same fields, but for `factor`."""

    heads: int | None = None
    null_class: bool | None = None  # whether the last row of the label table is "no class"
    image_size: int | None = None  # pixels; compared
    factor: int | None = None  # picture pixels per pixel of the network along a side: 1, or the VAE's
    weights: str | None = None  # name of the state dict in the file; None: the average over training (EMA)
    model: str | None = None  # package.module:factory of a custom network
    prediction: str | None = None  # "flow-to-data" is SiT, whose checkpoints look like DiT's
    betas: str | None = None  # of training, see `read_betas`
    zero_terminal_snr: bool = False  # the betas were rescaled so that the last timestep is pure noise
