"""Train a student of the demo model that draws a picture in one or two evaluations: MeanFlow, then an adversary.

    python examples/train_meanflow.py --out runs/meanflow                                # 2 CPU cores: a night
    python examples/train_meanflow.py --out runs/meanflow --device cuda --minutes 8 --steps 1000000 --batch-size 256
    python examples/train_meanflow.py --out runs/distilled --velocity teacher --adversary-from 1 ...

The student begins with the weights of `models/fashion-dit.safetensors` and has the layout of Gsunshine/meanflow. It
learns u(x, t, t - r), the average velocity from t to r along x = (1 - t) x0 + t eps, by the MeanFlow identity
u = v - (t - r) du/dt (Geng et al. 2025, arXiv:2505.13447). The derivative is along the velocity that a network
predicts, whose variance is small, as in improved MeanFlow (arXiv:2512.02012). `--velocity data`: v = eps - x0 of the
images, mixed with the student's own for guidance. `--velocity teacher`: the guided velocity of the demo model; without
an adversary (`--adversary-from 1`) the student is taught nothing that the demo model does not know.

From `--adversary-from` of the time on, a second copy of the demo model learns to tell pictures of one evaluation from
images, both with noise (Wang et al. 2023, arXiv:2206.02262), by the relativistic loss with a penalty on its change
under small noise (Huang et al. 2024, arXiv:2501.05441; Lin et al. 2025, arXiv:2501.08316), and the student to be taken
for images.

Interrupted, the same command goes on from the last checkpoint. `ema.safetensors` holds the averaged weights that did
best at one evaluation, in float16: the smallest Frechet distance to the training images among the features of the demo
model itself. The classifier that judges samples in the end has no part in it. `without-adversary.safetensors` holds the
best before the adversary, `mean.safetensors` the average of the two files: what was shipped (models/README.md).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fashion_mnist import CLASSES, load, to_model_range
from meanflow_losses import (
    Adversary,
    Guided,
    Teacher,
    begin,
    discriminator_loss,
    generator_loss,
    mean_flow_loss,
    tokens_of,
)
from pixart_of_dit import read_teacher
from train import Diffusion, halved, learning_rate, save, take_up, update_ema

from ditedge.calibration import frechet_distance
from ditedge.export.networks.dit import DiT
from ditedge.export.networks.meanflow import MeanFlow, MeanFlowConfig
from ditedge.export.truth.reference import mean_flow_trajectory
from ditedge.runtime.pictures.images import grid

TEACHER = Path(__file__).resolve().parents[1] / "models" / "fashion-dit.safetensors"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoint.pt and ema.safetensors")
    parser.add_argument("--data", default=None, type=Path, help="folder with the four gzipped IDX files")
    parser.add_argument("--velocity", choices=["data", "teacher"], default="data", help="what the average is taken of")
    parser.add_argument("--guidance", type=float, default=2.0, help="scale that is folded in")
    parser.add_argument("--interval", type=float, nargs=2, default=(0.2, 0.85), help="times t that are guided")
    parser.add_argument("--equal", type=float, default=0.5, help="share of a batch with r = t, which learns v itself")
    parser.add_argument("--adversary-from", type=float, default=0.5, help="share of the time before it plays; 1: never")
    parser.add_argument("--adversary-weight", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so many, whatever --steps says")
    parser.add_argument("--batch-size", type=int, default=96)
    parser.add_argument("--learning-rate", type=float, default=6e-4)
    parser.add_argument("--warmup-steps", type=int, default=300)
    parser.add_argument("--ema-decay", type=float, default=0.999)
    parser.add_argument("--evaluate-every", type=float, default=1.0, help="minutes")
    parser.add_argument("--evaluated", type=int, default=2000, help="pictures of an evaluation, a multiple of 100")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16", help="autocast of the networks")
    return parser.parse_args()


@dataclass
class Run:
    """What a run of training changes, and what a checkpoint keeps of it."""

    args: argparse.Namespace
    model: MeanFlow
    ema: MeanFlow
    adversary: Adversary
    optimizer: torch.optim.Optimizer
    opponent: torch.optim.Optimizer  # the adversary's
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)

    @property
    def progress(self) -> float:
        return min(1.0, max(self.step / self.args.steps, self.seconds / (60 * self.args.minutes)))

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        names = ("model", "ema", "adversary", "optimizer", "opponent")
        return {name: getattr(self, name) for name in names}

    def state(self) -> dict:
        kept = {name: part.state_dict() for name, part in self.parts().items()}
        return kept | {"step": self.step, "seconds": self.seconds, "history": self.history}


def new_run(args: argparse.Namespace) -> Run:
    """The student and its adversary, both with the demo model's weights."""
    known = read_teacher(TEACHER).to(args.device)
    model = MeanFlow(MeanFlowConfig(**vars(replace(known.config, learn_sigma=False)))).to(args.device)
    begin(model, known, args.device)
    adversary = Adversary(known).to(args.device)
    trained = [p for p in model.parameters() if p.requires_grad]
    played = [p for p in adversary.parameters() if p.requires_grad]
    adam = {"weight_decay": 0.0, "fused": True}
    optimizer = torch.optim.AdamW(trained, lr=args.learning_rate, betas=(0.9, 0.99), **adam)
    opponent = torch.optim.AdamW(played, lr=args.learning_rate / 3, betas=(0.0, 0.99), **adam)
    return Run(args, model, deepcopy(model).requires_grad_(False), adversary, optimizer, opponent)


