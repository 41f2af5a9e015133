"""config.json of EAGLE-3 heads, and checkpoints that are not of this model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ramet.errors import ConfigError, InvalidRequest, RametError, Unsupported
from ramet.runtime.config import EngineConfig
from ramet.runtime.executor.eagle_weights import load_head
from ramet.runtime.executor.weights import LoadedModel
from ramet.runtime.models.eagle_config import head_spec
from ramet.runtime.models.hf_config import spec_of_config
from tests.runtime.models.tiny_heads import CONFIG, head_tensors, save_head
from tests.runtime.models.tiny_models import SIZE, load_directory, tiny_model

TARGET = spec_of_config({**SIZE, "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 32})


def test_the_layers_that_are_read() -> None:
    """A 32-layer Llama's heads read the streams before its layers 2, 16 and 29."""
    assert head_spec(CONFIG, TARGET).taps == (2, 16, 29)
    behind = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 15, 28]}}
    assert head_spec(CONFIG | behind, TARGET).taps == (2, 16, 29)
    assert head_spec(CONFIG | {"eagle_aux_hidden_state_layer_ids": [2, 16, 29]}, TARGET).taps == (2, 16, 29)


def test_it_speaks_the_models_tokens_as_far_as_the_model_goes() -> None:
    spec = head_spec(CONFIG, TARGET)
    assert (spec.num_tokens, spec.decoder.vocab_size, spec.decoder.context_len) == (40, TARGET.vocab_size, TARGET.context_len)
    assert head_spec(CONFIG | {"draft_vocab_size": None}, TARGET).num_tokens == TARGET.vocab_size


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 2}, "has 2 layers"),
        ({"hidden_size": 64}, "hidden size 64, not of 48"),
        ({"target_hidden_size": 96}, "hidden size 96, not of 48"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, "before the layers 1, 2; three"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 31]}}, "before the layers 2, 3, 32; three of the model's 32"),
        ({"hidden_act": "mish"}, "mish"),
    ],
)
def test_what_is_no_head_of_this_model_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RametError, match=message):
        head_spec(CONFIG | change, TARGET)


def test_a_model_is_no_head() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "draft_vocab_size"}
    with pytest.raises(ConfigError, match=r"no EAGLE-3 head.*STANDALONE"):
        head_spec(config, TARGET, "a model")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Any]:
    model, path = tiny_model("Llama", num_hidden_layers=6), tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return load_directory(path), model


def loaded(target: LoadedModel, path: Path, **options: Any) -> None:
    options |= {"speculative_algorithm": "EAGLE3", "speculative_draft_model_path": str(path)}
    load_head(EngineConfig.from_options(options), target, dtype=torch.float32, device=torch.device("cpu"))


def test_checkpoints_that_do_not_fit_are_refused(target: tuple[LoadedModel, Any], tmp_path: Path) -> None:
    ours, model = target
    tensors = head_tensors(model, CONFIG)
    loaded(ours, save_head(tmp_path / "fits", tensors))
    with pytest.raises(ConfigError, match=r"guesses tokens that .* does not have"):
        loaded(ours, save_head(tmp_path / "tokens", tensors | {"d2t": tensors["d2t"] + 60}))
    few = {name: tensor for name, tensor in tensors.items() if name not in ("fc.weight", "norm.weight")}
    with pytest.raises(InvalidRequest, match=r"2 missing: fc\.weight, norm\.weight"):
        loaded(ours, save_head(tmp_path / "few", few))
    narrow = CONFIG | {"hidden_size": 32, "target_hidden_size": 48}
    with pytest.raises(ConfigError, match="has no embed_tokens"):
        loaded(ours, save_head(tmp_path / "narrow", head_tensors(model, narrow), narrow))
    (tmp_path / "head.gguf").write_bytes(b"GGUF")
    with pytest.raises(Unsupported, match="Hugging Face directories only"):
        loaded(ours, tmp_path / "head.gguf")


def test_random_weights(target: tuple[LoadedModel, Any], tmp_path: Path) -> None:
    """As a benchmark asks for them: only the config is there. The model's own numbers stay."""
    ours, _ = target
    before = ours.model.embed.weight.clone()
    path = save_head(tmp_path / "head", {})
    (path / "model.safetensors").unlink()
    loaded(ours, path, load_format="dummy")
    assert torch.equal(ours.model.embed.weight, before)
