"""The PTX term (K2 section 3.2.3): next-token cross-entropy on given text, at T = 1, with its own normalisation."""

from __future__ import annotations

import torch


def ptx(logprobs_B_L: torch.Tensor, mask_B_L: torch.Tensor, coefficients_B: torch.Tensor) -> torch.Tensor:
    """Sum of coefficient x negative log-prob over the text's target tokens: a scalar."""
    return -(coefficients_B[:, None] * logprobs_B_L * mask_B_L).sum()
