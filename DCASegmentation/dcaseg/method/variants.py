"""The variants of the network and of its losses by name, and the paper's sizes. This file does not import torch."""

from __future__ import annotations

from typing import Literal

Norm = Literal["batch", "instance"]
UpsamplingMode = Literal["transposed", "transposed_icnr", "trilinear"]
FusionKind = Literal["dfam", "average", "concat", "none"]
StitchingMode = Literal["raw", "background_relative", "log_softmax"]
# How the experts' logits become one result; with "average", each expert knows all organs.
Combination = Literal[StitchingMode, "average"]
DiceChannels = Literal["all", "owned", "present"]

# One number for each of DeB-6, DeB-7, DeB-8 and DeB-9; one row for the head, medium and tail expert.
PAPER_N_STAGES = ((2, 2, 1, 1), (3, 3, 2, 1), (4, 4, 3, 2))
PAPER_DILATIONS = ((2, 2, 2, 2), (1, 1, 1, 1), (1, 1, 1, 1))
VNET_N_STAGES = (3, 3, 2, 1)
