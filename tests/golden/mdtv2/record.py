"""Records `recorded.safetensors`: python record.py CLONE, of sail-sg/MDT at commit 7d26c21.

Needs timm 0.9.16. Weights are random and rounded to float16; of the training's own, the two smallest are kept.
"""

import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])

import torch
from masked_diffusion import create_diffusion
from masked_diffusion.models import MDTv2
from safetensors.torch import save_file


@torch.no_grad()
def main() -> None:
    tensors = {}
    torch.manual_seed(1)
    size = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 32, "depth": 6, "num_heads": 2}
    model = MDTv2(**size, num_classes=5, decode_layer=2, mask_ratio=0.3).eval()
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_((torch.randn_like(value) * 0.12).half())
    x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([999, 371, 4]), torch.tensor([0, 3, 5])
    tensors |= {"x": x, "t": t.float(), "y": y, "output": model(x, t, y)}
    for key, value in model.state_dict().items():
        tensors[f"weights.{key}"] = value.half() if value.is_floating_point() else value.to(torch.int16)
    z, labels, null = torch.randn(2, 4, 8, 8), torch.tensor([1, 4]), torch.full((2,), 5)
    tensors |= {"z": z, "labels": labels}
    for power in (4.0, 0.01):  # image_sample.py's, infer_mdt.py's
        drawn, randn_like = [], torch.randn_like

        def record(like: torch.Tensor, drawn: list = drawn, randn_like=randn_like) -> torch.Tensor:
            drawn.append(randn_like(like))
            return drawn[-1]

        torch.manual_seed(7)
        torch.randn_like = record
        given = {"y": torch.cat([labels, null]), "cfg_scale": 3.8, "scale_pow": power}
        states = [
            step["sample"][:2]
            for step in create_diffusion("5").p_sample_loop_progressive(
                model.forward_with_cfg,
                (4, 4, 8, 8),
                torch.cat([z, z]),
                clip_denoised=False,
                model_kwargs=given,
                device="cpu",
            )
        ]
        torch.randn_like = randn_like
        tensors[f"noise-{power:g}"] = torch.stack(drawn)[:, :2].clone()
        tensors[f"ddpm-{power:g}"] = torch.stack(states)
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, Path(__file__).with_name("recorded.safetensors")
    )


main()
