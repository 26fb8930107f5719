"""Train a small class-conditional DiT on Fashion-MNIST: the model that `models/` ships.

    python examples/train.py --out runs/fashion                  # 2 CPU cores: about an hour
    python examples/train.py --out runs/fashion --device cuda --minutes 8 --steps 100000 --batch-size 256 \\
        --hidden-size 256 --depth 8 --num-heads 4 --patch-size 2                      # 9 M parameters, 17 MB

The objective is that of facebookresearch/DiT: mean squared error of the predicted noise, plus the variational bound
for the learned variance with the mean's gradient stopped (Nichol & Dhariwal 2021, arXiv:2102.09672, L_hybrid), label
dropout 0.1 for classifier-free guidance, and an exponential moving average of the weights. Interrupted (Ctrl-C or
worse), the same command goes on from the last checkpoint. The checkpoint has the layout of the reference's train.py:
{"model", "ema", "opt", "args"}, and `ema.safetensors` holds the averaged weights alone, in float16.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fashion_mnist import CLASSES, IMAGE_SIZE, load, to_model_range

from ditedge.export.networks.dit import DiT, DiTConfig, initialize_weights

TIMESTEPS = 1000
LABEL_DROPOUT = 0.1


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder for checkpoint.pt and ema.safetensors")
    parser.add_argument("--data", default=None, help="folder with the four gzipped IDX files (default: the package)")
    parser.add_argument("--hidden-size", type=int, default=192)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--num-heads", type=int, default=3)
    parser.add_argument("--patch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, whatever --steps says")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--warmup-steps", type=int, default=300)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="autocast of the network")
    return parser.parse_args()


class Diffusion:
    """The 1000-step DDPM forward process with linear betas (Ho et al. 2020), and its training losses."""

    def __init__(self, device: str) -> None:
        betas = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64)
        alphas_cumprod = torch.cumprod(1 - betas, 0)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
        variance = betas * (1 - previous) / (1 - alphas_cumprod)
        log_variance = torch.cat([variance[1:2], variance[1:]]).log()  # index 0 has no variance: use index 1's

        def table(values: Tensor) -> Tensor:
            return values.float().to(device)[:, None, None, None]

        self.signal, self.noise = table(alphas_cumprod.sqrt()), table((1 - alphas_cumprod).sqrt())
        self.log_variance, self.log_beta = table(log_variance), table(betas.log())
        self.mean_x0 = table(betas * previous.sqrt() / (1 - alphas_cumprod))
        self.mean_x = table((1 - previous) * (1 - betas).sqrt() / (1 - alphas_cumprod))

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.signal[t] * x0 + self.noise[t] * noise

    def losses(self, output: Tensor, x0: Tensor, x: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """output [N, 2C, H, W] -> (epsilon MSE, variational bound in bits per dimension), both scalars."""
        epsilon, v = output.chunk(2, dim=1)
        mse = (epsilon - noise).square().mean()
        fraction = (v + 1) / 2
        log_variance = fraction * self.log_beta[t] + (1 - fraction) * self.log_variance[t]
        x0_estimate = (x - self.noise[t] * epsilon.detach()) / self.signal[t]
        mean = self.mean_x0[t] * x0_estimate + self.mean_x[t] * x
        true_mean = self.mean_x0[t] * x0 + self.mean_x[t] * x
        kl = gaussian_kl(true_mean, self.log_variance[t], mean, log_variance)
        decoder_nll = -discretized_gaussian_log_likelihood(x0, mean, log_variance / 2)
        bound = torch.where(t[:, None, None, None] == 0, decoder_nll, kl).mean() / math.log(2)
        return mse, bound


def gaussian_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N1 || N2) per element, in nats."""
    ratio = log_variance1 - log_variance2
    return 0.5 * (-1 - ratio + ratio.exp() + (mean1 - mean2).square() * (-log_variance2).exp())


def discretized_gaussian_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of 8-bit x in [-1, 1] under a Gaussian integrated over each bin (Ho et al. 2020, eq. 13)."""

    def cdf(value: Tensor) -> Tensor:
        return 0.5 * (1 + torch.erf(value / math.sqrt(2)))

    upper = cdf((x - mean + 1 / 255) * (-log_scale).exp())
    lower = cdf((x - mean - 1 / 255) * (-log_scale).exp())
    probability = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return probability.clamp(min=1e-12).log()


def learning_rate(args: argparse.Namespace, step: int, seconds: float) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak, at the last step or at the end of the time that was given."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, args.steps - args.warmup_steps)
    progress = min(1.0, max(progress, seconds / (60 * args.minutes)))
    return args.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def update_ema(ema: DiT, model: DiT, decay: float) -> None:
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(model.parameters()), None)  # in few kernels


def save(path: Path, checkpoint: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(checkpoint, temporary)
    os.replace(temporary, path)


def take_up(checkpoint: Path, parts: dict[str, nn.Module | torch.optim.Optimizer], device: str) -> dict:
    """Gives each part the state that the checkpoint has under its name -> what else the checkpoint says."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(saved.pop(name))
    print(f"going on from {checkpoint} at step {saved['step']}", flush=True)
    return saved


