"""Records `recorded.safetensors`: python record.py CLONE, of Anima-Lab/MaskDiT at commit 73cfb96.

Needs timm 0.9.16. Weights are random and rounded to float16. Its decoder has a fixed size, 8 blocks 512 wide: for small
files the two numbers are replaced in its source before it is run. The sampler is cut out of sample.py, whose imports
need lmdb.
"""

import re
import sys
import types
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

CLONE = Path(sys.argv[1])


def module_of(source: str) -> types.ModuleType:
    module = types.ModuleType("maskdit")
    module.__dict__.update(torch=torch, np=np)
    exec(source, module.__dict__)
    return module


@torch.no_grad()
def main() -> None:
    source = (CLONE / "models" / "maskdit.py").read_text()
    for number, small in (("decoder_hidden_size = 512", 48), ("decoder_depth = 8", 2)):
        assert number in source
        source = source.replace(number, f"{number.split(' = ')[0]} = {small}")
    network = module_of(source)
    sampler = re.search(r"^def edm_sampler.*?^    return x_next$", (CLONE / "sample.py").read_text(), re.M | re.S)
    edm_sampler = module_of(sampler[0]).edm_sampler
    network.DiT_models["tiny"] = lambda **given: network.DiT(
        depth=2, hidden_size=32, patch_size=2, num_heads=2, **given
    )
    tensors = {}
    for seed, decoder in enumerate((True, False)):
        kind = "decoder" if decoder else "plain"
        torch.manual_seed(seed)
        model = network.EDMPrecond(
            8, 4, num_classes=5, model_type="tiny", use_decoder=decoder, mae_loss_coef=0.1 if decoder else 0
        ).eval()
        for key, value in model.state_dict().items():
            if "pos_embed" not in key:
                value.copy_((torch.randn_like(value) * 0.12).half())
        x, t, y = torch.randn(3, 4, 8, 8), torch.tensor([1.0, -0.2, -1.5]), torch.tensor([0, 3, 5])
        classes = torch.cat([torch.eye(5), torch.zeros(1, 5)])
        tensors |= {
            f"{kind}.x": x,
            f"{kind}.t": t,
            f"{kind}.y": y,
            f"{kind}.output": model.model(x, t, classes[y])["x"],
        }
        for key, value in model.state_dict().items():
            tensors[f"{kind}.weights.{key}"] = value if "pos_embed" in key else value.half()
        z, labels = torch.randn(2, 4, 8, 8), torch.tensor([1, 4])
        tensors |= {f"{kind}.z": z, f"{kind}.labels": labels}
        for scale in (None, 1.8):
            denoised = []

            def net(*given, model=model, denoised=denoised, **named):
                found = model(*given, **named)
                denoised.append(found["x"])
                return found

            net.sigma_min, net.sigma_max, net.round_sigma = model.sigma_min, model.sigma_max, model.round_sigma
            made = edm_sampler(net, z, classes[labels], cfg_scale=scale, num_steps=6)
            tensors[f"{kind}.heun-{scale or 1}"] = made.float()
            tensors[f"{kind}.denoised-{scale or 1}"] = torch.stack(denoised).float()
    save_file(
        {key: value.contiguous() for key, value in tensors.items()}, Path(__file__).with_name("recorded.safetensors")
    )


main()
