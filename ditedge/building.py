"""Plans as `build` and `export --target` make them: a forecast, a bar, and what was written."""

from __future__ import annotations

from ditedge.runtime.bundle.open import Bundle
from ditedge.runtime.plans.options import BuildOptions

from .summary import Summary
from .terminal import progress, say


def build_plans(bundle: Bundle, options: BuildOptions, told: Summary) -> None:
    """Raises as `build_bundle`."""
    from ditedge.runtime.plans.build import build_bundle, built_lines, engine_folder, prepare_build
    from ditedge.runtime.plans.profile import forecast

    expected = forecast(bundle.manifest, prepare_build(bundle, options).sizes)
    say(f"building for {options.target}, up to {options.max_batch} image(s): {expected.sentence}", err=True)
    with progress() as report:
        record = build_bundle(bundle, options, report)
    folder = engine_folder(bundle, options.target)
    written = [folder / plan.file for plan in record.plans.values()]
    told.add(bundle=str(bundle.folder), bundle_sha256=bundle.sha256, build=record.model_dump(), written=written)
    told.lines(built_lines(bundle, record))
