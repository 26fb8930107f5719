"""Improved MeanFlow against its network and sampler, written out from the reference with complex rotations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ditedge.export import read_source
from ditedge.export.sources.imeanflow import OTHER
from ditedge.runtime import generate, open_bundle
from ditedge.runtime.errors import CheckpointError, RequestError
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error

WIDTH, HEADS, PATCH, CLASSES, HIDDEN = 32, 2, 4, 5, 85  # int(8 / 3 of the width)
SAMPLED, UNSAMPLED = ("shared_blocks.0", "u_heads.0", "u_heads.1"), ("v_heads.0", "v_heads.1")
COUNTS = {"class": 3, "omega": 2, "t_min": 1, "t_max": 1, "time": 2}
LABELS, (GUIDANCE, TIMES) = [0, 3], OTHER


def random_state() -> dict[str, Tensor]:
    """As the reference's module saves it."""
    generator = torch.Generator().manual_seed(5)

    def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> dict[str, Tensor]:
        weight = torch.randn(outputs, inputs, generator=generator) / math.sqrt(inputs)
        rest = {f"{name}._flax_linear.bias": 0.1 * torch.randn(outputs, generator=generator)} if bias else {}
        return {f"{name}._flax_linear.weight": weight, **rest}

    def vector(name: str, size: int) -> dict[str, Tensor]:
        return {name: 1 + 0.2 * torch.randn(size, generator=generator)}

    state = {"x_embedder.proj.weight": torch.randn(WIDTH, 4, PATCH, PATCH, generator=generator) / 8}
    state |= {"x_embedder.proj.bias": torch.randn(WIDTH, generator=generator)}
    for name in ("h_embedder", "omega_embedder", "cfg_t_start_embedder", "cfg_t_end_embedder"):
        state |= linear(f"{name}.mlp.0", 64, WIDTH) | linear(f"{name}.mlp.2", WIDTH, WIDTH)
    table = torch.randn(CLASSES + 1, WIDTH, generator=generator)
    state |= {"y_embedder.embedding_table._flax_embedding.weight": table}
    state |= {f"{name}_tokens": torch.randn(count, WIDTH, generator=generator) for name, count in COUNTS.items()}
    for block in (*SAMPLED, *UNSAMPLED):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            state |= linear(f"{block}.attn.{name}", WIDTH, WIDTH, bias=False)
        for name in ("q_norm", "k_norm"):
            state |= vector(f"{block}.attn.{name}.weight", WIDTH // HEADS)
        state |= linear(f"{block}.mlp.w1", WIDTH, HIDDEN, bias=False) | linear(f"{block}.mlp.w3", WIDTH, HIDDEN, False)
        state |= linear(f"{block}.mlp.w2", HIDDEN, WIDTH, bias=False)
        for name in ("norm1.weight", "norm2.weight", "attn_scale", "mlp_scale"):
            state |= vector(f"{block}.{name}", WIDTH)
    for head in "uv":
        state |= vector(f"{head}_final_layer.norm.weight", WIDTH) | linear(f"{head}_final_layer.linear", WIDTH, 64)
    return state


STATE = random_state()


def linear(name: str, value: Tensor) -> Tensor:
    return F.linear(value, STATE[f"{name}._flax_linear.weight"], STATE.get(f"{name}._flax_linear.bias"))


def norm(name: str, value: Tensor) -> Tensor:
    return value / (value.square().mean(-1, keepdim=True) + 1e-6).sqrt() * STATE[f"{name}.weight"]


def embedded(name: str, number: Tensor) -> Tensor:
    angle = number[:, None] * torch.exp(-math.log(10000) * torch.arange(32) / 32)
    return linear(f"{name}.mlp.2", F.silu(linear(f"{name}.mlp.0", torch.cat([angle.cos(), angle.sin()], 1))))


def turned(value: Tensor) -> Tensor:
    """Rotary positions of [N, T, heads, size] by a product of complex numbers."""
    count, size = value.shape[1], value.shape[3]
    angle = torch.outer(torch.arange(count).float(), 1 / 10000 ** (torch.arange(0, size, 2).float() / size))
    pairs = torch.view_as_complex(value.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)[:, None]).flatten(-2)


