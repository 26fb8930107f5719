"""How many parameters each graph of the released models has, counted on "meta": the table of docs/sources.md."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ditedge.export.networks.aura_flow import AuraFlow, AuraFlowConfig
from ditedge.export.networks.flux import Flux, FluxConfig
from ditedge.export.networks.flux2 import Flux2, Flux2Config
from ditedge.export.networks.hunyuan_dit import HunyuanDiT, HunyuanDiTConfig
from ditedge.export.networks.lumina2 import Lumina2, Lumina2Config
from ditedge.export.networks.pixart import PixArt, PixArtConfig
from ditedge.export.networks.sana import Sana, SanaConfig
from ditedge.export.networks.sd3 import SD3, SD3Config
from ditedge.export.networks.z_image import ZImage, ZImageConfig

Parameters = dict[str, int]


def graphs_of(network: Any) -> Parameters:
    """Parameters by graph: of the modules that each of the network's four parts calls."""
    own, config = network.interface, network.config
    side, prompts = 2 * own.multiple, (2,)
    told = {"timestep": (2,), **({"vector": (2, own.vector)} if own.vector else {}), **dict.fromkeys(own.scalars, (2,))}
    reads = {
        name: torch.zeros(
            2, *(7 if n == "T" else n for n in shape), dtype=torch.int64 if name.startswith("mask") else None
        )
        for name, shape in own.reads.items()
    }
    tokens = 7 if own.tokens == "T" else own.tokens
    given = {"context": torch.zeros(2, tokens, own.context), "prompt": torch.zeros(2, dtype=torch.int64)}
    if own.biased:
        given["context_bias"] = torch.zeros(2, tokens)
    if own.position is not None:
        given["position"] = torch.zeros(2, 2, own.position)
    x, modulation = torch.zeros(2, config.in_channels, side, side), torch.zeros(*prompts, own.modulation)
    runs: dict[str, Callable[[], object]] = {
        "conditioner": lambda: network.conditioner(**{name: torch.zeros(shape) for name, shape in told.items()}),
        "context": lambda: network.context(**reads),
        "step": lambda: network.trunk(x, modulation, **given),
    }
    return {name: counted(network, run) for name, run in runs.items()}


def counted(network: nn.Module, run: Callable[[], object]) -> int:
    called: dict[int, nn.Module] = {}
    handles = [
        module.register_forward_pre_hook(lambda module, _: called.setdefault(id(module), module) and None)
        for module in network.modules()
    ]
    run()
    for handle in handles:
        handle.remove()
    return sum(weight.numel() for module in called.values() for weight in module.parameters(recurse=False))


def sd3_medium() -> tuple[Any, Any]:
    return _sd3(24, 192, (), False)


def sd35_medium() -> tuple[Any, Any]:
    return _sd3(24, 384, tuple(range(13)), True)


def sd35_large() -> tuple[Any, Any]:
    return _sd3(38, 192, (), True)


def _sd3(depth: int, positions: int, dual: tuple[int, ...], norm: bool) -> tuple[Any, Any]:
    """Of as many heads as blocks, as all of them."""
    from diffusers import SD3Transformer2DModel

    reference = SD3Transformer2DModel(
        num_layers=depth, num_attention_heads=depth, caption_projection_dim=64 * depth, pos_embed_max_size=positions,
        dual_attention_layers=dual, qk_norm="rms_norm" if norm else None,
    )  # fmt: skip
    return reference, SD3(SD3Config(128, 2, 16, 16, depth, 64, depth, 4096, 2048, positions, dual, norm))


def flux_dev() -> tuple[Any, Any]:
    from diffusers import FluxTransformer2DModel

    network = Flux(FluxConfig(128, 16, 16, 24, 128, 19, 38, 4096, 768, told_guidance=True))
    return FluxTransformer2DModel(guidance_embeds=True), network


def flux2_klein_4b() -> tuple[Any, Any]:
    return _flux2(5, 20, 24, 7680)


def flux2_klein_9b() -> tuple[Any, Any]:
    return _flux2(8, 24, 32, 12288)


def flux2_dev() -> tuple[Any, Any]:
    return _flux2(8, 48, 48, 15360, told=True)


def _flux2(joint: int, single: int, heads: int, rows: int, told: bool = False) -> tuple[Any, Any]:
    from diffusers import Flux2Transformer2DModel

    reference = Flux2Transformer2DModel(
        num_layers=joint, num_single_layers=single, num_attention_heads=heads, joint_attention_dim=rows,
        guidance_embeds=told,
    )  # fmt: skip
    width = 128 * heads
    return reference, Flux2(Flux2Config(64, 128, 128, heads, 128, joint, single, rows, 3 * width, told_guidance=told))


def hunyuan_dit_11() -> tuple[Any, Any]:
    return _hunyuan_dit(True)


def hunyuan_dit_12() -> tuple[Any, Any]:
    return _hunyuan_dit(False)


def _hunyuan_dit(told: bool) -> tuple[Any, Any]:
    from diffusers import HunyuanDiT2DModel

    reference = HunyuanDiT2DModel(
        in_channels=4, patch_size=2, sample_size=128, hidden_size=1408, num_layers=40, mlp_ratio=4.3637,
        use_style_cond_and_image_meta_size=told,
    )  # fmt: skip
    mlp = int(1408 * 4.3637)
    return reference, HunyuanDiT(HunyuanDiTConfig(128, 2, 4, 8, 16, 88, 40, mlp, 1024, 2048, 1024, told_size=told))


