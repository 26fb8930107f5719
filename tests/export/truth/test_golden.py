"""Every recorded case of facebookresearch/DiT: network, guided network, and whole trajectories through the graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ditedge.export import read_checkpoint
from ditedge.export.truth.reference import guided_output
from ditedge.runtime import Session, open_bundle
from ditedge.runtime.loop.noise import GivenNoise
from ditedge.runtime.loop.verify import relative_error
from tests.conftest import CASES, GOLDEN, export_golden, golden_case, has_null_class

LAYOUTS = ("model.pt", "train_checkpoint.pt", "model.safetensors")
LOOPS = [(case, loop["name"]) for case in CASES for loop in golden_case(case)["loops"]]
TOLERANCE = 1e-5  # float32 against the reference's float32; measured at most 2.4e-6


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_network_of_every_checkpoint_layout(case: str, layout: str) -> None:
    heads = golden_case(case)["config"]["num_heads"]
    model = read_checkpoint(GOLDEN / case / layout, heads=heads, null_class=has_null_class(case)).model()
    recorded = load_file(GOLDEN / case / "forward.safetensors")
    x, t, y = (torch.from_numpy(recorded[name]) for name in ("x", "t", "y"))
    assert relative_error(model(x, t, y).numpy(), recorded["out"]) < TOLERANCE
    if "out_cfg4" in recorded:
        outputs = [guided_output(model, x[i : i + 1], int(t[i]), y[i : i + 1], 4.0, 3) for i in range(len(x))]
        assert relative_error(torch.cat(outputs).numpy(), recorded["out_cfg4"]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_forward_through_the_graphs(golden_bundle, case: str) -> None:
    """The step graph with identity tables returns the raw network output, guided and not."""
    bundle = open_bundle(golden_bundle(case))
    model = bundle.manifest.model
    recorded = load_file(GOLDEN / case / "forward.safetensors")
    batch, channels = len(recorded["x"]), model.in_channels
    for name, guidance in (("out", 1.0), ("out_cfg4", 4.0)):
        if name not in recorded:
            continue
        rows = 2 * batch if guidance != 1.0 else batch
        labels = np.concatenate([recorded["y"], np.full(batch, model.num_classes)])[:rows].astype(np.int64)
        modulation = np.empty((rows, (6 * model.depth + 2) * model.hidden_size), dtype=np.float32)
        combine = np.zeros((batch, rows, model.out_channels), dtype=np.float32)
        combine[range(batch), range(batch)] = 1.0
        if guidance != 1.0:
            combine[range(batch), range(batch), :3] = guidance
            combine[range(batch), range(batch, rows), :3] = 1 - guidance
        with Session(bundle) as session:
            timestep = np.tile(recorded["t"], rows // batch).astype(np.float32)
            session.engine("conditioner").run({"timestep": timestep, "label": labels}, {"modulation": modulation})
            output = np.empty((batch, 1, *recorded["x"].shape[1:]), dtype=np.float32)
            inputs = {
                "state": np.ascontiguousarray(recorded["x"][:, None]),
                "sample": np.tile(np.arange(batch), rows // batch),
                "condition": np.arange(rows),
                "modulation": modulation,
                "combine": combine,
                "x0_from": np.tile(np.float32([0, 1]), (batch, 1)),
                "x0_bound": np.full(batch, 3.0e38, dtype=np.float32),
                "log_sigma": np.tile(np.float32([0, 1]), (batch, 1)),
                "mix": np.tile(np.float32([0, 1, 0]), (batch, 1, 1)),
                "noise": np.ones_like(recorded["x"]),
            }
            session.engine("step").run(inputs, {"next_state": output})
            assert relative_error(output[:, 0], recorded[name][:, :channels]) < TOLERANCE
            if model.learned_variance:  # exp(v) comes out of the noise column
                inputs["mix"] = np.tile(np.float32([0, 0, 1]), (batch, 1, 1))
                session.engine("step").run(inputs, {"next_state": output})
                assert relative_error(np.log(output[:, 0]), recorded[name][:, channels:]) < TOLERANCE


@pytest.mark.parametrize(("case", "name"), LOOPS)
def test_trajectory_through_graphs_and_loop(golden_bundle, tmp_path: Path, case: str, name: str) -> None:
    loop = next(loop for loop in golden_case(case)["loops"] if loop["name"] == name)
    other = loop.get("predict_xstart", False)
    bundle = open_bundle(export_golden(case, tmp_path / "x0", "x0") if other else golden_bundle(case))
    variance = None
    if loop["loop"] == "ddpm" and not bundle.manifest.model.learned_variance:
        variance = "fixed-small" if loop.get("sigma_small") else "fixed-large"
    eta = loop["eta"] if loop["loop"] == "ddim" else None
    program = bundle.program(
        sampler=loop["loop"], respacing=loop["respacing"], eta=eta, clip_x0=loop["clip"], variance=variance
    )
    recorded = load_file(GOLDEN / case / f"{name}.safetensors")
    assert program.timestep.tolist() == recorded["timesteps"].tolist()
    errors: list[float] = []
    with Session(bundle) as session:
        session.latents(
            program,
            recorded["y"].tolist(),
            loop["cfg"] or 1.0,
            GivenNoise(recorded["z"], recorded["noise"]),
            on_step=lambda event: errors.append(relative_error(event.latents, recorded["x"][event.step - 1])),
        )
    assert len(errors) == len(recorded["x"]) and max(errors) < TOLERANCE
