"""What the CPU's own step leaves to torch, where it is asked for: races with a draft model, and copies to the second tier's memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from ramet.runtime.attention.attention_backend import KVPool
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.cpu_runner import Array
from ramet.runtime.executor.draws import Draw
from ramet.runtime.executor.page_mover import PageMover, make_page_mover
from ramet.runtime.executor.race_choice import RaceChoice
from ramet.runtime.executor.token_choice import TokenChoice
from ramet.runtime.executor.torch_choice import TorchChoice
from ramet.runtime.kernels.cpu_kv_pool import CpuKvPool
from ramet.runtime.model_files import ModelFiles
from ramet.runtime.plan import ModelInfo


class Races:
    """Implements `TokenChoice`: draws by `RaceChoice`, in which a model and the one that guesses for it agree most often."""

    def __init__(self, other: TokenChoice[Array]) -> None:
        self._other, self._races = other, RaceChoice(TorchChoice(torch.device("cpu")))

    def forbid(self, logits: Array, rows: Sequence[int], masks: Sequence[int], bits: npt.NDArray[np.uint32]) -> None:
        self._other.forbid(logits, rows, masks, bits)

    def likeliest(self, logits: Array, rows: Sequence[int]) -> Array:
        return self._other.likeliest(logits, rows)

    def draw(self, logits: Array, rows: Sequence[int], draws: Sequence[Draw]) -> Array:
        with torch.inference_mode():
            return self._races.draw(torch.from_numpy(logits), rows, draws).numpy()


def page_mover(config: EngineConfig, info: ModelInfo, pool: CpuKvPool, files: ModelFiles) -> PageMover:
    """Over the pool's own memory."""
    keys, values = (tuple(torch.from_numpy(layer) for layer in layers) for layers in (pool.keys, pool.values))
    return make_page_mover(config, info, KVPool(keys, values, pool.page_size), files, pool.type.name)


def one_thread() -> None:
    """Others of torch would spin on the cores that the kernels' own threads need."""
    torch.set_num_threads(1)
