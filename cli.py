"""The command line: a command parses its options, makes one call, and says what was written and where."""

from __future__ import annotations

import sys

if __name__ == "__main__":  # `python cli.py`, whose folder is on the path: this file again, by its one entry
    from ditedge.__main__ import main as entry

    entry("python cli.py")

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ditedge import __version__
from ditedge.building import build_plans
from ditedge.class_names import read_class_names
from ditedge.extras import exporter, ray_if_asked
from ditedge.failures import Commands, UserError, importing_extra
from ditedge.options import command
from ditedge.serving import add_commands
from ditedge.summary import Summary, megabytes
from ditedge.terminal import ask_passphrase, print_json, progress, readable, say
from ditedge.verdicts import inspect_kernels, leave_with_failures, warning
from ditedge.verifying import verified

if TYPE_CHECKING:
    from ditedge.calibration.layers.request import VerifyCommand
    from ditedge.calibration.options import CompareCommand, ConvertRequest, QuantizeRequest
    from ditedge.export.options import DecoderRequest, ExportRequest
    from ditedge.export.schedulers.request import ScheduleRequest
    from ditedge.runtime.inspection import InspectRequest
    from ditedge.runtime.pictures.request import EncodeRequest, RunRequest
    from ditedge.runtime.plans.options import BuildRequest
    from ditedge.runtime.signing import SignRequest

JSON = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ditedge")
def main() -> None:
    """Compile a trained Diffusion Transformer, run it anywhere.

    \b
    ditedge export --ckpt DiT-XL-2-256x256.pt --vae sd-vae-ft-ema     checkpoint -> bundle
    ditedge run --engine DiT-XL-2-256x256 --class 207 -o dog.png      bundle -> picture
    """


@command(main, "ditedge.export.options:ExportRequest")
@JSON
def export(request: ExportRequest, as_json: bool) -> None:
    """Export a checkpoint to a bundle, checked against PyTorch.

    \b
    Examples:
      ditedge export --ckpt DiT-XL-2-256x256.pt --vae sd-vae-ft-ema
      ditedge export --ckpt models/fashion-dit.safetensors --heads 3 --classes models/fashion-dit.classes.txt
    """
    if request.target:
        from ditedge.runtime.plans.library import load_library

        load_library(request.target)  # missing, it is missed now, not after the export
    export_room = exporter()
    out = request.out or Path(export_room.bundle_name(request.ckpt))
    labels = read_class_names(request.classes) if request.classes else ()
    options, told = replace(request.options, labels=labels), Summary(as_json)
    with progress() as report:
        if request.precision:
            manifest = export_room.bundle_in_precision(request.ckpt, out, options, request.precision, report, told.note)
        else:
            manifest = export_room.bundle_from_checkpoint(request.ckpt, out, options, report, told.note)
    size = f"{manifest.model.parameters / 1e6:.1f} M parameters, {megabytes(manifest)}"
    told.bundle(out, manifest, f"{size}, checked", f"run --engine {out}")
    if request.target:
        from ditedge.runtime import open_bundle
        from ditedge.runtime.plans.options import BuildOptions

        build_plans(open_bundle(out, trusted_keys=()), BuildOptions(request.target), told)
    told.end()


@command(main, "ditedge.export.options:DecoderRequest", "add-decoder")
@JSON
def add_decoder(request: DecoderRequest, as_json: bool) -> None:
    """Give a latent model's bundle the decoder of a VAE, or another one than it has.

    \b
    Examples:
      ditedge add-decoder --engine dit-xl-2-256 --vae sd-vae-ft-ema --out dit-xl-2-256-pictures
      ditedge add-decoder --engine dit-xl-2-256-int8 --vae taesd --out dit-xl-2-256-int8-tiny
    """
    export_room, told, out = exporter(), Summary(as_json), request.out
    with progress() as report:
        manifest = export_room.add_decoder(
            request.engine,
            request.vae,
            out,
            precision=request.vae_precision,
            force=request.force,
            report=report,
            note=told.note,
        )
    what = f"{megabytes(manifest)}, with the decoder of {request.vae}, checked"
    told.bundle(out, manifest, what, f"run --engine {out}")
    told.end()


