"""An EAGLE-3 head from its checkpoint, beside the model that it guesses for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from ramet.errors import ConfigError
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.dummy_weights import fill_randomly
from ramet.runtime.executor.safetensors_weights import SafetensorsSource
from ramet.runtime.executor.weight_source import Piece, WeightSource
from ramet.runtime.executor.weights import LoadedModel, fill
from ramet.runtime.layers.weight_slot import Region
from ramet.runtime.model_files import locate_model
from ramet.runtime.models.eagle_config import PARAM, read_head_spec
from ramet.runtime.models.eagle_head import EagleHead

_LAYER = ("midlayer.", "layers.0.")
_UNUSED = ("t2d",)
"""Which tokens can be guessed, once more."""


def load_head(config: EngineConfig, target: LoadedModel, *, dtype: torch.dtype, device: torch.device) -> EagleHead:
    """Raises what `load_model` raises, and `ConfigError` for a head of another model."""
    files = locate_model(config.speculative.speculative_draft_model_path)
    spec = read_head_spec(files, target.spec)
    if config.model.load_format == "dummy":
        head = EagleHead(spec, target.model.embed, maps_tokens=False, dtype=dtype, device=device).eval()
        fill_randomly(head, config.model.random_seed)
        return head
    source = HeadTensors(SafetensorsSource(files))
    shared = None if "embed_tokens.weight" in source.shapes() else target.model.embed
    if shared is not None and spec.decoder.hidden_size != target.spec.hidden_size:
        raise ConfigError(f"{files.name} has no embed_tokens, and the model's are of another width: it belongs to another one", param=PARAM)
    with torch.no_grad():
        head = EagleHead(spec, shared, maps_tokens="d2t" in source.shapes(), dtype=dtype, device=device).eval()
        fill(head.slots(), source, files, spec.decoder)
    if int(head.tokens.min()) < 0 or int(head.tokens.max()) >= target.spec.vocab_size:
        raise ConfigError(f"{files.name} guesses tokens that {target.info.name} does not have: it belongs to another model", param=PARAM)
    return head


class HeadTensors:
    """Implements `WeightSource` over a head's checkpoint, in the words of the first ones: `midlayer.…`, and nothing under `model`."""

    adds_norm_offset = False

    def __init__(self, source: WeightSource) -> None:
        self._source = source
        self._stored = {_name(stored): stored for stored in source.shapes() if stored not in _UNUSED}

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        shapes = self._source.shapes()
        return {name: shapes[stored] for name, stored in self._stored.items()}

    def pieces(self, wanted: Mapping[str, Region]) -> Iterator[Piece]:
        names = {self._stored[name]: name for name in wanted}
        for piece in self._source.pieces({stored: wanted[name] for stored, name in names.items()}):
            yield replace(piece, name=names[piece.name])


def _name(stored: str) -> str:
    name = stored.removeprefix("model.")
    return _LAYER[0] + name.removeprefix(_LAYER[1]) if name.startswith(_LAYER[1]) else name
