"""Every option of engine and server, once: a field here is the launch flag, its help, its documentation and its default.

Small frozen dataclasses, composed into `EngineConfig`. `None` means "auto"; `resolve` turns every auto into a value, once, from plain
numbers, and raises `ConfigError` where options contradict each other.
Flags are the field names with dashes; `aliases` are further spellings. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from os import PathLike, fspath
from typing import Any

from ramet.errors import ConfigError
from ramet.log import LEVELS

_TYPES: Mapping[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float), "bool": (bool,)}
_NEEDED = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] | None = None,
    aliases: tuple[str, ...] = (),
    low: float | None = None,
    high: float | None = None,
    factory: Any = MISSING,
    works: tuple[Any, ...] = (),
    instead: str | None = None,
) -> Any:
    """A dataclass field that is also a launch flag. `low` and `high` are inclusive bounds.

    `instead` marks a flag of which only the default and the values in `works` are implemented: it says what to do instead, and any
    other value is refused with it. Take it away when the rest is built.
    """
    metadata = {"help": help, "choices": choices, "aliases": aliases, "low": low, "high": high, "works": works, "instead": instead}
    if factory is not MISSING:
        return field(default_factory=factory, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, and how its weights and text are read."""

    model_path: str | None = option(
        None, "local directory, GGUF file or Hub id; default: the embedded SmolLM2-135M-Instruct", aliases=("model",)
    )
    tokenizer_path: str | None = option(None, "where the tokenizer is, if not with the model")
    load_format: str = option("auto", "how weights are stored; dummy: random weights", choices=("auto", "safetensors", "gguf", "dummy"))
    dtype: str = option(
        "auto",
        "compute type of weights and activations; auto: float32 on CPU, the checkpoint's on a GPU",
        choices=("auto", "float32", "float16", "bfloat16", "half", "float"),
    )
    quantization: str | None = option(
        None,
        "bits of the weights (docs/quantisation.md); default: the checkpoint's own where kernels cover it; none: dequantised, exact",
        choices=("none", "fp8", "int8", "int4", "q8_0", "q4_1", "awq", "gptq", "compressed-tensors"),
    )
    kv_cache_dtype: str = option(
        "auto",
        "type of the KV cache; fp8: half the memory of 16 bits, without scales",
        choices=("auto", "float32", "float16", "bfloat16", "bf16", "fp8_e5m2", "fp8_e4m3"),
    )
    context_length: int | None = option(None, "longest sequence in tokens; default: the model's own", low=1)
    revision: str | None = option(None, "branch, tag or commit of a Hub model")
    served_model_name: str | None = option(None, "name in /v1/models and in replies; default: model_path")
    chat_template: str | None = option(None, "Jinja file that replaces the model's chat template")
    json_model_override_args: str = option("{}", "JSON object merged over the model's config.json")
    trust_remote_code: bool = option(
        False,
        "refused: remote code never runs",
        instead="code that comes with a checkpoint never runs here; the architecture must be one that Ramet implements",
    )
    is_embedding: bool = option(False, "serve embeddings", instead="embedding models are not served yet; use a generative model")
    device: str = option("auto", "where the model runs", choices=("auto", "cpu", "cuda"))
    random_seed: int = option(0, "seed of dummy weights and of requests that bring none (0: a fresh one per start)", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """How much memory goes to the KV cache and how it is shared."""

    mem_fraction_static: float | None = option(None, "fraction of device memory for weights and KV cache together", low=0.01, high=1.0)
    max_total_tokens: int | None = option(None, "size of the KV cache in tokens, 256 or more; overrides mem_fraction_static", low=1)
    page_size: int = option(1, "tokens per KV page", low=1, high=1024)
    disable_radix_cache: bool = option(False, "never reuse KV between requests (the slow twin)")
    radix_eviction_policy: str = option(
        "next-use",
        "which cached prefix goes first; next-use: what programs are done with, then the least recently used, last what they go on from",
        choices=("next-use", "lru", "lfu", "fifo"),
    )
    kv_pin_seconds: float = option(60.0, "how long a paused program keeps a claim on its KV", low=0.0)
    kv_pin_share: float = option(
        0.5, "largest share of the KV cache that paused programs may claim; 0: none (the slow twin)", low=0.0, high=1.0
    )
    enable_hierarchical_cache: bool = option(
        False, "keep evicted KV in host memory, and in files with hicache_storage_backend; off: it is computed again (the slow twin)"
    )
    hicache_ratio: float = option(2.0, "host memory for evicted KV as a multiple of the KV cache on the GPU", low=0.01)
    hicache_size: int = option(0, "host memory for evicted KV in GB; overrides hicache_ratio", low=0)
    hicache_write_policy: str = option(
        "auto",
        "when KV is copied out; write_back: when it is evicted; write_through: as soon as a request ends; auto: write_through with files",
        choices=("auto", "write_through", "write_back"),
    )
    hicache_storage_backend: str | None = option(None, "where evicted KV outlives the server; file: in a directory", choices=("file",))
    hicache_storage_dir: str | None = option(None, "that directory; default: ~/.cache/ramet/kv")
    hicache_storage_size: int = option(8, "most GB that the directory may take, of all models together; the oldest files go", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Who runs when."""

    max_running_requests: int | None = option(None, "requests that decode at once", low=1)
    max_queued_requests: int | None = option(None, "requests that may wait; one more is refused with 503", low=0)
    max_prefill_tokens: int = option(16384, "prompt tokens of one step", low=1)
    chunked_prefill_size: int | None = option(None, "longest piece of one prompt per step; -1: never split", low=-1)
    idle_chunked_prefill_size: int | None = option(
        None,
        "longest piece of a prompt that is alone or first in line, while no request decodes; default: four times as much on a CPU",
        low=1,
    )
    schedule_policy: str = option(
        "program",
        "order of the waiting queue; program: by what remains of a program, else along the tree of prompts",
        choices=("program", "fcfs", "lpm", "dfs-weight", "random", "lof", "priority"),
    )
    max_inter_token_seconds: float | None = option(
        None, "bound on the time between two tokens of a request while prompts of others run: prompt chunks shrink to keep it", low=0.001
    )
    priority_scheduling_preemption_threshold: int = option(
        10, "with schedule-policy priority: a request of a priority higher by more than this takes the place of a running one", low=0
    )
    disable_run_fairness: bool = option(False, "order requests without regard to what their program runs had before (the slow twin)")
    disable_overlap_schedule: bool = option(False, "plan a step only after the one before it (the slow twin)")
    disable_jump_forward: bool = option(False, "decode also the tokens that a grammar forces, one by one (the slow twin)")
    stream_interval: int = option(1, "tokens between two streamed chunks", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendConfig:
    """Which implementation does the work."""

    attention_backend: str = option(
        "auto",
        "attention kernels; auto: triton on a GPU, with flashinfer for prompts where that package is installed and compiled",
        choices=("auto", "torch", "triton", "flashinfer"),
    )
    sampling_backend: str = option("auto", "sampling kernels", choices=("auto", "pytorch"))
    grammar_backend: str = option("llguidance", "constraint engine; none: refuse constraints", choices=("llguidance", "none"))
    constrained_json_whitespace_pattern: str | None = option(
        None, "regex of the whitespace that JSON output may hold between its tokens; default: none, JSON is compact"
    )
    constrained_json_disable_any_whitespace: bool = option(
        True, "compact JSON (always on here unless constrained_json_whitespace_pattern is set; accepted for SGLang's sake)"
    )
    grammar_mask_threads: int = option(
        0, "threads that fill the masks of a step; 0: a quarter of the cores from 16 on, at most 8; 1: serial (the slow twin)", low=0
    )
    disable_grammar_closing: bool = option(False, "let constrained outputs run into max_new_tokens instead of closing them in time")
    disable_cuda_graph: bool = option(False, "run decode steps eagerly (the slow twin)")
    cuda_graph_max_bs: int | None = option(None, "largest decode batch that gets a CUDA graph", low=1)
    cuda_graph_bs: tuple[int, ...] | None = option(
        None, "decode batch sizes that get a CUDA graph", instead="the sizes are built in; bound them with cuda_graph_max_bs"
    )
    enable_deterministic_inference: bool = option(
        False, "the same bits alone, in any batch, on a cache hit and on a miss (the quantised CPU step, or one GPU; costs speed)"
    )
    result_cache_tokens: int = option(
        0, "with enable_deterministic_inference: remember greedy and seeded generations whole, this many tokens of them; 0: none", low=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelConfig:
    """More than one device."""

    tp_size: int = option(
        1,
        "tensor-parallel ranks: one process and one GPU each, on CPU a share of the cores; the model is divided among them",
        aliases=("tp", "tensor-parallel-size"),
        low=1,
    )
    dp_size: int = option(
        1,
        "data-parallel replicas",
        aliases=("dp", "data-parallel-size"),
        low=1,
        instead="start one server per device on its own port and balance over them",
    )
    pp_size: int = option(
        1, "pipeline-parallel stages", aliases=("pp", "pipeline-parallel-size"), low=1, instead="one device per server in this version"
    )
    nnodes: int = option(1, "hosts that serve one model together", low=1, instead="start one server per host and balance over them")
    node_rank: int = option(0, "which of these hosts this one is", low=0, instead="only one host serves a model in this version")
    dist_init_addr: str | None = option(
        None, "HOST:PORT where the hosts meet", aliases=("nccl-init-addr",), instead="only one host serves a model in this version"
    )


NUM_GUESSES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeConfig:
    """Guess several tokens, verify them in one step."""

    speculative_algorithm: str | None = option(
        None,
        "how tokens are guessed; NGRAM: from what prompt and output said before; STANDALONE: by a draft model; EAGLE3: by a head",
        works=("none", "NGRAM", "STANDALONE", "EAGLE3"),
        instead="speculative decoding knows NGRAM, STANDALONE (a draft model of the same tokenizer) and EAGLE3 (a head that was trained "
        "for the model); leave it unset for none",
    )
    speculative_draft_model_path: str | None = option(
        None, "the model or the head that guesses, with speculative-algorithm STANDALONE or EAGLE3", aliases=("speculative-draft-model",)
    )
    speculative_draft_model_quantization: str | None = option(None, "as quantization, for the model that guesses")
    speculative_num_steps: int | None = option(None, "guesses of the draft model or head per verification; default: 4", low=1, high=64)
    speculative_eagle_topk: int | None = option(
        None, "branches per draft step", low=1, works=(1,), instead="guesses are one chain of tokens; leave it out, or 1"
    )
    speculative_num_draft_tokens: int | None = option(
        None,
        "NGRAM: most guesses verified per step and request; default: 4. STANDALONE, EAGLE3: one more than speculative-num-steps",
        low=1,
        high=64,
    )

    speculative_always: bool = option(False, "guess in every step, also where it was measured to lose")

    @property
    def by_draft(self) -> bool:
        """Whether a model or a head guesses, which draws as the model does."""
        return self.speculative_algorithm in ("STANDALONE", "EAGLE3")

    @property
    def num_guesses(self) -> int:
        """Per request and step; 0: nothing is guessed."""
        tokens = self.speculative_num_draft_tokens
        if self.by_draft:
            return self.speculative_num_steps or (tokens - 1 if tokens else NUM_GUESSES)
        return (tokens or NUM_GUESSES) if self.speculative_algorithm == "NGRAM" else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisionConfig:
    """What happens when something goes wrong."""

    watchdog_timeout: float = option(300.0, "seconds without progress after which the worker counts as dead", low=1.0)
    on_worker_death: str = option("restart", "after the worker died", choices=("restart", "exit"))
    health_timeout: float = option(20.0, "seconds without a finished step, while work waits, after which /health answers 503", low=0.1)
    skip_server_warmup: bool = option(False, "report ready without a first generation")


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiConfig:
    """How requests are read and replies are written."""

    sampling_defaults: str = option(
        "model",
        "sampling defaults of the OpenAI routes: the model's generation_config.json, or OpenAI's",
        choices=("model", "openai"),
    )
    enable_cache_report: bool = option(True, "cached prompt tokens in usage (always on here; accepted for SGLang's sake)")
    reasoning_parser: str = option(
        "none",
        "tell the model's reasoning from its answer in chat replies; auto: where the chat template opens <think>",
        choices=("none", "auto", "think", "qwen3", "qwen3-thinking", "deepseek-r1", "glm45", "kimi"),
    )
    tool_call_parser: str = option(
        "auto",
        "how the model writes tool calls; auto: as its chat template does; none: calls stay in the reply's text",
        choices=("auto", "none", "qwen", "qwen25", "hermes", "llama3", "mistral", "deepseekv3", "pythonic"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is written where."""

    log_level: str = option("info", "log level", choices=LEVELS)
    log_requests: bool = option(False, "log every request's parameters and outcome")
    enable_metrics: bool = option(True, "serve Prometheus metrics at /metrics")
    decode_log_interval: int = option(40, "decode steps between two log lines", low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """All that an engine needs; `ServerConfig` adds HTTP."""

    model: ModelConfig = ModelConfig()
    memory: MemoryConfig = MemoryConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    backend: BackendConfig = BackendConfig()
    parallel: ParallelConfig = ParallelConfig()
    speculative: SpeculativeConfig = SpeculativeConfig()
    supervision: SupervisionConfig = SupervisionConfig()
    api: ApiConfig = ApiConfig()
    log: LogConfig = LogConfig()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> EngineConfig:
        """Build from flat names (`Engine(**options)`, a YAML file, parsed flags). An unknown name raises and lists the near ones."""
        config: EngineConfig = compose(cls, options)
        return config


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpConfig:
    """Where the server listens."""

    host: str = option("127.0.0.1", "address to listen on")
    port: int = option(30000, "port to listen on", low=0, high=65535)
    api_key: str | None = option(None, "bearer token that every request must carry (health and metrics excepted)")
    max_body_mb: float = option(64.0, "largest request body in MiB; a larger one is refused with 413", low=0.001)
    timeout_graceful_shutdown: int = option(5, "seconds that running requests get when the server is told to stop", low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramConfig:
    """What programs that run on the server may use."""

    max_programs: int = option(256, "programs kept registered; the least recently used one goes first", low=1)
    max_live_runs: int = option(1024, "program runs alive at once; more wait or are refused with 503", low=1)
    run_seconds: float = option(600.0, "longest time of one program run", low=0.001)
    run_steps: int = option(200_000, "most ops that one program run executes", low=1)
    run_tokens: int = option(1_000_000, "most tokens that one program run generates", low=1)
    run_forks: int = option(1024, "most forks alive at once in one program run", low=1)
    host_call_seconds: float = option(120.0, "how long a program run waits for its client to answer a host call", low=0.001)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    engine: EngineConfig = EngineConfig()
    http: HttpConfig = HttpConfig()
    programs: ProgramConfig = ProgramConfig()

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> ServerConfig:
        """Build from flat names; see `EngineConfig.from_options`."""
        config: ServerConfig = compose(cls, options)
        return config


def sections(config_class: type[Any]) -> dict[str, type[Any]]:
    """The composed parts of a config class, by field name."""
    return {f.name: type(f.default) for f in fields(config_class)}


def options_of(config_class: type[Any]) -> dict[str, Field[Any]]:
    """Every flat option of a composed config class, by name, nested parts included, in order of declaration."""
    found: dict[str, Field[Any]] = {}
    for part in fields(config_class):
        if "help" in part.metadata:
            found[part.name] = part
        else:
            found |= options_of(type(part.default))
    return found


def compose(config_class: type[Any], options: Mapping[str, Any]) -> Any:
    """Distribute flat `options` over the parts of `config_class`; aliases and dashes are understood, unknown names refused."""
    known = options_of(config_class)
    spelling = {alias.replace("-", "_"): name for name, f in known.items() for alias in f.metadata["aliases"]}
    values: dict[str, Any] = {}
    for given, value in options.items():
        name = given.replace("-", "_")
        name = spelling.get(name, name)
        if name not in known:
            near = get_close_matches(name, [*known, *spelling], n=3)
            raise ConfigError(f"unknown option '{given}'" + (f"; near ones: {', '.join(near)}" if near else ""), param=given)
        values[name] = read_option(known[name], value)
    return _build(config_class, values)


def read_option(f: Field[Any], value: Any) -> Any:
    """`value` as the field holds it. Raise `ConfigError` when it is of another type, none of the choices, out of bounds, or not
    implemented yet."""
    value = _typed(f, value)
    if value is None or value == f.default:
        return value
    choices, low, high = f.metadata["choices"], f.metadata["low"], f.metadata["high"]
    if choices and value not in choices:
        raise ConfigError(f"{f.name}={value!r} is not one of {', '.join(choices)}", param=f.name)
    if (low is not None and value < low) or (high is not None and value > high):
        raise ConfigError(f"{f.name}={value} is outside {low} … {high if high is not None else '∞'}", param=f.name)
    if f.metadata["instead"] and value not in f.metadata["works"]:
        raise ConfigError(f"{f.name}={value!r} is not available: {f.metadata['instead']}", param=f.name)
    return value


def says_auto(f: Field[Any]) -> bool:
    """Is the default what the word "auto" names? Where any text may stand, that word is a text like others."""
    return f.default is None and (f.metadata["choices"] is not None or not str(f.type).startswith("str"))


def _typed(f: Field[Any], value: Any) -> Any:
    if value == "auto" and says_auto(f):
        return None
    kind = str(f.type).removesuffix(" | None")
    if value is None and f.default is None:
        return None
    if isinstance(value, PathLike) and kind == "str":
        return fspath(value)
    if isinstance(value, list | tuple) and kind.startswith("tuple") and all(type(item) is int for item in value):
        return tuple(value)
    if type(value) not in _TYPES.get(kind, ()):
        needed = _NEEDED.get(kind, "a list of whole numbers")
        raise ConfigError(f"{f.name}={value!r:.80} is not {needed}, which this option needs", param=f.name)
    return value


def _build(config_class: type[Any], values: Mapping[str, Any]) -> Any:
    arguments: dict[str, Any] = {}
    for part in fields(config_class):
        if "help" not in part.metadata:
            arguments[part.name] = _build(type(part.default), values)
        elif part.name in values:
            arguments[part.name] = values[part.name]
    return config_class(**arguments)
