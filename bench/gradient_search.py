"""Programs of few steps for the demo model by the gradient of the Frechet distance, which `tune` cannot follow.

    python bench/gradient_search.py --reference real.npz --budget 8 --device cuda --minutes 4 --out found.json
    ditedge tune --engine build/demo/fashion --start found.json --trials 0 --refine 0 --features ... --reference ...

Times, guidance and each row's weights (of x, x0 and the two x0 before it) are learned together, through all steps of
the network, from what the classifier's features of a batch say; which steps are guided is tried. Needs PyTorch.
found.json is a `tune.json` whose figures are PyTorch's: `tune` measures them again, on seeds that no search saw.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "examples")]

from pixart_of_dit import read_teacher  # noqa: E402

from ditedge.calibration.tune.record import Figures, Found, Judged, Tuned  # noqa: E402
from ditedge.calibration.tune.shapes import Shape  # noqa: E402
from ditedge.runtime.bench.machine import processor  # noqa: E402
from ditedge.runtime.files import sha256_of_file, write_text  # noqa: E402

MODEL, CLASSIFIER = ROOT / "models" / "fashion-dit.safetensors", ROOT / "models" / "fashion_classifier.onnx"
CLASSES, GUIDANCE, ESTIMATES = 10, 4.0, 3
ROUNDS = ((25, 8, 0.05), (50, 4, 0.04), (400, 1, 0.03))  # iterations, programs that begin, learning rate
KEEP = 0.6  # of the moments of the batches before, in those that are compared
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
LOG_RATIO = 0.5 * torch.log((1 - ABAR) / ABAR)  # of timestep 0 to 999, rising


class Judge:
    """The classifier's features in PyTorch, and the Frechet distance to those of real pictures."""

    def __init__(self, reference: Path, device: str) -> None:
        stored = onnx.load(str(CLASSIFIER)).graph.initializer
        self.weights = {one.name: torch.from_numpy(onnx.numpy_helper.to_array(one).copy()).to(device) for one in stored}
        images = torch.from_numpy(np.load(reference)["images"]).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            real = torch.cat([self.features(part.to(device))[0] for part in images.split(500)]).double()
        self.count, self.mean, self.covariance = len(real), real.mean(0), torch.cov(real.T)
        values, vectors = torch.linalg.eigh(self.covariance)
        self.root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures [n, 1, h, w] in [-1, 1] -> features [n, 128], logits [n, 10]: examples/train_classifier.py."""
        for i, k in enumerate((0, 3, 7, 10, 14, 17, 21, 24)):
            x = F.relu(F.conv2d(x, self.weights[f"body.{k}.weight"], self.weights[f"body.{k}.weight_bias"], padding=1))
            x = F.max_pool2d(x, 2) if i in (1, 3, 5) else x
        x = x.mean((2, 3))
        return x, x @ self.weights["head.weight"].T + self.weights["head.bias"]

    def distance(self, mean: Tensor, covariance: Tensor) -> Tensor:
        """Frechet, from moments of features, differentiable."""
        inner = self.root @ covariance @ self.root
        shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=1e-9).sqrt().sum()
        return (mean - self.mean).square().sum() + covariance.trace() + self.covariance.trace() - 2 * shared


class Candidate(nn.Module):
    """A program that is learned: DPM-Solver++ 2 in the beginning. guided: of each step."""

    def __init__(self, guided: list[bool], spacing: str, scale: float = 2.5) -> None:
        super().__init__()
        n = len(guided)
        self.guided, share, ends = guided, torch.linspace(0, 1, n, dtype=torch.float64), LOG_RATIO[[999, 8]]
        points = {
            "timestep": LOG_RATIO[(999 - share * (999 - 999 / n)).long()],
            "log-snr": ends[0] + share * (ends[1] - ends[0]),
            "karras": 7 * torch.log(torch.exp(ends[0] / 7) * (1 - share) + torch.exp(ends[1] / 7) * share),
        }[spacing]
        self.gaps = nn.Parameter((points[:-1] - points[1:]).clamp(min=0.05).log())
        self.above = nn.Parameter(torch.full((n,), math.log(scale - 1), dtype=torch.float64))
        self.own = nn.Parameter(torch.zeros(n, dtype=torch.float64))
        self.change = nn.Parameter(torch.zeros(n, ESTIMATES, dtype=torch.float64))

    def points(self) -> Tensor:
        """Logarithms of sigma / alpha, falling [N]; float64, as the timesteps and the rows."""
        first = LOG_RATIO[999:].to(self.gaps.device)
        return torch.cat([first, first - self.gaps.exp().cumsum(0)]).clamp(min=LOG_RATIO[0].item() + 1e-6)

    def timesteps(self) -> Tensor:
        """Between those of training, linear in the logarithm (runtime/samplers/grid.py)."""
        grid, points = LOG_RATIO.to(self.gaps.device), self.points()
        above = torch.searchsorted(grid, points.detach()).clamp(1, 999)
        return above - 1 + (points - grid[above - 1]) / (grid[above] - grid[above - 1])

    def rows(self) -> list[Tensor]:
        """Weights of x, x0 and those before it [1 + ESTIMATES], of each step."""
        points, n = self.points(), len(self.guided)
        alpha, sigma = torch.sigmoid(-2 * points).sqrt(), torch.sigmoid(2 * points).sqrt()
        rows = []
        for i in range(n):
            ratio = sigma[i + 1] / sigma[i] if i + 1 < n else 0 * sigma[i]
            rest = (alpha[i + 1] if i + 1 < n else 1.0) - ratio * alpha[i]
            second = (points[i] - points[i + 1]) / (points[i - 1] - points[i]) / 2 if 0 < i < n - 1 else 0 * ratio
            weights = torch.stack([1 + second, -second, 0 * second]) + self.change[i]
            there = torch.arange(ESTIMATES, device=weights.device) <= i
            rows.append(torch.cat([(ratio * (1 + self.own[i]))[None], rest * weights * there]))
        return rows

    def shape(self) -> Shape:
        """As `tune` has it: gaps against even ones in log SNR, guidance against that of the first guided step."""
        points, above = self.points().tolist(), np.array(self.above.tolist())[self.guided]
        gaps, factors = -np.diff(points), above - above[0]
        return Shape(
            "dpm++2", "log-snr", 7.0, math.exp(points[0]), math.exp(points[-1]), len(points), len(above),
            self.guided.index(True), 1 + math.exp(above[0]), 1.0, tuple(np.log(gaps / gaps.mean()).tolist()),
            tuple(factors.tolist()), 0, tuple(tuple(row.tolist()) for row in self.rows()),
        )  # fmt: skip


def sample(model: nn.Module, program: Candidate, x: Tensor, y: Tensor) -> Tensor:
    """Pictures of noise x; what a step keeps for the gradient is computed again."""
    times, above, rows, past = program.timesteps().float(), program.above.exp().float(), program.rows(), []
    points = program.points().float()
    alpha, sigma = torch.sigmoid(-2 * points).sqrt(), torch.sigmoid(2 * points).sqrt()

    def noise_in(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda and torch.is_grad_enabled()):
            return model(x, t.expand(len(x)), y)[:, :1].float()

    for i, guided in enumerate(program.guided):
        said = checkpoint(noise_in, x, times[i], y, use_reentrant=False)
        if guided:
            without = checkpoint(noise_in, x, times[i], torch.full_like(y, CLASSES), use_reentrant=False)
            said = said + above[i] * (said - without)
        past = [(x - sigma[i] * said) / alpha[i], *past][:ESTIMATES]
        x = sum((w.float() * column for w, column in zip(rows[i], [x, *past], strict=False)), torch.zeros_like(x))
    return x


def learn(
    args: argparse.Namespace, model: nn.Module, judge: Judge, program: Candidate, steps: int, rate: float
) -> None:
    """Adam on the distance of a batch, whose moments are averaged with those of the batches before."""
    solver = {"params": [program.own, program.change], "lr": rate / 3}
    adam = torch.optim.Adam([{"params": [program.gaps, program.above], "lr": rate}, solver], betas=(0.8, 0.98))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    y, mean, square = torch.arange(args.batch, device=args.device) % CLASSES, None, None
    for _ in range(steps):
        if time.monotonic() > args.end:
            return
        x = sample(model, program, torch.randn(args.batch, 1, 32, 32, device=args.device), y)
        seen = judge.features(x.clamp(-1, 1))[0].double()
        now = seen.mean(0), seen.T @ seen / len(seen)
        old = now if mean is None else (mean, square)
        mean, square = (KEEP * a.detach() + (1 - KEEP) * b for a, b in zip(old, now, strict=True))
        adam.zero_grad()
        judge.distance(mean, square - torch.outer(mean, mean)).backward()
        nn.utils.clip_grad_norm_(program.parameters(), 5.0)
        adam.step()
        schedule.step()


@torch.no_grad()
def measured(args: argparse.Namespace, model: nn.Module, judge: Judge, program: Candidate, count: int) -> Figures:
    """In float32, of pictures of 256 levels, from noise that no step of learning saw."""
    noise, features, right = torch.Generator(args.device).manual_seed(77), [], 0
    for first in range(0, count, args.batch):
        y = torch.arange(first, min(first + args.batch, count), device=args.device) % CLASSES
        x = torch.randn(len(y), 1, 32, 32, device=args.device, generator=noise)
        x = (127.5 * sample(model, program, x, y) + 128).clamp(0, 255).floor() / 127.5 - 1
        seen, logits = judge.features(x)
        features.append(seen.double())
        right += int((logits.argmax(1) == y).sum())
    every = torch.cat(features)
    distance = float(judge.distance(every.mean(0), torch.cov(every.T)))
    return Figures(images=count, seed=0, distance=distance, noise=0.0, kernel=0.0, accuracy=right / count)


def beginnings(passes: int) -> list[Candidate]:
    """Every number of steps, guided in a row somewhere in the middle, on three spacings."""
    found = []
    for steps in range(math.ceil(passes / 2), passes):
        guided = passes - steps
        for start in range(steps - guided + 1):
            if steps == guided or 0.15 * steps <= start + guided / 2 <= 0.8 * steps:
                where = [start <= i < start + guided for i in range(steps)]
                found += [Candidate(where, spacing) for spacing in ("timestep", "log-snr", "karras")]
    return found


def search(args: argparse.Namespace, model: nn.Module, judge: Judge) -> list[tuple[Figures, Candidate]]:
    """The better half after the other learns on -> what the last round left, best first."""
    pool = [program.to(args.device) for program in beginnings(args.budget)]
    ranked = [(measured(args, model, judge, program, min(1000, args.count)), program) for program in pool]
    for steps, begin, rate in ROUNDS:
        ranked = sorted(ranked, key=lambda one: one[0].distance)[:begin]
        for i, (_, program) in enumerate(ranked):
            learn(args, model, judge, program, steps, rate)
            ranked[i] = (measured(args, model, judge, program, args.count), program)
            where = "".join(".g"[one] for one in program.guided)
            print(f"{where}: {ranked[i][0].distance:.3f} after {steps} at {rate}", flush=True)
    return sorted(ranked, key=lambda one: one[0].distance)


def found_of(figures: Figures, program: Candidate) -> Found:
    shape = program.shape()
    passes = shape.steps + shape.guided
    return Found(
        name=f"tuned-{passes}", engine="fashion", file=None, passes=passes, steps=shape.steps, guided=shape.guided,
        seconds=0.0, figures=figures, shape=asdict(shape),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help=".npz with images uint8 [n, 32, 32, 1]")
    parser.add_argument("--budget", type=int, required=True, help="forward passes of an image")
    parser.add_argument("--minutes", type=float, default=4.0, help="of learning, in all")
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--count", type=int, default=4000, help="pictures that a program is measured with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    args.end = time.monotonic() + 60 * args.minutes
    judge = Judge(args.reference, args.device)
    found = [found_of(*one) for one in search(args, read_teacher(MODEL).to(args.device), judge)]
    judged = Judged(
        features=CLASSIFIER.name, features_sha256=sha256_of_file(CLASSIFIER), dimensions=len(judge.mean),
        reference=args.reference.name, reference_count=judge.count,
    )  # fmt: skip
    tuned = Tuned(
        made_by="bench/gradient_search.py", engines=["fashion"], engine_sha256=[sha256_of_file(MODEL)],
        guidance=GUIDANCE, budget=f"{args.budget}passes", min_quality=None, judged=judged, rungs=[args.count], seed=0,
        trials=0, pruned=0, seconds=60 * args.minutes, machine=processor(), costs=[], baseline=None, programs=found[:1],
        measured=found, trial_points=[],
    )  # fmt: skip
    write_text(args.out, tuned.model_dump_json(indent=1) + "\n")
    print(f"wrote {args.out}: {found[0].figures.distance:.3f} at {args.budget} passes")


if __name__ == "__main__":
    main()
