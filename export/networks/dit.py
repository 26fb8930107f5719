"""The Diffusion Transformer (DiT) of Peebles & Xie, 2023 (arXiv:2212.09748), split where `ditedge` cuts it.

`DiT.conditioner` is everything that depends only on (timestep, label): the embedders and all adaLN projections.
`DiT.trunk` is everything that sees the latent. `forward` is the two in a row, so one module serves training, parity
checks and export. Parameter names are those of facebookresearch/DiT `models.py`: its state dicts load as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .parts import PatchEmbed, unpatchified

TIMESTEP_CHANNELS = 256  # width of the sinusoid that feeds the timestep MLP, as in the reference


@dataclass(frozen=True)
class DiTConfig:
    """Hyper-parameters of a DiT.

    All but num_heads, null_class, frequency_divisor and mlp_norm_eps can be read from the shapes of its state dict.
    """

    input_size: int  # H = W of the latent
    patch_size: int
    in_channels: int  # C
    hidden_size: int  # D
    depth: int  # L
    num_heads: int
    num_classes: int
    learn_sigma: bool = True  # the network also predicts the variance: O = 2C output channels
    null_class: bool = True  # trained with label dropout: the label table has one more row, index num_classes
    frequency_divisor: int = 128  # of the timestep sinusoid's exponents; diffusers divides by 127
    mlp_norm_eps: float = 1e-6  # of the norm before each MLP; diffusers uses 1e-5. Every other norm has 1e-6
    block_embedders: bool = False  # each block but the first has embedders of its own, as after training in diffusers
    mlp_ratio: float = 4.0  # width of a block's MLP over D
    timestep_channels: int = TIMESTEP_CHANNELS  # of the sinusoid, even
    qk_norm: bool = False  # queries and keys are normalised (repa.py)

    @property
    def out_channels(self) -> int:
        """O: network output channels."""
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def told(self) -> tuple[str, ...]:
        """Numbers that the conditioner reads after timestep and label: "interval", "guidance" (docs/format.md)."""
        return ()

    @property
    def tokens(self) -> int:
        return (self.input_size // self.patch_size) ** 2

    @property
    def mlp_size(self) -> int:
        """Width of a block's MLP."""
        return round(self.mlp_ratio * self.hidden_size)

    @property
    def modulation_size(self) -> int:
        """M = (6L + 2) D: six adaLN vectors per block, two for the final layer."""
        return (6 * self.depth + 2) * self.hidden_size


class Network(Protocol):
    """What the graphs of a bundle need of a network: `DiT` below, or a module of the user's (docs/custom-models.md)."""

    config: DiTConfig

    def conditioner(  # [U] float32, [U] int64, each of config.told [U] float32 -> [U, M]
        self, timestep: Tensor, label: Tensor, *told: Tensor
    ) -> Tensor: ...
    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor: ...  # [N, C, H, W], [N, M] -> [N, O, H, W]


class TimestepEmbedder(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width, channels = config.hidden_size, config.timestep_channels
        self.mlp = nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))
        # Not in the state dict, and a constant of the graph: torch's own float32 rounding of the frequencies decides
        # the sinusoid at t = 999 to 1e-5. Made on the CPU also when the network itself is built on "meta".
        exponent = -math.log(10000) * torch.arange(channels // 2, dtype=torch.float32, device="cpu")
        self.register_buffer("frequency", torch.exp(exponent / config.frequency_divisor), persistent=False)

    def forward(self, timestep: Tensor) -> Tensor:
        """timestep [N] float32 (0..999, or 0..1 in flow models) -> [N, D]. The sinusoid's order is [cos, sin]."""
        angle = timestep[:, None] * self.frequency[None]
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1))


