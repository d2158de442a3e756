"""Checks of arguments, so that a mistake is named where it is made."""

import math

import torch


def one_of(name: str, value, allowed):
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def positive(name: str, value):
    """Raise ValueError unless ``value`` is a finite number above zero."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be a finite number above 0; got {value!r}")


def positive_int(name: str, value):
    """Raise ValueError unless ``value`` is an integer above zero."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be an integer above 0; got {value!r}")


def floating(name: str, value):
    """Raise TypeError unless ``value`` is a floating-point tensor."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        what = f"a tensor of {value.dtype}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a floating-point tensor; got {what}")


def finite(name: str, value):
    """Raise ValueError if a tensor holds NaN or infinity (waits for the device: not for use inside a loop)."""
    if not torch.isfinite(value).all():
        bad = (~torch.isfinite(value)).sum().item()
        raise ValueError(f"{name} must be finite; {bad} of its {value.numel()} values are NaN or infinite")


def learned_variance(denoise):
    """Raise TypeError unless ``denoise`` gives a variance beside x0_hat."""
    if not hasattr(denoise, "with_variance"):
        raise TypeError(f"denoise must have with_variance(x, t) -> (x0_hat, v); {type(denoise).__name__} has not")


def same_shape(name_a: str, a, name_b: str, b):
    """Raise ValueError unless two tensors have the same shape."""
    if a.shape != b.shape:
        raise ValueError(f"{name_a} and {name_b} must have the same shape; got {tuple(a.shape)} and {tuple(b.shape)}")


def time(t, x=None):
    """Raise unless ``t`` is a floating-point tensor with no dimension, or one time per sample of ``x``."""
    floating("t", t)
    if t.ndim > 1 or (x is not None and t.ndim == 1 and t.shape[0] != x.shape[0]):
        batch = "(batch,)" if x is None else f"({x.shape[0]},)"
        raise ValueError(f"t must have shape () or {batch}; got {tuple(t.shape)}")


def like(value, x):
    """A number, or one number per sample, made to broadcast against ``x`` of shape ``(batch, …)``."""
    if not isinstance(value, torch.Tensor):
        return x.new_full((), value)  # filled in on the device: a recorded loop may not copy from the host
    value = value.to(x.device, x.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))