def go_on(run: Run, checkpoint: Path) -> None:
    """Takes a run up where its checkpoint left it."""
    saved = take_up(checkpoint, run.parts(), run.args.device)
    run.step, run.seconds, run.history = saved["step"], saved["seconds"], saved["history"]
    torch.manual_seed(run.args.seed + run.step)


def frozen(optimizer: torch.optim.Optimizer, still: bool) -> None:
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.requires_grad_(not still)


def optimize(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()


def train_step(run: Run, teacher: Teacher | None, diffusion: Diffusion, images: Tensor, labels: Tensor) -> Tensor:
    """One step of the student, and of its adversary where it plays -> MeanFlow's squared error, and both losses [3]."""
    args, guided = run.args, Guided(run.args.guidance, tuple(run.args.interval))
    index = torch.randint(len(images), (args.batch_size,), device=args.device)
    x0, y = images[index], labels[index]
    half, plays = len(y) // 2, run.progress >= args.adversary_from
    rate = learning_rate(args, run.step, run.seconds)
    run.optimizer.param_groups[0].update(lr=rate, betas=(0.5 if plays else 0.9, 0.99))
    zero = torch.zeros((), device=args.device)
    with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.precision == "bf16"):
        loss, error = mean_flow_loss(run.model, teacher, guided, x0, y, args.equal)
        game = zero
        if plays:
            frozen(run.opponent, True)
            game, fake = generator_loss(run.model, run.adversary, diffusion, x0[:half], y[:half])
    optimize(loss + args.adversary_weight * game, run.optimizer)
    update_ema(run.ema, run.model, min(args.ema_decay, (1 + run.step) / (10 + run.step)))
    opposed = zero
    if plays:
        frozen(run.opponent, False)
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.precision == "bf16"):
            opposed = discriminator_loss(run.adversary, diffusion, x0[:half], fake, y[:half])
        optimize(opposed, run.opponent)
    run.step += 1
    return torch.stack([error, game.detach(), opposed.detach()])


@torch.no_grad()
def features(model: DiT, image: Tensor) -> np.ndarray:
    """What the demo model's tokens are on average after four of its six blocks [N, D], at little noise, of no class."""
    said = []
    for part in image.split(500):
        timestep, null = (torch.full((len(part),), value, device=part.device) for value in (20.0, len(CLASSES)))
        [fourth] = islice(tokens_of(model, part, timestep, null), 3, 4)
        said.append(fourth.mean(dim=1))
    return torch.cat(said).cpu().numpy()


@torch.no_grad()
def evaluate(run: Run, known: DiT, real: np.ndarray) -> dict[str, float]:
    """Frechet distances of the averaged weights' pictures to training images, of one and of two evaluations."""
    generator = torch.Generator().manual_seed(1)
    count = run.args.evaluated
    label = (torch.arange(count) % len(CLASSES)).to(run.args.device)
    noise = torch.randn(count, 1, 32, 32, generator=generator).to(run.args.device)
    made = [sampled(run.ema, noise, label, steps).clamp(-1, 1) for steps in (1, 2)]
    one, two = (frechet_distance(features(known, images), real) for images in made)
    write_pictures(run.args.out / "pictures.pgm", made[0][:100])
    return {"one": one, "two": two, "step": run.step, "seconds": round(run.seconds)}


