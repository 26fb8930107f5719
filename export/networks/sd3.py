"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): image and text tokens in joint blocks, split where `ditedge` cuts.

`conditioner` has the timestep and all adaptive norms, a third of the weights; `context` assembles what three text
encoders say; `trunk` has the blocks. Parameter names are those of diffusers' `SD3Transformer2DModel`, but for its table
of positions, which is one of rows and one of columns here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .interface import Interface, Shape
from .parts import (
    SINUSOID,
    FamilyConfig,
    FeedForward,
    Mlp,
    Modulated,
    PatchEmbed,
    RmsNorm,
    attend,
    fed,
    frequencies,
    heads_of,
    modulated,
    sinusoid,
    unpatchified,
    vectors_of,
)

EPS = 1e-6  # of every norm
PLAIN, DUAL, LAST = 6, 9, 2  # vectors of a norm: of a block's stream, of one with a second attention, of the last text


@dataclass(frozen=True)
class SD3Config(FamilyConfig):
    """Hyper-parameters, as in diffusers' config.json, and what the text encoders make."""

    sample_size: int  # H = W of the latents that it was trained on
    patch_size: int
    in_channels: int  # C
    out_channels: int  # O
    num_heads: int
    head_size: int
    depth: int  # L
    caption_channels: int  # Dh of T5's rows, to which CLIP's are filled up with zeros
    pooled_channels: int  # of both CLIPs together
    position_size: int  # side of the table of positions, in patches
    dual_layers: tuple[int, ...] = ()  # blocks with a second attention, of image tokens alone: 3.5-medium
    qk_norm: bool = False  # 3.5
    clip_channels: tuple[int, int] = (768, 1280)  # Dh of CLIP-L and CLIP-G
    pooled_of_clip: tuple[int, int] = (768, 1280)
    clip_tokens: int = 77
    t5_tokens: int = 256
    has_t5: bool = True  # False: zeros stand for its rows, as in the pipeline without text_encoder_3

    def vectors(self, block: int) -> tuple[int, int]:
        """How many vectors of modulation a block's image tokens and its text tokens have."""
        image = DUAL if block in self.dual_layers else PLAIN
        return image, LAST if block == self.depth - 1 else PLAIN


