"""Train a small text-conditioned DiT of the PixArt kind on captioned Fashion-MNIST: the text demo that `models/` ships.

    python examples/train_text.py --out runs/fashion-pixart            # 2 CPU cores with bfloat16: about an hour

Each process (`--processes`) has one thread and a part of the batch: where other programs run too, threads that wait for
each other in every layer are several times slower than processes that meet once a step.

As PixArt-alpha did (arXiv:2310.00426, section 2.3), it starts from a class-conditional DiT, here `models/fashion-
dit.safetensors`: self-attention, MLPs and embedders are taken over, adaLN becomes adaLN-single, and cross-attention to
the token rows of a frozen text encoder (examples/text_encoder.py) begins with an output of zero. The same DiT then
teaches: the objective is the mean squared error of what it predicts for each garment by itself, with more weight where
noise is strong, since captions are decided there; one caption in ten is empty, for guidance. Interrupted, the same
command goes on from the last checkpoint. The result is a diffusers pipeline folder without a VAE and without the text
encoder: the weights' average, in float16.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from captioned_images import TOKENS, Batch, Data, batch, read_data, write_captions
from fashion_mnist import IMAGE_SIZE
from pixart_of_dit import initialize, read_teacher
from safetensors.torch import save_file
from torch import Tensor, nn
from train import TIMESTEPS, Diffusion, learning_rate, save, update_ema

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ditedge.export.networks.dit import DiT
from ditedge.export.networks.pixart import PixArt, PixArtConfig

BRIGHTNESS = 0.4  # the noise's own part in what is learned of garments whose brightness is said
CONFIG = PixArtConfig(IMAGE_SIZE, 4, 1, 1, num_heads=3, head_size=64, depth=6, caption_channels=384, tokens=TOKENS)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="folder for checkpoint.pt and the pipeline")
    parser.add_argument("--data", type=Path, default=None, help="folder with the four gzipped IDX files")
    parser.add_argument("--encoder", type=Path, default=Path("build/minilm"), help="text_encoder/ and tokenizer/")
    parser.add_argument("--start", type=Path, default=Path("models/fashion-dit.safetensors"))
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--steps", type=int, default=20000, help="end after so many, whatever --minutes says")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=32, help="of each process")
    parser.add_argument("--singles", type=float, default=0.1, help="share of batches with pictures of one garment")
    parser.add_argument("--captions", type=int, default=12000)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--warmup-steps", type=int, default=100)
    parser.add_argument("--ema-decay", type=float, default=0.99)
    parser.add_argument("--save-every", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@dataclass
class Run:
    """What training changes, and what a checkpoint keeps of it."""

    args: argparse.Namespace
    model: PixArt
    ema: PixArt
    optimizer: torch.optim.Optimizer
    teacher: DiT
    began: float = 0.0  # on this machine's clock, as if it had never been interrupted
    step: int = 0
    seconds: float = 0.0

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        return {"model": self.model, "ema": self.ema, "opt": self.optimizer}

    @property
    def ended(self) -> bool:
        return self.step >= self.args.steps or self.seconds >= 60 * self.args.minutes


def new_run(args: argparse.Namespace) -> Run:
    model = PixArt(CONFIG)
    initialize(model, args.start)
    ema = deepcopy(model).requires_grad_(False)
    betas = (0.9, 0.99)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate, betas, weight_decay=0.0, fused=True)
    run, checkpoint = Run(args, model, ema, optimizer, read_teacher(args.start)), args.out / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in run.parts().items():
            part.load_state_dict(saved[name])
        run.step, run.seconds = saved["step"], saved["seconds"]
        print(f"going on from {checkpoint} at step {run.step}", flush=True)
    run.began = time.monotonic() - run.seconds
    return run


def predicted(model: PixArt, x: Tensor, t: Tensor, hidden: Tensor, mask: Tensor) -> Tensor:
    """x [N, 1, H, W], t [N] -> predicted noise of the same shape."""
    context, bias = model.context(hidden, mask)
    patch = model.config.patch_size
    position = model.position(*(torch.arange(side // patch).float() for side in x.shape[2:]))
    return model.trunk(x, model.conditioner(t.float()), context, bias, torch.arange(len(x)), position)


def train_step(run: Run, diffusion: Diffusion, data: Data, kind: int) -> float:
    """kind: 1 or 2 garments -> the mean squared error without weights."""
    run.optimizer.param_groups[0]["lr"] = learning_rate(run.args, run.step, run.seconds)
    drawn = batch(run.args.batch_size, data, kind)
    x0 = drawn.pictures
    # Near its ends the schedule is almost only noise, or almost none: little is learned there.
    t = (TIMESTEPS * torch.distributions.Beta(2.5, 1.8).sample((len(x0),))).long().clamp(max=TIMESTEPS - 1)
    noise = torch.randn_like(x0)
    x = diffusion.add_noise(x0, noise, t)
    with torch.autocast("cpu", torch.bfloat16):
        output = predicted(run.model, x, t, drawn.hidden, drawn.mask)
        wanted = taught(run.teacher, x, t, drawn, noise)
    error = (output.float() - wanted).square().mean(dim=(1, 2, 3))
    snr = (diffusion.signal[t] / diffusion.noise[t]).square().flatten()
    run.optimizer.zero_grad()
    (error * (snr + 0.01) ** -0.5).mean().backward()
    # Processes agree about the time too, since it ends the training.
    elapsed = torch.tensor(time.monotonic() - run.began)
    loss, run.seconds = average_gradients(run.model, error.detach().mean(), elapsed)
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
    run.optimizer.step()
    update_ema(run.ema, run.model, min(run.args.ema_decay, (1 + run.step) / (10 + run.step)))
    run.step += 1
    return loss


@torch.no_grad()
def taught(teacher: DiT, x: Tensor, t: Tensor, drawn: Batch, noise: Tensor) -> Tensor:
    """What the class-conditional DiT predicts for each half by itself, [N, 1, H, W]; in part the noise itself where
    the caption says more than a class. Halves are independent of each other once their classes are known, and a
    prediction has not the noise's own randomness: the same is learned from far fewer pictures."""
    kind = drawn.said.shape[1]
    found = teacher(torch.cat(x.chunk(kind, dim=3)), t.repeat(kind), drawn.said.T.flatten())[:, :1].float()
    found = torch.cat(found.chunk(kind), dim=3)
    part = BRIGHTNESS * drawn.bright.repeat_interleave(IMAGE_SIZE, dim=1)[:, None, None]
    return found + part * (noise - found)


