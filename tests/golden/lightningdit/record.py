"""Records `recorded.safetensors`: python record.py CLONE, of hustvl/LightningDiT at commit 2725fed.

Needs timm 0.9.16, torchdiffeq, einops, scipy and tqdm. Weights are random and rounded to float16.
"""

import os
import sys
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # its modules are torch.compile'd
sys.path.insert(0, sys.argv[1])

import torch
from models.lightningdit import LightningDiT
from safetensors.torch import save_file
from tokenizer.autoencoder import Decoder
from transport import Sampler, create_transport

SIZE = {
    "input_size": 4,
    "patch_size": 1,
    "in_channels": 6,
    "hidden_size": 48,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
KINDS = {
    "released": {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True},
    "qk_norm": {"use_swiglu": True, "use_rope": True, "use_rmsnorm": True, "use_qknorm": True},
    "plain": {"use_qknorm": True, "wo_shift": True, "learn_sigma": True},
}
FIXED = ("pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin")


def randomise(model: torch.nn.Module, spread: float) -> None:
    for key, value in model.state_dict().items():
        if key not in FIXED:
            value.copy_((torch.randn_like(value) * spread + (1.0 if "norm" in key and "weight" in key else 0.0)).half())


@torch.no_grad()
def main() -> None:
    tensors = {}
    for seed, (kind, options) in enumerate(KINDS.items()):
        torch.manual_seed(seed)
        model = LightningDiT(**SIZE, **options).eval()
        randomise(model, 0.15)
        x, t, y = torch.randn(3, 6, 4, 4), torch.tensor([0.0, 0.37, 0.96]), torch.tensor([0, 3, 5])
        tensors |= {f"{kind}.x": x, f"{kind}.t": t, f"{kind}.y": y, f"{kind}.output": model(x, t, y)}
        for key, value in model.state_dict().items():
            tensors[f"{kind}.weights.{key}"] = value if key in FIXED else value.half()
        z, labels = torch.randn(2, 6, 4, 4), torch.tensor([1, 4])
        sample = Sampler(create_transport("Linear", "velocity")).sample_ode(
            sampling_method="euler", num_steps=8, timestep_shift=0.3
        )
        null = torch.full((2,), 5)
        guided = sample(torch.cat([z, z]), model.forward_with_cfg, y=torch.cat([labels, null]), cfg_scale=6.7,
                        cfg_interval=True, cfg_interval_start=0.125)  # fmt: skip
        tensors |= {f"{kind}.z": z, f"{kind}.labels": labels, f"{kind}.guided": guided[:, :2].clone()}
        tensors[f"{kind}.unguided"] = sample(z, model, y=labels)
    torch.manual_seed(9)
    decoder = Decoder(ch=32, ch_mult=(1, 2), num_res_blocks=1, resolution=32, z_channels=6).eval()
    quant = torch.nn.Conv2d(6, 6, 1)
    randomise(decoder, 0.05)
    randomise(quant, 0.3)
    z, mean, std = torch.randn(1, 6, 4, 4), torch.randn(1, 6, 1, 1), torch.rand(1, 6, 1, 1) + 0.5
    picture = decoder(quant(z * std / 1.0 + mean))  # inference.py, latent_multiplier 1.0
    tensors |= {"vae.z": z, "vae.mean": mean, "vae.std": std, "vae.picture": picture}
    tensors |= {f"vae.weights.decoder.{key}": value.half() for key, value in decoder.state_dict().items()}
    tensors |= {f"vae.weights.post_quant_conv.{key}": value.half() for key, value in quant.state_dict().items()}
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, Path(__file__).with_name("recorded.safetensors")
    )


main()
