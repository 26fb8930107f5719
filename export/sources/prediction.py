"""What the network predicts, as its training run wrote it down."""

from __future__ import annotations

from ...runtime.errors import CheckpointError
from .settings import Settings

# SiT's train.py, --path-type and --prediction. Its defaults are Linear and velocity; loss_weight is training's alone.
SIT_PATH, SIT_PREDICTION = "Linear", "velocity"
REPA = ("linear", "v")  # the same of REPA's train.py: x_t = (1 - t) data + t noise, v = noise - data
# Without a path: the words that DDPM trainers use.
WORDS = {
    "epsilon": "epsilon", "eps": "epsilon", "noise": "epsilon",
    "v": "v", "v_prediction": "v", "v-prediction": "v",
    "x0": "x0", "sample": "x0", "x_start": "x0", "xstart": "x0", "start_x": "x0",
}  # fmt: skip


def recorded_prediction(settings: Settings) -> tuple[str, str] | None:
    """(a prediction of the manifest, the setting that says it), None where nothing was recorded.

    SiT's linear path with velocity is flow-to-data, REPA's is flow. Raises CheckpointError for their other paths and
    predictions, by name: their networks have the same shapes and would paint noise.
    """
    path, predicted = settings.values.get("path_type"), settings.values.get("prediction")
    if path is not None:
        if (path, predicted or REPA[1]) == REPA:
            return "flow", settings.said("path_type")
        if (path, predicted or SIT_PREDICTION) != (SIT_PATH, SIT_PREDICTION):
            what = ", ".join(settings.said(name) for name in ("path_type", "prediction") if name in settings.values)
            raise CheckpointError(
                f"{what}: not supported; of SiT's transports only path_type '{SIT_PATH}' with prediction "
                f"'{SIT_PREDICTION}' is, and of REPA's '{REPA[0]}' with '{REPA[1]}'"
            )
        return "flow-to-data", settings.said("path_type")
    if predicted is None:
        return None
    if predicted not in WORDS:
        raise CheckpointError(f"{settings.said('prediction')} is not known: give --prediction")
    return WORDS[predicted], settings.said("prediction")