def average_gradients(model: PixArt, *numbers: Tensor) -> list[float]:
    """Over the processes; numbers [] are averaged along with them and returned."""
    gradients = [parameter.grad for parameter in model.parameters()]
    together = torch.cat([*(gradient.flatten() for gradient in gradients), torch.stack(numbers)])
    dist.all_reduce(together)
    together /= dist.get_world_size()
    averaged = together[: -len(numbers)].split([gradient.numel() for gradient in gradients])
    for gradient, values in zip(gradients, averaged, strict=True):
        gradient.copy_(values.view_as(gradient))
    return together[-len(numbers) :].tolist()


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
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, out / "transformer" / "diffusion_pytorch_model.safetensors")


def train(rank: int, args: argparse.Namespace, meeting: str) -> None:
    """One of the processes. meeting: a file that does not exist yet."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=args.processes)
    torch.manual_seed(args.seed)  # the same weights everywhere
    data, diffusion, run = read_data(args.out / "captions.pt", args.data), Diffusion("cpu"), new_run(args)
    torch.manual_seed(args.seed + args.processes * run.step + rank)
    average, first, begun = math.nan, run.step, run.seconds
    while not run.ended:
        # The same everywhere, so that none waits for another.
        kind = 1 if random.Random(run.step).random() < args.singles else 2
        loss = train_step(run, diffusion, data, kind)
        average = loss if math.isnan(average) else 0.98 * average + 0.02 * loss
        if rank == 0 and run.step % 10 == 0:
            speed = (run.step - first) * args.batch_size * args.processes / (run.seconds - begun)
            print(f"step {run.step}: mse {average:.4f}, {run.seconds:.0f} s, {speed:.1f} pictures a second", flush=True)
        if rank == 0 and (run.step % args.save_every == 0 or run.ended):
            state = {name: part.state_dict() for name, part in run.parts().items()}
            save(args.out / "checkpoint.pt", state | {"step": run.step, "seconds": run.seconds})
            write_pipeline(run.ema, args.out / "pipeline")


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    write_captions(args.out / "captions.pt", args.captions, 0.15, args.encoder, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(train, (args, f"{folder}/meeting"), nprocs=args.processes)
    print(f"wrote {args.out / 'pipeline'}")


if __name__ == "__main__":
    main()