@command(main, "ditedge.runtime.pictures.request:RunRequest")
@JSON
def run(request: RunRequest, as_json: bool) -> None:
    """Sample images from a bundle.

    \b
    Examples:
      ditedge run --engine fashion --class "Ankle boot" --seed 7 -o boot.png
      ditedge run --engine dit-xl-2-256 --class 207 --class 360 --steps 25 --sampler ddim --guidance 4 -o out/
    """
    from ditedge.runtime.errors import NotFiniteError
    from ditedge.runtime.pictures.run import run_bundle, summary_lines

    piped = request.out == Path("-")
    if piped and (as_json or sys.stdout.isatty()):
        raise UserError("-o - writes a PNG to the standard output: redirect it to a file or a program, without --json")
    failure = None
    with progress() as report:
        try:
            summary = run_bundle(request, report, warning)
        except NotFiniteError as error:
            summary, failure = error.summary, error
    print_json(summary) if as_json else say("\n".join(summary_lines(summary, request.engine)), err=piped)
    if failure is not None:
        say(f"Error: {failure}", err=True)
        sys.exit(1)


@command(main, "ditedge.runtime.pictures.request:EncodeRequest")
@JSON
def encode(request: EncodeRequest, as_json: bool) -> None:
    """Record what a bundle's text encoder makes of a prompt, for devices without room for it.

    \b
    Examples:
      ditedge encode --engine pixart-sigma "a red fox in the snow" -o fox.safetensors
      ditedge encode --engine pixart-sigma "" -o nothing.safetensors
    """
    from ditedge.runtime.pictures.encoding import encode_prompt

    told = Summary(as_json)
    prompt = encode_prompt(request, warning)
    told.add(tokens=prompt.tokens, written=[request.out])
    told.line(
        f"wrote {request.out}: {prompt.tokens} tokens\nnext: ditedge run --engine BUNDLE --prompt-file {request.out}"
    )
    told.end()


@command(main, "ditedge.export.schedulers.request:ScheduleRequest")
@JSON
def schedule(request: ScheduleRequest, as_json: bool) -> None:
    """Compile a diffusers scheduler into a program, proved on random histories.

    Warns where the scheduler itself is at fault: where even an exact denoiser would not meet the noise level that the
    network is told next.

    \b
    Examples:
      ditedge schedule --from scheduler/scheduler_config.json --steps 20 -o dpm-20.json
      ditedge schedule --from scheduler_config.json --steps 50 --eta 0.5 -o ddim-50.json
    """
    exporter()
    from ditedge.export.schedulers.exact_denoiser import warning_of
    from ditedge.export.schedulers.probe import read_scheduler_program
    from ditedge.runtime.samplers.program import write_program

    program = read_scheduler_program(request.source, request.steps, {} if request.eta is None else {"eta": request.eta})
    write_program(program, request.out)
    told = Summary(as_json)
    told.add(program=program.name, steps=program.steps, slots=program.slots, made=program.made, written=[request.out])
    told.line(
        f"wrote {request.out}: {program.name}, {program.steps} evaluations, {program.slots} state slot(s), proved"
    )
    if found := warning_of(program):
        told.add(warning=found)
        warning(found)
    told.line(f"next: ditedge run --engine BUNDLE --program {request.out}")
    told.end()


