"""Previews: x0 estimates that cost no evaluation, change no picture, and end in the picture itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditedge.runtime import Session, generate, open_bundle
from ditedge.runtime.errors import RequestError
from ditedge.runtime.pictures.request import RunOptions, RunRequest
from ditedge.runtime.pictures.run import run_bundle
from ditedge.runtime.samplers.program import with_x0_slot
from ditedge.runtime.samplers.settings import SamplerSettings


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def request(bundle: Path, out: Path | None, **options: object) -> RunRequest:
    how = {"preview_every": 2} | {name: options.pop(name) for name in ("batch", "preview_every") if name in options}
    return RunRequest(bundle, out=out, settings=SamplerSettings(steps=6), how=RunOptions(**how), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("case", ["gray1_cfg", "latent4_learned_sigma"])
def test_the_x0_slot_changes_no_other_slot_and_ends_in_the_sample(golden_bundle, case: str, sampler: str) -> None:
    bundle = open_bundle(golden_bundle(case))
    program = bundle.program(sampler=sampler, steps=7)
    estimates = []
    options = {"guidance": 3.0, "output": "latents"}
    plain = generate(bundle, [1, 2, 3], [4, 5, 6], program=program, **options)
    watched = generate(
        bundle, [1, 2, 3], [4, 5, 6], program=with_x0_slot(program),
        on_step=lambda p: estimates.append(p.state[:, -1].copy()), **options,
    )  # fmt: skip
    scale = np.abs(plain).max()
    np.testing.assert_allclose(watched, plain, atol=1e-6 * scale)  # a matrix product of another size: other rounding
    np.testing.assert_allclose(estimates[-1], watched, atol=1e-6 * scale)  # the last step is x0 and nothing else
    assert all(np.abs(estimate - plain).max() > 1e-3 for estimate in estimates[:-1])


def test_estimates_are_the_formula(golden_bundle) -> None:
    """x0 = a x + b epsilon, with epsilon from the identity program: mix selects x0, (a, b) = (0, 1)."""
    bundle = open_bundle(golden_bundle("gray1_cfg"))
    program, states = bundle.program(sampler="ddim", steps=5), []
    generate(bundle, [1], [0], guidance=1.0, program=with_x0_slot(program), output="latents",
             on_step=lambda p: states.append(p.state.copy()))  # fmt: skip
    for i in range(1, 5):  # DDIM: x' = m0 x + m1 x0, solved for x0
        (m0, m1, _), before, after = program.mix[i, 0], states[i - 1][:, 0], states[i][:, 0]
        np.testing.assert_allclose(states[i][:, 1], (after - m0 * before) / m1, rtol=1e-3, atol=1e-4)


def test_preview_files_of_one_picture(golden_bundle, tmp_path: Path) -> None:
    summary = run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / "boot.png", classes=("3",)))
    names = [f"boot.preview-000{step}.png" for step in (2, 4, 6)]
    assert summary["written"] == [str(tmp_path / name) for name in [*names, "boot.png"]]
    final = pixels(tmp_path / "boot.png")
    assert np.abs(pixels(tmp_path / names[2]).astype(int) - final).max() <= 1  # another order of the same sum
    assert np.abs(pixels(tmp_path / names[0]).astype(int) - final).max() > 1
    with Image.open(tmp_path / names[0]) as image:
        assert json.loads(image.info["ditedge"])["preview_step"] == 2


def test_previews_do_not_change_the_picture(golden_bundle, tmp_path: Path) -> None:
    for name, every in (("plain.png", None), ("watched.png", 1)):
        run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / name, count=3, preview_every=every))
    plain, watched = pixels(tmp_path / "plain.png").astype(int), pixels(tmp_path / "watched.png")
    assert np.abs(plain - watched).max() <= 1 and np.mean(plain == watched) > 0.999


def test_previews_of_batches_fill_one_grid(golden_bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    from ditedge.runtime.pictures import results

    real = results.write_picture
    monkeypatch.setattr(results, "write_picture", lambda path, image, data: (seen.append((path.name, image.shape)), real(path, image, data)))  # fmt: skip
    run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / "g.png", count=5, batch=2, preview_every=6))
    preview, final = pixels(tmp_path / "g.preview-0006.png"), pixels(tmp_path / "g.png")
    assert np.abs(preview.astype(int) - final).max() <= 1
    columns = 3 * 8 + 2 * 2
    assert [shape for name, shape in seen if "preview" in name] == [
        (8, columns, 1), (18, columns, 1), (18, columns, 1)
    ]  # fmt: skip


def test_previews_in_a_folder(golden_bundle, tmp_path: Path) -> None:
    summary = run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / "out", count=3, batch=2, preview_every=3))
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(names) == 9 and "0002-class2-seed2.preview-0006.png" in names
    assert sorted(Path(path).name for path in summary["written"]) == names
    final = pixels(tmp_path / "out" / "0002-class2-seed2.png")
    assert np.abs(pixels(tmp_path / "out" / "0002-class2-seed2.preview-0006.png").astype(int) - final).max() <= 1


def test_previews_of_latents_without_decoder(golden_bundle, tmp_path: Path) -> None:
    """They lie beside the file of latents, through the bundle's graph."""
    bundle = golden_bundle("latent4_learned_sigma")
    summary = run_bundle(request(bundle, None, save_latents=tmp_path / "l.safetensors", count=1, preview_every=6))
    assert summary["written"][0] == str(tmp_path / "l.preview-0006.png")
    from safetensors.numpy import load_file

    with Session(open_bundle(bundle)) as session:
        expected = session.preview(load_file(tmp_path / "l.safetensors")["latents"])[0]
    actual = pixels(tmp_path / "l.preview-0006.png")
    assert actual.shape == (64, 64, 3) and np.abs(actual.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("every", [0, -1, 7])
def test_intervals_that_show_nothing(golden_bundle, tmp_path: Path, every: int) -> None:
    with pytest.raises(RequestError, match=f"--preview-every {every} is not between 1 and the program's 6 steps"):
        run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / "x.png", preview_every=every))
    assert list(tmp_path.iterdir()) == []


