"""The causes that are told apart, and what is said of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Cause(StrEnum):
    """Every cause there is; what cannot be told from the figures is ``rounding``."""

    PREPROCESSING = "preprocessing mismatch"
    CONCAT = "range clash in a Concat"
    CHANNEL = "outlier channel"
    FEW_IMAGES = "dead range from a few images"
    PER_TENSOR = "depthwise per-tensor weights"
    ONE_SCALE = "one weight scale for all channels"
    TAIL = "pre-activation tail"
    INFINITY = "minus-infinity mask or padding"
    SATURATION = "saturation on CPUs without VNNI"
    UNLIKE = "calibration unlike evaluation data"
    SPIKES = "rare large values"
    WEIGHTS = "weights need more than 8 bits"
    ROUNDING = "rounding of a sensitive tensor"
    SPREAD = "rounding spread over many layers"


class Fix(StrEnum):
    """What ``--fix`` can do; the value is how it is called in the result."""

    PREPROCESS = "other preprocessing"
    APART = "a scale of its own for each input of the Concat"
    EQUALIZE = "channels equalized"
    RAISE = "kept above 8 bits"
    CUT = "range cut"
    BOUND = "mask bounded"
    PER_CHANNEL = "one weight scale for each channel"
    MORE_DATA = "calibrated on both sets"
    SEVEN_BITS = "weights in 7 bits"
    CALIBRATOR = "least-squared-error calibrator"
    BIASES = "biases corrected"


#: What to do about a cause.
REMEDIES: dict[Cause, str] = {
    Cause.PREPROCESSING: "give --preprocess {option}",
    Cause.CONCAT: "give each input of the Concat a scale of its own, or equalize the small ones",
    Cause.CHANNEL: "equalize the channels, or keep the tensor above 8 bits",
    Cause.FEW_IMAGES: "take these images out, add more images, or choose the range by percentile or mse",
    Cause.PER_TENSOR: "quantize the weights with one scale for each channel, or equalize",
    Cause.ONE_SCALE: "quantize the weights with one scale for each channel",
    Cause.TAIL: "cut the range where the activation is flat",
    Cause.INFINITY: "mask with a small number such as -20 in place of minus infinity",
    Cause.SATURATION: "quantize the weights to 7 bits where the model runs on such CPUs",
    Cause.UNLIKE: "calibrate on images like those that are evaluated",
    Cause.SPIKES: "choose the range by percentile or mse",
    Cause.WEIGHTS: "keep the node above 8 bits, or reconstruct its rounding",
    Cause.ROUNDING: "keep the tensor above 8 bits",
    Cause.SPREAD: "reconstruct the rounding, or fine-tune the quantized network",
}


@dataclass(frozen=True)
class Finding:
    """One cause in one place.

    Attributes:
        cause: The cause.
        where: Name of the tensor or node; ``network`` for what concerns all of it.
        op: Type of the node that computes the tensor, or of the node.
        text: What was seen, in words.
        remedy: What to do.
        effect_db: How much better the outputs get, in dB, when it alone is taken out of the int8 network;
            None for what does not act on this machine or was not measured.
        alone_db: Signal-to-noise ratio of the outputs when this alone is quantized; None where that has no
            meaning.
        evidence: The figures behind it.
        tensors: The activations that it is about.
        fixes: How it can be repaired, the most fitting first.
    """

    cause: Cause
    where: str
    op: str
    text: str
    remedy: str
    effect_db: float | None = None
    alone_db: float | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    tensors: tuple[str, ...] = ()
    fixes: tuple[Fix, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "cause": str(self.cause),
            "where": self.where,
            "op": self.op,
            "text": self.text,
            "remedy": self.remedy,
            "effect_db": self.effect_db,
            "alone_db": self.alone_db,
            "evidence": self.evidence,
            "fixes": [str(f) for f in self.fixes],
        }