class Attention(nn.Module):
    """Of image tokens, and where `joint` of text tokens with them. last: nothing is made of the text any more."""

    def __init__(self, config: SD3Config, joint: bool, last: bool = False) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_size
        self.num_heads, self.last = config.num_heads, last
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q, self.norm_k = (RmsNorm(head) if config.qk_norm else nn.Identity() for _ in range(2))
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
            self.norm_added_q, self.norm_added_k = (
                RmsNorm(head) if config.qk_norm else nn.Identity() for _ in range(2)
            )
            self.to_add_out = nn.Identity() if last else nn.Linear(width, width)

    def image(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads_of(part(x), self.num_heads) for part in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def text(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (heads_of(part(x), self.num_heads) for part in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return self.norm_added_q(q), self.norm_added_k(k), v

    def alone(self, image: Tensor) -> Tensor:
        """[N, S, D] -> [N, S, D]."""
        return self.to_out[0](attend(*self.image(image)))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D] -> the same of both."""
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(self.image(image), self.text(text), strict=True))
        found, tokens = attend(q, k, v), image.shape[1]
        return self.to_out[0](found[:, :tokens]), self.to_add_out(found[:, tokens:])


class Block(nn.Module):
    def __init__(self, config: SD3Config, number: int) -> None:
        super().__init__()
        width, (image, text) = config.hidden_size, config.vectors(number)
        self.dual, self.last = image == DUAL, text == LAST
        self.norm1, self.norm1_context = Modulated(width, image), Modulated(width, text)
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.attn = Attention(config, joint=True, last=self.last)
        self.ff = FeedForward(width)
        if self.dual:
            self.attn2 = Attention(config, joint=False)
        if not self.last:
            self.ff_context = FeedForward(width)

    def forward(
        self, image: Tensor, text: Tensor, of_image: tuple[Tensor, ...], of_text: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """image [N, S, D], text [N, T, D], vectors [N, 1, D] of both -> both; nobody uses the last text."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp, *second = of_image
        inner = modulated(self.norm, image, shift, scale)
        if self.last:
            text_scale, text_shift = of_text
            told = modulated(self.norm, text, text_shift, text_scale)
        else:
            text_shift, text_scale = of_text[:2]
            told = modulated(self.norm, text, text_shift, text_scale)
        attended, of_words = self.attn(inner, told)
        again = self.attn2.alone(modulated(self.norm, image, second[0], second[1])) if self.dual else None
        image = image + gate * attended
        image = image if again is None else image + second[2] * again
        image = image + gate_mlp * self.ff(modulated(self.norm, image, shift_mlp, scale_mlp))
        return image, text if self.last else fed(self.norm, self.ff_context, text, of_words, of_text)


class TimeAndText(nn.Module):
    def __init__(self, config: SD3Config) -> None:
        super().__init__()
        self.timestep_embedder = Mlp(SINUSOID, config.hidden_size, nn.SiLU())
        self.text_embedder = Mlp(config.pooled_channels, config.hidden_size, nn.SiLU())
        self.register_buffer("frequency", frequencies(), persistent=False)

    def time(self, timestep: Tensor) -> Tensor:
        return self.timestep_embedder(sinusoid(timestep, self.frequency))


class PlacedPatchEmbed(PatchEmbed):
    """With the table of positions as one of rows and one of columns."""

    def __init__(self, config: SD3Config) -> None:
        super().__init__(config.in_channels, config.hidden_size, config.patch_size)
        half = config.hidden_size // 2
        self.rows, self.columns = (nn.Parameter(torch.empty(config.position_size, half)) for _ in range(2))


class SD3(nn.Module):
    """diffusers' SD3Transformer2DModel."""

    def __init__(self, config: SD3Config) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.pos_embed = PlacedPatchEmbed(config)
        self.time_text_embed = TimeAndText(config)
        self.context_embedder = nn.Linear(config.caption_channels, width)
        self.transformer_blocks = nn.ModuleList(Block(config, i) for i in range(config.depth))
        self.norm = nn.LayerNorm(width, EPS, elementwise_affine=False)
        self.norm_out = Modulated(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * config.out_channels)

    @property
    def interface(self) -> Interface:
        config, tokens = self.config, self.config.clip_tokens + self.config.t5_tokens
        (first, second), (pooled, pooled_2) = config.clip_channels, config.pooled_of_clip
        reads: dict[str, Shape] = {
            **{"hidden": (config.clip_tokens, first), "pooled": (pooled,)},
            **{"hidden_2": (config.clip_tokens, second), "pooled_2": (pooled_2,)},
        }
        return Interface(
            modulation=(sum(sum(config.vectors(i)) for i in range(config.depth)) + 2) * config.hidden_size,
            context=config.hidden_size,
            multiple=config.patch_size,
            reads=reads | ({"hidden_3": (config.t5_tokens, config.caption_channels)} if config.has_t5 else {}),
            tokens=tokens,
            vector=config.hidden_size,
            position=config.hidden_size,
        )

    def conditioner(self, timestep: Tensor, vector: Tensor) -> Tensor:
        """timestep [U], vector [U, D] float32 -> modulation [U, M]: of each block, then the final two."""
        embedded = F.silu(self.time_text_embed.time(timestep) + vector)
        norms = [norm for block in self.transformer_blocks for norm in (block.norm1, block.norm1_context)]
        return torch.cat([norm.linear(embedded) for norm in (*norms, self.norm_out)], dim=1)

    def context(
        self, hidden: Tensor, pooled: Tensor, hidden_2: Tensor, pooled_2: Tensor, hidden_3: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rows of CLIP-L [P, 77, 768], of CLIP-G [P, 77, 1280], of T5 [P, 256, 4096], pooled ones [P, 768 and 1280] ->
        context [P, 333, D], vector [P, D]."""
        clip = torch.cat([hidden, hidden_2], dim=2)
        clip = F.pad(clip, (0, self.config.caption_channels - clip.shape[2]))
        if hidden_3 is None:
            hidden_3 = clip.new_zeros(clip.shape[0], self.config.t5_tokens, self.config.caption_channels)
        vector = self.time_text_embed.text_embedder(torch.cat([pooled, pooled_2], dim=1))
        return self.context_embedder(torch.cat([clip, hidden_3], dim=1)), vector

    def position(self, rows: Tensor, columns: Tensor) -> Tensor:
        """rows [h] and columns [w] float32, 0, 1, 2 ... of the patches -> [h, w, D]: the middle of the table."""
        down, across = (
            table.index_select(0, places.long() + (self.config.position_size - places.shape[0]) // 2)
            for table, places in ((self.pos_embed.rows, rows), (self.pos_embed.columns, columns))
        )
        h, w = rows.shape[0], columns.shape[0]
        return torch.cat([across[None].expand(h, -1, -1), down[:, None].expand(-1, w, -1)], dim=2)

    def trunk(self, x: Tensor, modulation: Tensor, context: Tensor, prompt: Tensor, position: Tensor) -> Tensor:
        """x [N, C, H, W], modulation [N, M], context [P, T, D], prompt [N] int64 (rows of it), position [h, w, D] ->
        network output [N, O, H, W]."""
        width, first = self.config.hidden_size, 0
        image, text = self.pos_embed(x) + position.flatten(0, 1)[None], context.index_select(0, prompt)
        for i, block in enumerate(self.transformer_blocks):
            of_image, of_text = self.config.vectors(i)
            parts = vectors_of(modulation, first, of_image + of_text, width)
            image, text = block(image, text, parts[:of_image], parts[of_image:])
            first += of_image + of_text
        scale, shift = vectors_of(modulation, first, 2, width)
        tokens = self.proj_out(modulated(self.norm, image, shift, scale))
        return unpatchified(tokens, self.config.patch_size, *position.shape[:2])