class LabelEmbedder(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(config.num_classes + int(config.null_class), config.hidden_size)

    def forward(self, label: Tensor) -> Tensor:
        """label [N] int64 -> [N, D]."""
        return self.embedding_table(label)


class Embedders(nn.Module):
    """Timestep and label together: what a block's adaLN projection sees."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)

    def forward(self, timestep: Tensor, label: Tensor) -> Tensor:
        """timestep [N] float32, label [N] int64 -> [N, D]."""
        return self.t_embedder(timestep) + self.y_embedder(label)


class Attention(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [N, T, D], each [N, heads, T, D / heads]."""
        width = x.shape[2]
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, width // self.num_heads)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        return self.attended(*self.heads(x))

    def attended(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
        """[N, heads, T, D / heads] each -> [N, T, D]. bias [heads, T, T] is added to the scores."""
        if torch.compiler.is_exporting():
            # MatMul, scale, Softmax, MatMul and nothing between: the pattern that TensorRT fuses.
            scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
            mixed = torch.softmax(scores if bias is None else scores + bias, dim=-1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def adaln_projection(hidden_size: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, vectors * hidden_size))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [N, T, D], shift and scale [N, D]."""
    return x * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """A transformer block with adaLN-Zero conditioning (figure 3 of the paper)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=config.mlp_norm_eps)
        self.mlp = Mlp(config)
        self.adaLN_modulation = adaln_projection(width, 6)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [N, T, D], modulation [N, 6D] -> [N, T, D]."""
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = modulation.chunk(6, dim=1)
        x = x + gate_msa[:, None] * self.attn(modulate(self.norm1(x), shift_msa, scale_msa))
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, config.patch_size**2 * config.out_channels)
        self.adaLN_modulation = adaln_projection(width, 2)

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT(nn.Module):
    """facebookresearch/DiT's network: x [N, C, H, W], timestep [N], label [N] -> [N, O, H, W]."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.x_embedder = PatchEmbed(config.in_channels, config.hidden_size, config.patch_size)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = LabelEmbedder(config)
        self.pos_embed = nn.Parameter(sincos_position_embedding(config), requires_grad=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.final_layer = FinalLayer(config)
        own = config.depth - 1 if config.block_embedders else 0
        self.block_embedders = nn.ModuleList(Embedders(config) for _ in range(own))  # of blocks 1, 2 ...

    def conditioner(self, timestep: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        """timestep [U] float32 (0..999; 0..1 in flow models), label [U] int64 -> modulation [U, M] float32."""
        first = self.t_embedder(timestep) + self.y_embedder(label)  # of block 0 and of the final layer
        own = [first] + [embedders(timestep, label) for embedders in self.block_embedders]
        conditions = own if self.config.block_embedders else [first] * self.config.depth
        layers: list[Block | FinalLayer] = [*self.blocks, self.final_layer]
        pairs = zip(layers, [*conditions, first], strict=True)
        return torch.cat([layer.adaLN_modulation(condition) for layer, condition in pairs], dim=1)

    def trunk(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x [N, C, H, W], modulation [N, M] -> network output [N, O, H, W]."""
        width = self.config.hidden_size
        tokens = self.x_embedder(x) + self.pos_embed
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, modulation[:, 6 * i * width : 6 * (i + 1) * width])
        return self.unpatchify(self.final_layer(tokens, modulation[:, -2 * width :]))

    def unpatchify(self, tokens: Tensor) -> Tensor:
        """[N, T, p * p * O] -> [N, O, H, W] (`nhwpqc -> nchpwq`)."""
        side = self.config.input_size // self.config.patch_size
        return unpatchified(tokens, self.config.patch_size, side, side)

    def forward(self, x: Tensor, timestep: Tensor, label: Tensor, *told: Tensor) -> Tensor:
        return self.trunk(x, self.conditioner(timestep.float(), label, *told))


def sincos_position_embedding(config: DiTConfig) -> Tensor:
    """2-D sin-cos positions [1, T, D] float32: width first, then height; each is [sin, cos] (MAE, arXiv:2111.06377)."""
    side, quarter = config.input_size // config.patch_size, config.hidden_size // 4
    omega = 1.0 / 10000 ** (torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [position.flatten()[:, None] * omega[None] for position in (column, row)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1).float()[None]


def initialize_weights(model: DiT) -> None:
    """The reference's initialisation for training: Xavier linears, zero adaLN projections and final layer."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.x_embedder.proj.weight.view(model.config.hidden_size, -1))
    nn.init.zeros_(model.x_embedder.proj.bias)
    for weight in (model.y_embedder.embedding_table, model.t_embedder.mlp[0], model.t_embedder.mlp[2]):
        nn.init.normal_(weight.weight, std=0.02)
    for layer in [*model.blocks, model.final_layer]:
        nn.init.zeros_(layer.adaLN_modulation[1].weight)
        nn.init.zeros_(layer.adaLN_modulation[1].bias)
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.zeros_(model.final_layer.linear.bias)
