"""Epoch -> probability of each steering variant. Pure."""

from __future__ import annotations

from .config import Config
from .names import VARIANTS, Variant


def steering_probabilities(config: Config, epoch: int) -> dict[Variant, float]:
    """Return the probability of each variant in `epoch` (>= 0), in the order of `names.VARIANTS`.

    Zero's probability changes linearly from `zero_prob_start` (epoch 0) to `zero_prob_end` (epoch
    `epochs_total`) and stays there. The rest is divided among the other three in proportion to
    `steering_probabilities`; if those sum to 0, centroid gets it. Without a curriculum the
    configured probabilities apply in every epoch.
    """
    base = config.steering_probabilities
    plan = config.curriculum
    if plan is None:
        return dict(base)
    if epoch >= plan.epochs_total:
        zero = plan.zero_prob_end
    else:
        way = epoch / plan.epochs_total
        zero = plan.zero_prob_start + (plan.zero_prob_end - plan.zero_prob_start) * way
    others = sum(base[v] for v in VARIANTS[1:])
    if others == 0.0:
        shares: dict[Variant, float] = {v: float(v == "centroid") for v in VARIANTS[1:]}
    else:
        shares = {v: base[v] / others for v in VARIANTS[1:]}
    return {"zero": zero, **{v: (1.0 - zero) * share for v, share in shares.items()}}
