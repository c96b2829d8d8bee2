"""Placement of a target's weights on devices and processes, and the kernels that compute with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.config import ConfigError
from harness.system import processes, tensor_parallel


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The part of a `TargetSpec` that says how a forward is computed; its fields are documented there."""

    attention: str
    linear: str
    cache: str
    compile: bool

    @property
    def attn_implementation(self) -> str:
        """The attention that transformers loads: `grouped` replaces `sdpa` after loading."""
        return "sdpa" if self.attention == "grouped" else self.attention

    @property
    def baseline(self) -> str:
        """The name of vanilla decoding in tables: `strong` if it may take the fastest of all step kinds."""
        return "strong" if self.cache == "auto" and self.compile else "eager"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """The part of a `TargetSpec` that says where its weights are held, and in which dtype."""

    dtype: str
    device: str
    device_map: str | dict[str, int | str] | None
    tensor_parallel: int

    @property
    def is_spread(self) -> bool:
        """Whether loading itself puts the weights on their devices."""
        return self.device_map is not None or self.tensor_parallel > 1

    def torch_dtype(self, config: Any) -> torch.dtype:
        """The dtype of the weights; `auto` means the checkpoint's, or float32 if its config names none."""
        wanted = getattr(torch, self.dtype) if self.dtype != "auto" else config.get_text_config().dtype
        return wanted or torch.float32

    def resolved_device(self, weights: str) -> torch.device:
        """The device of the weights (of the token ids, where `device_map` spreads them).

        weights: the field of the `TargetSpec`; random weights cannot be spread.

        Raises:
            ConfigError: there is no such device, or the fields contradict each other.
        """
        if self.device_map is not None and (self.device != "auto" or weights == "random"):
            raise ConfigError(
                f"target.device_map={self.device_map}: not together with target.device={self.device} and "
                f"target.weights={weights}. Type target.device_map=null, or leave those two at "
                "auto and checkpoint."
            )
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError as error:
            raise ConfigError(
                f"target.device={self.device}: not a device. Allowed: auto, cpu, cuda, cuda:N."
            ) from error
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(
                f"target.device={self.device}: this machine has {torch.cuda.device_count()} CUDA devices. "
                "Type target.device=cpu or target.device=auto."
            )
        return device

    def check_parallel(self, config: Any, weights: str, kernels: Kernels) -> None:
        """Check that `tensor_parallel` processes can hold a model with this transformers config together.

        Raises:
            ConfigError: they cannot, or another number of processes was started.
        """
        if self.tensor_parallel == 1:
            return
        conflicts = {
            "device": None if self.device == "auto" else self.device,
            "device_map": self.device_map,
            "weights": "random" if weights == "random" else None,
            "compile": kernels.compile or None,
            "linear": kernels.linear if kernels.linear in ("packed", "joined") else None,
        }
        if named := [f"target.{name}={value}" for name, value in conflicts.items() if value is not None]:
            raise ConfigError(
                f"target.tensor_parallel={self.tensor_parallel}: not together with {', '.join(named)}; leave"
                " those at auto, null, checkpoint and false"
            )
        processes.expect_processes(self.tensor_parallel)
        tensor_parallel.refuse_unfit(
            config, (config.architectures or ["this model"])[0], self.tensor_parallel
        )