def linear_picture(latents: np.ndarray, weight: np.ndarray, bias: np.ndarray, scale: int) -> np.ndarray:
    """What `preview.onnx` computes, written down: [B, C, H, W] -> uint8 [B, H * scale, W * scale, colours]."""
    colour = np.einsum("kc,bchw->bhwk", weight, latents) + bias
    return np.clip(127.5 * colour + 128, 0, 255).astype(np.uint8).repeat(scale, axis=1).repeat(scale, axis=2)


def test_the_preview_graph_is_the_formula(golden_bundle) -> None:
    """Without a VAE: the first three channels as red, green and blue; numbers that are none as zeros."""
    latents = np.random.default_rng(0).normal(0, 2, (5, 4, 8, 8)).astype(np.float32)
    expected = linear_picture(latents, np.eye(3, 4, dtype=np.float32) / 3, np.zeros(3, np.float32), 8)
    broken = np.stack([np.where(np.arange(64).reshape(8, 8) == i, np.nan, np.inf) for i in range(4)])[None]
    with Session(open_bundle(golden_bundle("latent4_learned_sigma"))) as session:
        pictures = session.preview(latents)
        assert (session.preview(broken.astype(np.float32)) == 128).all()
    assert pictures.shape == (5, 64, 64, 3) and np.abs(pictures.astype(int) - expected).max() <= 1


def test_bundles_without_preview(golden_bundle, tmp_path: Path) -> None:
    """The graph is optional: pixels have previews by their decoder, latents say why not."""
    bundle = Path(shutil.copytree(golden_bundle("latent4_learned_sigma"), tmp_path / "latents"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["graphs"]["preview"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert "preview" not in open_bundle(golden_bundle("gray1_cfg")).manifest.graphs
    run_bundle(request(golden_bundle("gray1_cfg"), tmp_path / "x.png", count=1))
    assert (tmp_path / "x.preview-0002.png").is_file()
    with pytest.raises(RequestError, match="no decoder"):
        run_bundle(request(bundle, None, save_latents=tmp_path / "l"))