def aura_flow() -> tuple[Any, Any]:
    from diffusers import AuraFlowTransformer2DModel

    return AuraFlowTransformer2DModel(), AuraFlow(AuraFlowConfig(64, 2, 4, 4, 12, 256, 4, 32, 2048, 32))


def z_image() -> tuple[Any, Any]:
    from diffusers import ZImageTransformer2DModel

    return ZImageTransformer2DModel(), ZImage(ZImageConfig(128, 16, 16, 30, 128, 30, 2, 2560))


def lumina2() -> tuple[Any, Any]:
    from diffusers import Lumina2Transformer2DModel

    network = Lumina2(Lumina2Config(128, 2, 16, 16, 24, 8, 96, 26, 2, 2304, 9216))
    return Lumina2Transformer2DModel(cap_feat_dim=2304), network


def pixart_sigma() -> tuple[Any, Any]:
    from diffusers import PixArtTransformer2DModel

    reference = PixArtTransformer2DModel(caption_channels=4096, sample_size=128, use_additional_conditions=False)
    return reference, PixArt(PixArtConfig(128, 2, 4, 8, 16, 72, 28, 4096, 2.0, tokens=300))


SANA_06 = {"num_attention_heads": 36, "attention_head_dim": 32, "num_layers": 28, "cross_attention_dim": 1152}
SANA_06 |= {"num_cross_attention_heads": 16, "cross_attention_head_dim": 72}


def sana() -> tuple[Any, Any]:
    return _sana()


def sana_sprint() -> tuple[Any, Any]:
    return _sana(sprint=True)


def sana_16() -> tuple[Any, Any]:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(), Sana(SanaConfig(32, 1, 32, 32, 70, 32, 20, 20, 112, 2304))


def _sana(sprint: bool = False) -> tuple[Any, Any]:
    from diffusers import SanaTransformer2DModel

    own: dict[str, Any] = {"qk_norm": "rms_norm_across_heads", "guidance_embeds": True} if sprint else {}
    network = Sana(SanaConfig(32, 1, 32, 32, 36, 32, 28, 16, 72, 2304, qk_norm=sprint, guided=sprint))
    return SanaTransformer2DModel(**SANA_06, **own), network


MODELS = {  # millions of parameters: diffusers' transformer, and what the step is left with at most
    sd3_medium: (2028, 0.67),
    sd35_medium: (2243, 0.66),
    sd35_large: (8057, 0.67),
    flux_dev: (11901, 0.73),
    flux2_klein_4b: (3876, 0.953),
    flux2_klein_9b: (9079, 0.962),
    flux2_dev: (32223, 0.975),
    hunyuan_dit_11: (1517, 0.821),
    hunyuan_dit_12: (1500, 0.83),
    aura_flow: (6833, 0.67),
    z_image: (6155, 0.93),
    lumina2: (2610, 0.84),
    pixart_sigma: (611, 0.86),
    sana: (592, 0.86),
    sana_sprint: (594, 0.86),
    sana_16: (1604, 0.86),
}


@pytest.mark.parametrize(("make", "wanted"), MODELS.items(), ids=[make.__name__ for make in MODELS])
def test_what_depends_on_no_image_token_leaves_the_step(
    make: Callable[[], tuple[Any, Any]], wanted: tuple[int, float]
) -> None:
    with torch.device("meta"), torch.no_grad():
        reference, network = make()
        whole, graphs = sum(weight.numel() for weight in reference.parameters()), graphs_of(network.to("meta"))
    print(make.__name__, round(whole / 1e6), {name: round(number / 1e6, 1) for name, number in graphs.items()})
    assert round(whole / 1e6) == wanted[0]
    assert graphs["step"] / whole <= wanted[1]
    assert sum(graphs.values()) == pytest.approx(whole, rel=2e-3)  # nothing twice, nothing lost


def multiply_adds(run: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("make", "side", "less"),
    [(pixart_sigma, 32, 0.14), (pixart_sigma, 64, 0.03), (sana, 16, 0.14), (sana, 32, 0.04), (sana_16, 16, 0.14)],
    ids=["PixArt at 256 pixels", "at 512", "Sana at 512", "at 1024", "Sana 1.6B at 512"],
)
def test_a_step_multiplies_less_than_diffusers_transformer(
    make: Callable[[], tuple[Any, Any]], side: int, less: float
) -> None:
    """Keys and values of a prompt of 300 tokens are made once. side: of the latent; less: part of the multiply-adds."""
    with torch.device("meta"), torch.no_grad():
        reference, network = make()
        own, config = network.to("meta").interface, network.config
        x, hidden = torch.zeros(1, config.in_channels, side, side), torch.zeros(1, 300, config.caption_channels)
        sizes = {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}} if own.position else {}
        whole = multiply_adds(lambda: reference(x, hidden, torch.zeros(1), **sizes))
        given = {"context": torch.zeros(1, 300, own.context), "context_bias": torch.zeros(1, 300)}
        given |= {"position": torch.zeros(*(side // own.multiple,) * 2, own.position)} if own.position else {}
        rows, prompt = torch.zeros(1, own.modulation), torch.zeros(1, dtype=torch.int64)
        step = multiply_adds(lambda: network.trunk(x, rows, prompt=prompt, **given))
    print(make.__name__, side, f"{whole / 1e9:.1f} G, step {step / 1e9:.1f} G, {100 * (1 - step / whole):.1f} % less")
    assert 1 - step / whole >= less
