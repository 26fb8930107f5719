"""Polish a text-conditioned DiT of examples/train_text.py on pictures that it draws itself, not on real ones.

    python examples/polish_text.py --out runs/polished --encoder build/demo/fashion-pixart-pipeline \\
        --weights models/fashion-pixart/transformer/diffusion_pytorch_model.safetensors

Guidance multiplies what captions say, and with it what the model gets wrong, until pictures are far from any that it
was trained with. So it draws, guided as it will be, and at every step is told what the class-conditional DiT, guided
likewise, takes each half for at that very place (on-policy distillation, arXiv:2306.13649); and, by classifiers
(critic.py), whether what it takes for the picture is of the class that was asked for. What is predicted of
no words, from which guidance leads away, is taken as it is there; one picture in ten has no words, and learns it. Every
picture of a batch is at another step: when one is done, another begins in its place.
"""

from __future__ import annotations

import argparse
import random
from copy import deepcopy
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import torch
import torch.nn.functional as F
from captioned_images import CAPTION_DROPOUT, write_captions
from critic import critic
from drawn_pictures import Pictures, beside, read_captions, stacked
from fashion_mnist import CLASSES
from pixart_of_dit import read_teacher
from safetensors.torch import load_file
from text_captions import BACKGROUND
from text_encoder import ENCODER
from torch import Tensor, nn
from train import Diffusion, update_ema
from train_text import CONFIG, predicted, write_pipeline

from ditedge.export.networks.dit import DiT
from ditedge.export.networks.pixart import PixArt

NONE = len(CLASSES)
FAR = 3.0  # sigma = noise / signal from which on errors count less
UNGUIDED = 0.3  # sigma below which samplers do not guide, see --guidance-interval
GRAIN = 4.0  # how much more errors count at the end, where they are seen as grain
FADED = 0.15  # weight of the DiT's picture of halves whose brightness is said: it knows nothing of brightness


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for captions, classifier and the pipeline")
    parser.add_argument("--data", type=Path, default=None, help="folder with the four gzipped IDX files")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="text_encoder/ and tokenizer/")
    parser.add_argument(
        "--weaker", type=Path, default=None, help="the same with less of the LoRA: rows are between both"
    )
    parser.add_argument("--start", type=Path, default=Path("models/fashion-dit.safetensors"), help="what teaches")
    parser.add_argument("--weights", type=Path, required=True, help="of a PixArt, to begin with")
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--singles", type=float, default=0.08, help="share of batches with pictures of one garment")
    parser.add_argument("--guidance", type=float, default=4.5)
    parser.add_argument("--critic-weight", type=float, default=0.1)
    parser.add_argument("--brightness-weight", type=float, default=0.3)
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--ema-decay", type=float, default=0.99)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def exact(linear: nn.Linear) -> None:
    """bfloat16 has steps of 0.01 where noise is large: guided, and divided by what is left of the signal, they show."""

    def forward(x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return F.linear(x.float(), linear.weight, linear.bias)

    linear.forward = forward  # type: ignore[method-assign]


@torch.no_grad()
def taught(teacher: DiT, drawn: Pictures, labels: Tensor, guidance: Tensor) -> tuple[Tensor, Tensor]:
    """What the class-conditional DiT predicts of each half: guided [N, 1, 1, 1], and of no class; [N, 1, H, W]."""
    kind, x = drawn.kind, stacked(drawn.x, drawn.kind)
    both = torch.cat([labels, torch.full_like(labels, NONE)])
    found = teacher(torch.cat([x, x]), drawn.t.repeat(2 * kind), both)[:, :1].float()
    of_class, of_none = (beside(part, kind) for part in found.chunk(2))
    return of_none + guidance * (of_class - of_none), of_none


def too_bright(shown: Tensor, limits: Tensor, sides: Tensor) -> Tensor:
    """How far what is shown [N, 1, 32, 32] in [-1, 1] is beyond its limit [N], in quarters of the range: [N]."""
    pixels = 127.5 * (shown + 1)
    garment = (pixels > BACKGROUND).float()
    brightness = (pixels * garment).sum((1, 2, 3)) / garment.sum((1, 2, 3)).clamp(min=1)
    return F.relu((limits - brightness) * sides) / 64


@dataclass
class Run:
    args: argparse.Namespace
    model: PixArt
    ema: PixArt
    teacher: DiT
    critic: nn.Module
    diffusion: Diffusion
    optimizer: torch.optim.Optimizer
    step: int = 0


def new_run(args: argparse.Namespace) -> Run:
    model, teacher = PixArt(CONFIG), read_teacher(args.start)
    model.load_state_dict({name: tensor.float() for name, tensor in load_file(args.weights).items()})
    ema = deepcopy(model).requires_grad_(False)
    exact(model.proj_out), exact(teacher.final_layer.linear)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, (0.9, 0.99), weight_decay=0.0, fused=True)
    return Run(args, model, ema, teacher, critic(args.out / "critic.pt", args.data), Diffusion("cpu"), optimizer)


