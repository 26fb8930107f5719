"""Train a small text-conditioned DiT of the PixArt kind on captioned Fashion-MNIST: the text demo that `models/` ships.

    python examples/train_text.py --out runs/fashion-pixart --device cuda   # 8 minutes
    python examples/train_text.py --out runs/fashion-pixart --minutes 600 --batch-size 64 --captions 12000   # on a CPU

As PixArt-alpha did (arXiv:2310.00426, section 2.3), it starts from a class-conditional DiT, here `models/fashion-
dit.safetensors`: self-attention, MLPs and embedders are taken over, adaLN becomes adaLN-single, and cross-attention to
the token rows of a frozen text encoder (examples/text_encoder.py) begins with an output of zero. The same DiT then
teaches: the objective is the mean squared error of what it predicts for each garment by itself, with more weight where
noise is strong, since captions are decided there, of its blocks' tokens (hints, arXiv:1412.6550), and of what leads
to another class, mostly of those that look alike; one caption in ten is empty, for guidance. `--weights` begins with
those of an earlier training instead. Interrupted, the same command goes on from the last
checkpoint. The result is a diffusers pipeline folder without a VAE and without the text encoder: the weights' average,
in float16.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from captioned_images import TOKENS, Batch, Data, batch, read_data, write_captions
from confusion import another, confusion, mean_where
from fashion_mnist import IMAGE_SIZE
from pixart_of_dit import initialize, read_teacher
from safetensors.torch import load_file, save_file
from text_encoder import ENCODER, WIDTH
from torch import Tensor, nn
from train import TIMESTEPS, Diffusion, halved, learning_rate, save, take_up, update_ema

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ditedge.export.networks.dit import DiT
from ditedge.export.networks.pixart import PixArt, PixArtConfig

BRIGHTNESS = 0.4  # the noise's own part in what is learned of garments whose brightness is said
CONFIG = PixArtConfig(IMAGE_SIZE, 4, 1, 1, num_heads=3, head_size=64, depth=6, caption_channels=WIDTH, tokens=TOKENS)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoint.pt and the pipeline")
    parser.add_argument("--data", type=Path, default=None, help="folder with the four gzipped IDX files")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="text_encoder/ and tokenizer/")
    parser.add_argument("--start", type=Path, default=Path("models/fashion-dit.safetensors"))
    parser.add_argument("--weights", type=Path, default=None, help="of a PixArt of this size, to go on from")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--steps", type=int, default=1000000, help="end after so many, whatever --minutes says")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--singles", type=float, default=0.1, help="share of batches with pictures of one garment")
    parser.add_argument("--hint-weight", type=float, default=0.5, help="of the error of the blocks' tokens, relative")
    parser.add_argument("--confusion-weight", type=float, default=0.5, help="of errors that lead to another class")
    parser.add_argument("--captions", type=int, default=60000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--save-every", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


@dataclass
class Run:
    """What training changes, and what a checkpoint keeps of it."""

    args: argparse.Namespace
    model: PixArt
    ema: PixArt
    optimizer: torch.optim.Optimizer
    teacher: DiT
    hints: tuple[list[Tensor], list[Tensor]]  # what the blocks of both gave in the last evaluation
    began: float = 0.0  # on this machine's clock, as if it had never been interrupted
    step: int = 0
    seconds: float = 0.0

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "ema": self.ema, "opt": self.optimizer}

    @property
    def ended(self) -> bool:
        return self.step >= self.args.steps or self.seconds >= 60 * self.args.minutes


def new_run(args: argparse.Namespace) -> Run:
    model, teacher = PixArt(CONFIG), read_teacher(args.start).to(args.device)
    if args.weights:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(args.weights).items()})
    else:
        initialize(model, args.start)
    model.to(args.device)
    ema = deepcopy(model).requires_grad_(False)
    hints = listened(model.transformer_blocks), listened(teacher.blocks)
    betas = (0.9, 0.99)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, betas, weight_decay=0.0, fused=True)
    run, checkpoint = Run(args, model, ema, optimizer, teacher, hints), args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = take_up(checkpoint, run.parts(), args.device)
        run.step, run.seconds = saved["step"], saved["seconds"]
    run.began = time.monotonic() - run.seconds
    return run


def listened(blocks: nn.ModuleList) -> list[Tensor]:
    """A list that each of the blocks puts its output into: whoever reads it empties it."""
    heard: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda module, given, tokens: heard.append(tokens))
    return heard


def hint_error(run: Run, rows: int, bright: Tensor) -> Tensor:
    """Mean over the blocks of the relative squared error of the tokens [N, T, D], positions left out: a picture of two
    has others than its halves. rows: of patches. bright [N, garments]: halves that are left out, since the teacher
    knows nothing of brightness."""
    learned, taught = run.hints
    kind = bright.shape[1]
    width, total = run.model.config.hidden_size, 0.0
    columns = learned[0].shape[1] // rows
    here = position_of(run.model, rows, columns, learned[0].device).view(1, rows, columns, width)
    there = run.teacher.pos_embed.view(1, rows, -1, width)
    for ours, theirs in zip(learned, taught, strict=True):
        wanted = theirs.float().view(-1, rows, columns // kind, width) - there
        wanted = torch.cat(wanted.chunk(kind), dim=2)
        error = ours.float().view(-1, rows, columns, width) - here - wanted
        by_half = error.square().mean((1, 3)).unflatten(1, (kind, -1)).mean(2)  # [N, garments]
        total = total + mean_where(by_half, ~bright) / wanted.square().mean()
    learned.clear()
    taught.clear()
    return total / len(run.model.transformer_blocks)


def predicted(model: PixArt, x: Tensor, t: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """x [N, 1, H, W], t [N] -> predicted noise of the same shape."""
    context, bias = model.context(hidden, mask)
    patch = model.config.patch_size
    position = position_of(model, x.shape[2] // patch, x.shape[3] // patch, x.device)
    own = torch.arange(len(x), device=x.device)
    return model.trunk(x, model.conditioner(t.float()), context, bias, own, position)


@cache
def position_of(model: PixArt, rows: int, columns: int, device: torch.device) -> Tensor:
    """Made on the CPU, where export makes it, and once for each size."""
    return model.position(torch.arange(rows).float(), torch.arange(columns).float()).to(device)


def train_step(run: Run, diffusion: Diffusion, data: Data, kind: int) -> Tensor:
    """kind: 1 or 2 garments -> [3]: mean squared error without weights, that of the hints, confusion; on the device."""
    args = run.args
    run.optimizer.param_groups[0]["lr"] = learning_rate(args, run.step, run.seconds)
    drawn = batch(args.batch_size, data, kind)
    x0 = drawn.pictures
    # Near its ends the schedule is almost only noise, or almost none: little is learned there.
    t = (TIMESTEPS * torch.distributions.Beta(2.5, 1.8).sample((len(x0),))).long().clamp(max=TIMESTEPS - 1)
    t = t.to(args.device)
    noise = torch.randn_like(x0)
    x = diffusion.add_noise(x0, noise, t)
    with torch.autocast(args.device.split(":")[0], torch.bfloat16):
        output = predicted(run.model, x, t, drawn.hidden, drawn.mask)
        other = by_halves(run.teacher, x, t, another(drawn.said))
        run.hints[1].clear()
        own = by_halves(run.teacher, x, t, drawn.said)
    wanted = with_brightness(own, drawn, noise)
    error = (output.float() - wanted).square().mean(dim=(1, 2, 3))
    snr = (diffusion.signal[t] / diffusion.noise[t]).square().flatten()
    run.optimizer.zero_grad()
    hints = hint_error(run, x.shape[2] // run.model.config.patch_size, drawn.bright)
    confused = confusion(output.float() - own, other - own, drawn.bright)
    loss = (error * (snr + 0.01) ** -0.5).mean() + args.hint_weight * hints + args.confusion_weight * confused
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    update_ema(run.ema, run.model, min(args.ema_decay, (1 + run.step) / (10 + run.step)))
    run.step += 1
    return torch.stack([error.mean(), hints, confused]).detach()


@torch.no_grad()
def by_halves(teacher: DiT, x: Tensor, t: Tensor, said: Tensor) -> Tensor:
    """What the class-conditional DiT predicts for each half by itself, of the class said [N, garments]: [N, 1, H, W].

    Halves are independent of each other once their classes are known, and a prediction has not the noise's own
    randomness: the same is learned from far fewer pictures."""
    kind = said.shape[1]
    found = teacher(torch.cat(x.chunk(kind, dim=3)), t.repeat(kind), said.T.flatten())[:, :1].float()
    return torch.cat(found.chunk(kind), dim=3)


def with_brightness(own: Tensor, drawn: Batch, noise: Tensor) -> Tensor:
    """In part the noise itself where the caption says more than a class."""
    part = BRIGHTNESS * drawn.bright.repeat_interleave(IMAGE_SIZE, dim=1)[:, None, None]
    return own + part * (noise - own)


def write_pipeline(model: PixArt, out: Path) -> None:
    """A diffusers pipeline folder: model_index.json, transformer/ in float16, scheduler/."""
    config = model.config
    transformer = {
        "_class_name": "PixArtTransformer2DModel", "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_size, "in_channels": 1, "out_channels": 1, "num_layers": config.depth,
        "cross_attention_dim": config.hidden_size, "sample_size": config.sample_size, "patch_size": config.patch_size,
        "caption_channels": config.caption_channels, "interpolation_scale": config.interpolation_scale,
        "norm_type": "ada_norm_single", "use_additional_conditions": False, "norm_eps": config.norm_eps,
    }  # fmt: skip
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": TIMESTEPS, "beta_schedule": "linear",
        "beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon",
    }  # fmt: skip
    index = {
        "_class_name": "PixArtAlphaPipeline", "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "BertModel"], "tokenizer": ["transformers", "BertTokenizer"],
        "transformer": ["diffusers", "PixArtTransformer2DModel"], "vae": [None, None],
    }  # fmt: skip
    files = {"model_index": index, "transformer/config": transformer, "scheduler/scheduler_config": scheduler}
    for stem, values in files.items():
        name = f"{stem}.json"
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(json.dumps(values, indent=2) + "\n")
    save_file(halved(model), out / "transformer" / "diffusion_pytorch_model.safetensors")


def train(args: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)
    torch.manual_seed(args.seed)
    data, diffusion, run = (
        read_data(args.out / "captions.pt", args.data).to(args.device),
        Diffusion(args.device),
        new_run(args),
    )
    torch.manual_seed(args.seed + run.step)
    kinds = random.Random(args.seed + run.step)
    errors, first, begun = [], run.step, run.seconds
    while not run.ended:
        errors.append(train_step(run, diffusion, data, 1 if kinds.random() < args.singles else 2))
        run.seconds = time.monotonic() - run.began
        if run.step % 50 == 0 or run.step < 10:  # to look at a number is to wait for the device
            (mse, hints, confused), errors = torch.stack(errors).mean(0).tolist(), []
            speed = (run.step - first) * args.batch_size / (run.seconds - begun)
            said = f"mse {mse:.4f}, hints {hints:.3f}, confusion {confused:.3f}"
            print(f"step {run.step}: {said}, {run.seconds:.0f} s, {speed:.1f} pictures a second", flush=True)
        if run.step % args.save_every == 0 or run.ended:
            state = {name: part.state_dict() for name, part in run.parts().items()}
            save(args.out / "checkpoint.pt", state | {"step": run.step, "seconds": run.seconds})
            write_pipeline(run.ema, args.out / "pipeline")


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    write_captions(args.out / "captions.pt", args.captions, 0.15, args.encoder, args.seed, args.device)
    train(args)
    print(f"wrote {args.out / 'pipeline'}")


if __name__ == "__main__":
    main()
