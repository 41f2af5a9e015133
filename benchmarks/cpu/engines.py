"""Who is compared: where each engine comes from, and the adapter that drives it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cpu.install_peers import Recipe, install

OURS = "ramet"


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """`adapter`: the module that speaks for it. `recipe`: how to install it; None is the project itself."""

    title: str
    adapter: str
    colour: str
    recipe: Recipe | None = None

    def python(self, name: str) -> Path:
        """The interpreter that its adapter runs in, installed where it was not. Raises InstallFailed."""
        return Path(sys.executable) if self.recipe is None else install(name, self.recipe)


ENGINES = {
    OURS: EngineChoice("Ramet", "benchmarks.cpu.adapters.ramet_engine", "#4c78a8"),
    "llama.cpp": EngineChoice(
        "llama.cpp",
        "benchmarks.cpu.adapters.llama_cpp_slots",
        "#f58518",
        Recipe(
            "llama_cpp",
            ("llama-cpp-python==0.3.36",),
            # a wheel of an earlier build may be in pip's cache, built with who knows which options
            ("--no-binary", "llama-cpp-python", "--no-cache-dir"),
            {"CMAKE_ARGS": "-DGGML_NATIVE=ON"},
        ),
    ),
    "openvino": EngineChoice(
        "OpenVINO GenAI",
        "benchmarks.cpu.adapters.openvino_genai",
        "#54a24b",
        Recipe("openvino_genai", ("openvino-genai==2026.4.*", "openvino==2026.4.*", "openvino-tokenizers==2026.4.*")),
    ),
}