def literal_block(block: str, tokens: Tensor) -> Tensor:
    normed = norm(f"{block}.norm1", tokens)
    q, k, v = (linear(f"{block}.attn.{n}_proj", normed).unflatten(2, (HEADS, -1)) for n in "qkv")
    q, k = turned(norm(f"{block}.attn.q_norm", q)), turned(norm(f"{block}.attn.k_norm", k))
    weights = torch.einsum("bqhd,bkhd->bhqk", q / math.sqrt(WIDTH // HEADS), k).softmax(-1)
    mixed = torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)
    tokens = tokens + linear(f"{block}.attn.out_proj", mixed) * STATE[f"{block}.attn_scale"]
    normed = norm(f"{block}.norm2", tokens)
    gated = F.silu(linear(f"{block}.mlp.w1", normed)) * linear(f"{block}.mlp.w3", normed)
    return tokens + linear(f"{block}.mlp.w2", gated) * STATE[f"{block}.mlp_scale"]


def literal(x: Tensor, h: Tensor, omega: Tensor, y: Tensor) -> Tensor:
    """imfDiT's u of x [N, 4, 32, 32]."""
    low, high = (torch.full_like(h, time) for time in TIMES)
    conditions = {
        "class": STATE["y_embedder.embedding_table._flax_embedding.weight"][y],
        "omega": embedded("omega_embedder", 1 - 1 / omega),
        "t_min": embedded("cfg_t_start_embedder", low),
        "t_max": embedded("cfg_t_end_embedder", high),
        "time": embedded("h_embedder", h),
    }
    patches = F.conv2d(x, STATE["x_embedder.proj.weight"], STATE["x_embedder.proj.bias"], stride=PATCH)
    rows = [STATE[f"{name}_tokens"] + value[:, None] for name, value in conditions.items()]
    tokens = torch.cat([*rows, patches.flatten(2).transpose(1, 2)], dim=1)
    for block in SAMPLED:
        tokens = literal_block(block, tokens)
    out = linear("u_final_layer.linear", norm("u_final_layer.norm", tokens[:, sum(COUNTS.values()) :]))
    grid = out.reshape(len(x), 8, 8, PATCH, PATCH, 4)
    return torch.einsum("nhwpqc->nchpwq", grid).reshape(len(x), 4, 32, 32)


def saved(path: Path, state: dict[str, Tensor] = STATE) -> Path:
    torch.save({f"net.{key}": value for key, value in state.items()}, path)
    return path


def test_the_network_is_theirs(tmp_path: Path) -> None:
    found = read_source(saved(tmp_path / "c.pth"))
    said = (found.prediction, found.guidance, found.config.num_classes, found.config.num_heads)
    assert said == ("mean-flow", GUIDANCE, CLASSES, HEADS)
    x, y = torch.randn(3, 4, 32, 32), torch.tensor([0, 4, 5])
    h, omega = torch.tensor([1.0, 0.5, 0.1]), torch.tensor([1.0, 8.0, 3.0])
    ours = found.model()(x, torch.ones(3), y, h, omega)
    assert relative_error(ours.numpy(), literal(x, h, omega, y).numpy()) < 1e-5
    assert any("left out" in note for note in found.notes)


@pytest.mark.parametrize(("steps", "guidance"), [(1, None), (2, 1.0), (2, 3.0)])
def test_one_evaluation_a_step_whatever_the_guidance(
    improved_mean_flow_bundle: Path, steps: int, guidance: float | None
) -> None:
    bundle = open_bundle(improved_mean_flow_bundle)
    z = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    x, told = z, torch.full((2,), GUIDANCE if guidance is None else guidance)
    for _ in range(steps):
        x = x - literal(x, torch.full((2,), 1 / steps), told, torch.tensor(LABELS)) / steps
    noise = GivenNoise(z.numpy(), np.zeros((steps, *z.shape), np.float32))
    program = bundle.program(f"mean-flow-{steps}")
    ours = generate(bundle, LABELS, [0, 0], program=program, guidance=guidance, noise=noise, output="latents")
    assert relative_error(ours, x.numpy()) < 1e-4


def test_the_bundle_says_what_it_is(improved_mean_flow_bundle: Path) -> None:
    manifest = open_bundle(improved_mean_flow_bundle).manifest
    assert (manifest.defaults.program, manifest.defaults.guidance) == ("mean-flow-1", GUIDANCE)
    assert manifest.tells_guidance and manifest.modulation_width == sum(COUNTS.values()) * WIDTH


def test_a_second_evaluation_is_refused(improved_mean_flow_bundle: Path) -> None:
    bundle = open_bundle(improved_mean_flow_bundle)
    for settings in ({"away_from": [1]}, {"also": [(1, 0.5)]}):
        with pytest.raises(RequestError, match="reads its guidance as a number and evaluates each step once"):
            generate(bundle, [0], [0], output="latents", **settings)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("omega_tokens", torch.zeros(WIDTH), "blocks.0.attn.q_norm.weight' is missing, or does not divide"),
        ("t_min_tokens", torch.zeros(0, WIDTH), "'t_min_tokens' is missing, or not 1 to 1024 rows"),
        ("shared_blocks.0.attn.q_norm.weight", torch.zeros(5), "does not divide the width"),
        ("u_heads.1.mlp.w2._flax_linear.weight", torch.zeros(3, 3), "blocks.2.mlp.w2.weight' has shape"),
        ("u_final_layer.linear._flax_linear.weight", torch.zeros(128, WIDTH), "with a variance is not supported"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, key: str, value: Tensor, complaint: str) -> None:
    with pytest.raises(CheckpointError, match=complaint):
        read_source(saved(tmp_path / "c.pth", STATE | {key: value}))