@command(main, "ditedge.calibration.options:ConvertRequest")
@JSON
def convert(request: ConvertRequest, as_json: bool) -> None:
    """Rewrite a bundle's graphs in 16 bit, with float32 where it is needed; or leave its text encoder out.

    \b
    Examples:
      ditedge convert --engine fashion --precision fp16 --out fashion-fp16
      ditedge convert --engine pixart-int8 --without-text --out pixart-device
    """
    with importing_extra("calibrate"):
        from ditedge.calibration.convert import convert_bundle

    out, told = request.out, Summary(as_json)
    with progress() as report:
        manifest = convert_bundle(request.engine, out, request.options, report)
    what = f"{megabytes(manifest)}, {request.options.done}"
    told.bundle(out, manifest, what, f"build --engine {out} --target tensorrt")
    told.end()


@command(main, "ditedge.calibration.options:QuantizeRequest")
@JSON
def quantize(request: QuantizeRequest, as_json: bool) -> None:
    """Make a smaller bundle from a float32 one, faster where there are integer kernels (docs/quantization.md).

    \b
    Examples:
      ditedge quantize --engine fashion --precision int8 --out fashion-int8
      ditedge quantize --engine fashion --precision int8 --form tensorrt --budget drift=0.02 --max-drift 0.03 \\
          --out fashion-trt-int8
    """
    with importing_extra("calibrate"):
        from ditedge.calibration.quality.gate import GateFailed
        from ditedge.calibration.quantize import quantize_bundle
    from ditedge.runtime import open_bundle

    ray_if_asked(request.ray)
    told, out = Summary(as_json), request.out
    options = request.with_report(open_bundle(request.engine, check_hashes=False))
    try:
        with progress() as report:
            manifest = quantize_bundle(request.engine, out, options, report)
    except GateFailed as error:
        told.add(failed=[result.model_dump() for result in error.failed])
        told.end()
        leave_with_failures(error.failed, f"{out} was not written")
    kept = ", ".join(manifest.quantization.kept) if manifest.quantization is not None else "all but the text encoder"
    if options.quality is not None:
        told.add(quality=str(out / "quality" / "quality.json"))
        report_page = out / "quality" / "report.html"
        told.line(f"quality of {options.quality.count} image(s) beside the float ones: {report_page}")
    told.bundle(out, manifest, f"{megabytes(manifest)}, in float32: {kept or 'none'}", f"run --engine {out}")
    told.end()


@command(main, "ditedge.runtime.plans.options:BuildRequest")
@JSON
def build(request: BuildRequest, as_json: bool) -> None:
    """Build a bundle's graphs into plans, in engines/TARGET of the bundle.

    \b
    Examples:
      ditedge build --engine dit-xl-2-256 --target tensorrt --max-batch 4
      ditedge build --engine fashion --target tensorrt-rtx --arch sm86,sm89,sm120
    """
    from ditedge.runtime import open_bundle
    from ditedge.runtime.plans.checks import check_form, check_target
    from ditedge.runtime.plans.trtexec import trtexec_commands

    check_target(request.options.target)
    if as_json and request.print_trtexec:
        raise UserError("--print-trtexec prints commands: leave --json out")
    bundle = open_bundle(request.engine, trusted_keys=request.trusted_keys or None)
    check_form(bundle)
    if request.print_trtexec:
        say("\n".join(trtexec_commands(bundle, request.options)))
        return
    told = Summary(as_json)
    build_plans(bundle, request.options, told)
    told.end()


@command(main, "ditedge.calibration.layers.request:VerifyCommand")
@JSON
def verify(request: VerifyCommand, as_json: bool) -> None:
    """Replay the bundle's golden trajectories, recorded from PyTorch. Exit code 1 when over tolerance.

    With --layers: every tensor of one step against the float32 bundle, and the first layer that breaks.

    \b
    Examples:
      ditedge verify --engine dit-xl-2-256 --provider cuda --trusted-key release.pub.pem
      ditedge verify --layers --engine fashion-int8 --reference fashion --report layers.html
    """
    told = Summary(as_json)
    passed = verified(request, told)
    told.end()
    if not passed:
        sys.exit(1)


