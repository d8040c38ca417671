"""Tensors that do not depend on torch's global modes, whoever asks for them and when."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def plain_tensors(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Decorate what makes tensors: under `torch.inference_mode` too they are ordinary ones, so
    that they can be written to and used for training later, and so can memory that is kept."""

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(False):
            return function(*args, **kwargs)

    return call