def halved(model: nn.Module) -> dict[str, Tensor]:
    """Its state dict as it is shipped: in float16."""
    return {name: tensor.half().cpu().contiguous() for name, tensor in model.state_dict().items()}


@dataclass
class Run:
    """What a run of training changes, and what a checkpoint keeps of it."""

    args: argparse.Namespace
    model: DiT
    ema: DiT
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @property
    def trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def ended(self) -> bool:
        return self.step >= self.args.steps or self.seconds >= 60 * self.args.minutes

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "ema": self.ema, "opt": self.optimizer}

    def state(self) -> dict:
        kept = {name: part.state_dict() for name, part in self.parts().items()}
        return kept | {"args": self.args, "step": self.step, "seconds": self.seconds}


def new_run(args: argparse.Namespace) -> Run:
    config = DiTConfig(
        IMAGE_SIZE, args.patch_size, 1, args.hidden_size, args.depth, args.num_heads, num_classes=len(CLASSES)
    )
    model = DiT(config)
    initialize_weights(model)
    model.to(args.device)
    ema = deepcopy(model).requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Run(args, model, ema, torch.optim.AdamW(trained, lr=args.learning_rate, weight_decay=0.0, fused=True))


def go_on(run: Run, checkpoint: Path) -> None:
    """Takes a run up where its checkpoint left it."""
    saved = take_up(checkpoint, run.parts(), run.args.device)
    run.step, run.seconds = saved["step"], saved["seconds"]
    torch.manual_seed(run.args.seed + run.step)


def train_step(run: Run, diffusion: Diffusion, images: Tensor, labels: Tensor) -> tuple[float, float]:
    """One step of the optimiser on a random batch -> (epsilon MSE, variational bound in bits per dimension)."""
    args = run.args
    run.optimizer.param_groups[0]["lr"] = learning_rate(args, run.step, run.seconds)
    index = torch.randint(len(images), (args.batch_size,), device=args.device)
    x0, label = images[index], labels[index]
    dropped = torch.rand(args.batch_size, device=args.device) < LABEL_DROPOUT
    label = torch.where(dropped, run.model.config.num_classes, label)
    t = torch.randint(TIMESTEPS, (args.batch_size,), device=args.device)
    noise = torch.randn_like(x0)
    x = diffusion.add_noise(x0, noise, t)
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.precision == "bf16"):
        output = run.model(x, t, label)
    mse, bound = diffusion.losses(output.float(), x0, x, noise, t)
    run.optimizer.zero_grad()
    (mse + bound).backward()
    torch.nn.utils.clip_grad_norm_(run.trained, 1.0)
    run.optimizer.step()
    update_ema(run.ema, run.model, min(args.ema_decay, (1 + run.step) / (10 + run.step)))
    run.step += 1
    return mse.item(), bound.item()


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    images, labels = load("train", Path(args.data) if args.data else None)
    images, labels = to_model_range(images).to(args.device), labels.to(args.device)
    run, diffusion, checkpoint = new_run(args), Diffusion(args.device), out / "checkpoint.pt"
    if checkpoint.exists():
        go_on(run, checkpoint)
    print(f"{sum(p.numel() for p in run.trained) / 1e6:.2f} M parameters, {len(images)} images, {args.device}")
    columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.description}")]
    averages, before, clock = (math.nan, math.nan), run.seconds, time.monotonic()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        bar = progress.add_task("", total=args.steps, completed=run.step)
        while not run.ended:
            losses = train_step(run, diffusion, images, labels)
            run.seconds = before + time.monotonic() - clock
            averages = (
                losses
                if math.isnan(averages[0])
                else tuple(0.98 * average + 0.02 * loss for average, loss in zip(averages, losses, strict=True))
            )
            progress.update(bar, advance=1, description=f"mse {averages[0]:.4f}  bound {averages[1]:.3f} bit")
            if run.step % args.save_every == 0 or run.ended:
                progress.print(f"step {run.step}: mse {averages[0]:.4f}, bound {averages[1]:.3f}, {run.seconds:.0f} s")
                save(checkpoint, run.state())
    save_file(halved(run.ema), out / "ema.safetensors")
    print(f"wrote {checkpoint} and {out / 'ema.safetensors'}")


if __name__ == "__main__":
    train(parse_arguments())
