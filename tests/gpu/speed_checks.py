"""Rooflines: what a guided step of a published size takes in PyTorch at its best, to hold engines against."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ditedge.export.graphs.modules import Step
from ditedge.export.networks.dit import DiT, DiTConfig

from .loop_checks import Lab

SIZES = {"XL/2": (1152, 28, 16), "S/2": (384, 12, 6)}  # width, depth, heads
BATCHES, REPLAYS = (1, 8, 32), 20


def config_of(size: str) -> DiTConfig:
    """At 256 x 256 pixels: latents of 4 x 32 x 32, 256 tokens."""
    width, depth, heads = SIZES[size]
    return DiTConfig(
        input_size=32,
        patch_size=2,
        in_channels=4,
        hidden_size=width,
        depth=depth,
        num_heads=heads,
        num_classes=1000,
    )


def trunk_flops(config: DiTConfig) -> int:
    """Of one evaluation's products, two each multiply-add; the conditioner runs once per image."""
    tokens, width, patch = config.tokens, config.hidden_size, config.patch_size**2
    block = 4 * width**2 + 2 * width * config.mlp_size + 2 * tokens * width  # qkv, proj; mlp; both of attention
    ends = patch * (config.in_channels + config.out_channels) * width
    return 2 * tokens * (config.depth * block + ends)


class Narrow(nn.Module):
    """A network whose trunk computes in 16 bits, between float32 samplers: as the graphs of a 16-bit bundle do."""

    def __init__(self, network: DiT, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.config, self.dtype = network, network.config, dtype

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        return self.network.trunk(x.to(self.dtype), modulation.to(self.dtype)).float()


def step_inputs(config: DiTConfig, batch: int, device: str) -> dict[str, Tensor]:
    """Of a guided step: two evaluations a sample, two rows of modulation a sample, one state slot."""
    latent, normal = (config.in_channels, config.input_size, config.input_size), torch.randn
    with torch.device(device):
        return {
            "state": normal(batch, 1, *latent),
            "sample": torch.arange(batch).repeat(2),
            "condition": torch.arange(2 * batch),
            "modulation": 0.1 * normal(2 * batch, config.modulation_size),
            "combine": torch.cat([4 * torch.eye(batch), -3 * torch.eye(batch)], 1)[..., None].repeat(
                1, 1, config.out_channels
            ),
            "x0_from": torch.tensor([1.0, -0.1]).repeat(batch, 1),
            "x0_bound": torch.full((batch,), 1e30),
            "log_sigma": torch.full((batch, 2), -1.0),
            "mix": torch.tensor([0.5, 0.5, 0.1]).repeat(batch, 1, 1),
            "noise": normal(batch, *latent),
        }


@torch.no_grad()
def milliseconds(work: Callable[[], object]) -> float:
    """Of one replay of a captured graph of `work`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph, begin, end = torch.cuda.CUDAGraph(), *(torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.graph(graph):
        work()
    for _ in range(3):
        graph.replay()
    begin.record()
    for _ in range(REPLAYS):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / REPLAYS


def roofline(size: str, dtype: torch.dtype) -> Callable[[Lab], str]:
    """A check: our step graph's modules as they are, then the trunk by torch compile, batch by batch."""

    def check(lab: Lab) -> str:
        torch._dynamo.reset()
        config = config_of(size)
        with torch.device("cuda"):
            network = DiT(config).to(dtype).eval().requires_grad_(False)
        step, flops = Step(Narrow(network, dtype)), trunk_flops(config)  # type: ignore[arg-type]
        inputs = {batch: step_inputs(config, batch, "cuda") for batch in BATCHES}
        ours = {batch: milliseconds(lambda b=batch: step(**inputs[b])) for batch in BATCHES}  # type: ignore[misc]
        lab.say("step modules, eager: " + ", ".join(f"{b}: {ms:.2f} ms" for b, ms in ours.items()))
        for block in network.blocks:  # one by one: 28 that are the same are compiled once
            block.compile(dynamic=False)
        for batch in BATCHES:
            x = torch.randn(2 * batch, *inputs[batch]["state"].shape[2:], device="cuda", dtype=dtype)
            modulation = inputs[batch]["modulation"].to(dtype)
            ms = milliseconds(lambda: network.trunk(x, modulation))  # noqa: B023
            lab.say(f"batch {batch} compiled: {ms:.3f} ms, {2 * batch * flops / ms / 1e9:.0f} TFLOP/s")
        return ""

    return check