def train_step(run: Run, drawn: Pictures) -> Tensor:
    """-> [3]: error of what is taken for the picture, the classifier's cross entropy, brightness beyond its limit."""
    kind, x, t = drawn.kind, drawn.x, drawn.t
    signal, noise = run.diffusion.signal[t], run.diffusion.noise[t]
    sigma, of = noise / signal, drawn.captions
    guidance = torch.where(sigma < UNGUIDED, 1.0, run.args.guidance)
    labels, sides, limits = (each[drawn.chosen].T.flatten() for each in (of.labels, of.sides, of.limits))
    silent = torch.rand(len(x)) < CAPTION_DROPOUT
    with torch.autocast("cpu", torch.bfloat16):
        said = predicted(run.model, x, t, *drawn.prompts(silent)).float()
        with torch.no_grad():
            unsaid = predicted(run.model, x, t, *drawn.no_words()).float()
        wanted, of_none = taught(run.teacher, drawn, labels, guidance)
    quiet = silent[:, None, None, None]
    target = torch.where(quiet, of_none, unsaid + (wanted - unsaid) / guidance)
    spoken, far = ~silent.repeat(kind), sigma.flatten().repeat(kind)
    error = stacked(guidance * sigma * (said - target), kind).square().mean((1, 2, 3))
    weight = torch.where((sides != 0) & spoken, FADED, 1.0) * (1 / (1 + far / FAR) + GRAIN / (1 + far.square()))
    error = (error * weight).mean()
    guided = unsaid + guidance * (said - unsaid)
    shown = stacked((x - noise * guided) / signal, kind).clamp(-1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = run.critic(shown, far)
    crossed = (F.cross_entropy(logits, labels, reduction="none") * spoken).mean()
    beyond = (too_bright(shown, limits, sides) * (spoken & (far < 5))).mean()
    learn(run, error + run.args.critic_weight * crossed + run.args.brightness_weight * beyond)
    guided = torch.where(quiet, wanted, guided.detach())
    drawn.go_on((x - noise * guided) / signal, guided, run.diffusion)
    return torch.stack([error, crossed, beyond]).detach()


def learn(run: Run, loss: Tensor) -> None:
    """A step of the optimiser, with the learning rate of this step: 20 of warm-up, a cosine to a tenth."""
    args, decay = run.args, min(run.args.ema_decay, (1 + run.step) / (10 + run.step))
    part = 0.1 + 0.45 * (1 + cos(pi * run.step / args.steps))
    run.optimizer.param_groups[0]["lr"] = args.learning_rate * min(1, (run.step + 1) / 20) * part
    run.optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    update_ema(run.ema, run.model, decay)
    run.step += 1


def polish(args: argparse.Namespace) -> None:
    torch.set_flush_denormal(True)
    files = args.out / "captions.pt", args.out / "weaker.pt"
    for file, encoder in zip(files, (args.encoder, args.weaker or args.encoder), strict=True):
        write_captions(file, args.captions, 0.06, encoder, args.seed, "cpu")
    captions, run, kinds = read_captions(*files, args.data), new_run(args), random.Random(args.seed)
    torch.manual_seed(args.seed)
    drawn, errors = {kind: Pictures(args.batch_size, kind, captions[kind]) for kind in (1, 2)}, []
    while run.step < args.steps:
        errors.append(train_step(run, drawn[1 if kinds.random() < args.singles else 2]))
        if run.step % 50 == 0 or run.step == args.steps:
            (error, crossed, beyond), errors = torch.stack(errors).mean(0).tolist(), []
            print(f"step {run.step}: {error:.4f}, classes {crossed:.3f}, brightness {beyond:.3f}", flush=True)
            write_pipeline(run.ema, args.out / "pipeline")


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    polish(args)
    print(f"wrote {args.out / 'pipeline'}")


if __name__ == "__main__":
    main()
