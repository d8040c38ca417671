"""Tensors that do not depend on torch's global modes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def plain_tensors(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate a function that creates tensors: under `torch.inference_mode` too they are ordinary
    ones, so they (and buffers that are kept) can be used for training later."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return call