@command(main, "ditedge.calibration.options:CompareCommand")
@click.option("--json", "as_json", is_flag=True, help="Print quality.json instead of the table.")
def compare(request: CompareCommand, as_json: bool) -> None:
    """Measure what bundle B loses and saves against bundle A. Exit code 1 when over a limit.

    Both sample the same seeds and classes with A's program; A's own noise from seed to seed stands beside it.

    \b
    Examples:
      ditedge compare --engine fashion --against fashion-int8 -o report/
      ditedge compare --engine fashion --against fashion-int8 --count 2000 --features models/fashion_classifier.onnx \\
          --reference real.npz --max-accuracy-loss 1 --max-frechet-increase 10
    """
    from ditedge.calibration.quality.compare import compare_bundles
    from ditedge.calibration.quality.gate import check_gate_can_be_measured
    from ditedge.calibration.quality.report import check_report_folder, table, write_report
    from ditedge.runtime import open_bundle

    ray_if_asked(request.request.ray)
    a, b = open_bundle(request.engine), open_bundle(request.against)
    check_gate_can_be_measured(request.gate, request.request, a, b)
    if request.out is not None:
        check_report_folder(request.out)
    with progress() as report:
        comparison, failed = compare_bundles(a, b, request.request, report).with_gate(request.gate)
    written = write_report(comparison, request.out) if request.out is not None else []
    lines = [*table(comparison.quality), *(f"wrote {path}" for path in written)]
    print_json(comparison.quality.model_dump()) if as_json else say("\n".join(lines))
    if failed:
        leave_with_failures(failed)


@command(main, "ditedge.runtime.inspection:InspectRequest")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(request: InspectRequest, as_json: bool) -> None:
    """Say what a bundle, a checkpoint or a plan is.

    \b
    Examples:
      ditedge inspect DiT-XL-2-256x256.pt --json
      ditedge inspect fashion-fp16 --lint --strict
    """
    from ditedge.export.sources import is_source
    from ditedge.runtime.inspection import check_nothing_is_to_be_signed

    if request.lint or request.path.suffix == ".plan":
        inspect_kernels(request, as_json)
        return
    if request.strict:
        raise UserError("--strict is for --lint and for plans")
    if is_source(request.path):
        check_nothing_is_to_be_signed(request)
        exporter()
        from ditedge.export.sources.describe import describe_checkpoint

        description = describe_checkpoint(request.path, request.heads, request.weights)
    else:
        from ditedge.runtime import open_bundle
        from ditedge.runtime.describe import describe_bundle

        description = describe_bundle(open_bundle(request.path, trusted_keys=request.trusted_keys or None))
    print_json(description) if as_json else say(readable(description))


@command(main, "ditedge.runtime.signing:SignRequest")
@JSON
def sign(request: SignRequest, as_json: bool) -> None:
    """Sign a bundle and its plans, for `--trusted-key` (docs/security.md).

    The passphrase of an encrypted key is asked for, or taken from $DITEDGE_KEY_PASSPHRASE.

    \b
    Examples:
      ditedge sign --engine fashion --new-key release.pem
      ditedge sign --engine fashion --key release.pem
      ditedge run --engine fashion --trusted-key release.pub.pem
    """
    from ditedge.runtime import signing

    told = Summary(as_json)
    signed = signing.sign(request, lambda key: ask_passphrase(key, signing.PASSPHRASE))
    told.add(key=signed.signer, written=[*signed.new_keys, *signed.signatures])
    told.lines(signed.lines(request.engine))
    told.end()


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def doctor(as_json: bool) -> None:
    """Say which engines, providers and optional packages this machine has.

    \b
    Examples:
      ditedge doctor
      ditedge doctor --json
    """
    from ditedge.runtime.doctor import examine, line

    findings = examine()
    print_json([asdict(finding) for finding in findings]) if as_json else say("\n".join(map(line, findings)))


add_commands(main)