def sampled(model: MeanFlow, noise: Tensor, label: Tensor, steps: int) -> Tensor:
    """noise [N, C, H, W], label [N] -> what they become in so many equal steps, 500 at a time."""
    made = []
    for x, y in zip(noise.split(500), label.split(500), strict=True):

        def velocity(x: Tensor, t: float, interval: float, y: Tensor = y) -> Tensor:
            time, length = (torch.full((len(x),), value, device=x.device) for value in (t, interval))
            return model(x, time, y, length)

        made.append(mean_flow_trajectory(velocity, x, steps)[-1])
    return torch.cat(made)


def write_pictures(path: Path, images: Tensor) -> None:
    """100 images in [-1, 1] as a sheet, one class a column."""
    levels = ((images + 1) * 127.5).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    sheet = grid(levels, columns=10, gap=0)
    path.write_bytes(b"P5 %d %d 255\n" % (sheet.shape[1], sheet.shape[0]) + sheet.tobytes())


def keep(run: Run, name: str) -> None:
    """Writes the averaged weights in float16, with what was measured."""
    said = {"history": json.dumps(run.history), "arguments": json.dumps(vars(run.args), default=str)}
    save_file(halved(run.ema), run.args.out / name, said)


def keep_mean(out: Path) -> None:
    """Writes the average of the weights with and without an adversary, which lie near enough, where there are both."""
    files = [out / name for name in ("ema.safetensors", "without-adversary.safetensors")]
    if all(path.exists() for path in files):
        played, before = (load_file(path) for path in files)
        mean = {key: ((played[key].float() + before[key].float()) / 2).half() for key in played}
        save_file(mean, out / "mean.safetensors")


def report(run: Run, known: DiT, real: np.ndarray, losses: Tensor) -> None:
    """Measures, prints, saves; the best weights since the adversary began, and the last before it, are kept."""
    measured = evaluate(run, known, real)
    plays = run.progress >= run.args.adversary_from
    earlier = [row["one"] for row in run.history if row["plays"] == plays]
    error, game, opposed = losses.tolist()
    run.history.append(measured | {"plays": plays})
    print(
        f"{run.seconds:5.0f} s, step {run.step}: distance {measured['one']:.3f} at one evaluation, "
        f"{measured['two']:.3f} at two; squared error {error:.4f}, student {game:.3f}, adversary {opposed:.3f}",
        flush=True,
    )
    if measured["one"] < min(earlier, default=math.inf):
        keep(run, "ema.safetensors" if plays or run.args.adversary_from >= 1 else "without-adversary.safetensors")
    save(run.args.out / "checkpoint.pt", run.state())


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    torch.set_float32_matmul_precision("high")
    args.out.mkdir(parents=True, exist_ok=True)
    images, labels = load("train", args.data)
    images, labels = to_model_range(images).to(args.device), labels.to(args.device)
    run, known = new_run(args), read_teacher(TEACHER).to(args.device)
    teacher, diffusion = Teacher(known, args.device), Diffusion(args.device)
    order = torch.argsort(labels, stable=True).reshape(len(CLASSES), -1)[:, : args.evaluated // len(CLASSES)].flatten()
    real = features(known, images[order])
    if (args.out / "checkpoint.pt").exists():
        go_on(run, args.out / "checkpoint.pt")
    numbers = sum(parameter.numel() for parameter in run.model.parameters())
    print(f"{numbers / 1e6:.2f} M parameters, {len(images)} images, {args.device}", flush=True)
    before, clock, evaluated = run.seconds, time.monotonic(), run.seconds
    losses, asked = torch.zeros(3, device=args.device), teacher if args.velocity == "teacher" else None
    while run.progress < 1:
        losses = losses.lerp(train_step(run, asked, diffusion, images, labels), 0.02)
        if args.device.startswith("cuda") and run.step % 20 == 0:
            torch.cuda.synchronize()  # the clock counts what was done, not what was asked for
        run.seconds = before + time.monotonic() - clock
        if run.seconds - evaluated >= 60 * args.evaluate_every or run.progress >= 1:
            evaluated = run.seconds
            report(run, known, real, losses)
            run.seconds = before + time.monotonic() - clock
    keep_mean(args.out)
    print(f"wrote {args.out / 'ema.safetensors'}")


if __name__ == "__main__":
    train(parse_arguments())
