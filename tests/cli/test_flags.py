"""Flags are the config's fields: all there, all checked, all documented."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ramet.cli.flags import flag_parser, flags_markdown, flags_of, parse_config
from ramet.cli.foreign_flags import ADVICE
from ramet.cli.main import main
from ramet.errors import ConfigError
from ramet.lang.backends.server_process import command_line
from ramet.runtime.config import EngineConfig, ServerConfig

CONTRACT = """
model-path tokenizer-path load-format dtype quantization kv-cache-dtype context-length revision served-model-name chat-template
host port api-key log-level log-requests device tp-size tp dp-size nnodes node-rank dist-init-addr mem-fraction-static
max-total-tokens max-running-requests max-queued-requests max-prefill-tokens chunked-prefill-size page-size schedule-policy
radix-eviction-policy disable-radix-cache disable-overlap-schedule disable-cuda-graph cuda-graph-max-bs cuda-graph-bs
attention-backend sampling-backend grammar-backend enable-deterministic-inference enable-metrics enable-cache-report
reasoning-parser tool-call-parser sampling-defaults stream-interval skip-server-warmup random-seed watchdog-timeout
json-model-override-args trust-remote-code speculative-algorithm speculative-draft-model-path speculative-num-steps
speculative-eagle-topk speculative-num-draft-tokens
"""


def parse(*words: str) -> ServerConfig:
    config: ServerConfig = parse_config(ServerConfig, words, program="ramet serve", description="")
    return config


def test_every_flag_of_the_contract_exists() -> None:
    names = {name for flag in flags_of(ServerConfig) for name in flag.names}
    assert {f"--{name}" for name in CONTRACT.split()} <= names


def test_the_launch_line_of_the_contract() -> None:
    config = parse("--model-path", "./llama3-1b", "--host", "0.0.0.0", "--port", "30000", "--log-level", "warning")
    assert (config.engine.model.model_path, config.http.host, config.http.port) == ("./llama3-1b", "0.0.0.0", 30000)
    assert config.engine.log.log_level == "warning"


def test_types_aliases_and_booleans() -> None:
    config = parse("--model", "m", "--tp", "1", "--mem-fraction-static=0.5", "--disable-radix-cache", "--no-enable-metrics")
    assert config.engine.model.model_path == "m"
    assert config.engine.memory.mem_fraction_static == 0.5
    assert config.engine.memory.disable_radix_cache is True
    assert config.engine.log.enable_metrics is False


def test_defaults_are_the_dataclasses() -> None:
    assert parse() == ServerConfig()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--chunked-prefil-size", "5"], "--chunked-prefill-size"),
        (["--port", "http"], "--port"),
        (["--port", "70000"], "port=70000"),
        (["--dtype", "int3"], "bfloat16"),
        (["--tp", "0"], "tp_size=0 is outside"),
        (["--dp-size", "2"], "dp_size=2 is not available"),
        (["--nnodes", "2"], "nnodes=2 is not available"),
        (["--trust-remote-code"], "never runs"),
        (["--quantization", "fp6"], "quantization='fp6' is not one of"),
        (["--kv-cache-dtype", "int8"], "fp8_e4m3"),
        (["--speculative-algorithm", "EAGLE"], "knows NGRAM, STANDALONE"),
        (["--tool-call-parser", "qwenn"], "pythonic"),
        (["--mem", "0.5"], "unknown argument"),
        (["stray"], "unknown argument 'stray'; a model is named by --model-path stray"),
        (["--max-model-len", "4096"], "unknown argument '--max-model-len'; use --context-length"),
        (["--gpu_memory_utilization=0.9"], "use --mem-fraction-static"),
        (["--enable-mixed-chunk"], "leave it out"),
        (["-ngl", "99"], "unknown argument '-ngl'; use --device"),
        (["--disable-radix-cach"], "near ones: --disable-radix-cache"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(*words)
    assert says in caught.value.message


def test_near_flags_are_those_that_the_help_shows() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("--disable-radix-cach")
    assert "--no-disable-radix-cache" not in caught.value.message


def test_advice_names_flags_that_exist_about_flags_that_do_not() -> None:
    known = {name for flag in flags_of(ServerConfig) for name in flag.names}
    assert not known & ADVICE.keys()
    assert {word for text in ADVICE.values() for word in re.findall(r"--[a-z-]+", text)} <= known


def test_config_file_and_override(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("page-size: 16\nport: 1234\nlog_level: error\n")
    config = parse("--config", str(path), "--port", "4321")
    assert (config.engine.memory.page_size, config.http.port, config.engine.log.log_level) == (16, 4321, "error")
    path.write_text("pagesize: 16\n")
    with pytest.raises(ConfigError, match="near ones: page_size"):
        parse("--config", str(path))
    path.write_text("- a\n")
    with pytest.raises(ConfigError, match="flag: value"):
        parse("--config", str(path))
    with pytest.raises(ConfigError, match="nowhere"):
        parse("--config", str(tmp_path / "nowhere.yaml"))


def test_the_keywords_of_a_launched_runtime_are_flags(tmp_path: Path) -> None:
    words = command_line({"disable_radix_cache": False, "enable_metrics": False, "log_requests": True, "page_size": 4, "dtype": None})
    (tmp_path / "server.yaml").write_text("disable-radix-cache: true\n")
    config = parse("--config", str(tmp_path / "server.yaml"), *words).engine
    assert (config.memory.disable_radix_cache, config.log.enable_metrics, config.log.log_requests) == (False, False, True)
    assert (config.memory.page_size, config.model.dtype) == (4, "auto")


def test_values_of_a_file_are_checked_too(tmp_path: Path) -> None:
    path = tmp_path / "server.yaml"
    path.write_text("trust-remote-code: true\n")
    with pytest.raises(ConfigError, match="never runs"):
        parse("--config", str(path))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("port: http", "port='http' is not a whole number"),
        ("port:", "port=None is not a whole number"),
        ("port: true", "port=True is not a whole number"),
        ("api-key: 12345", "api_key=12345 is not text"),
        ("mem-fraction-static: half", "mem_fraction_static='half' is not a number"),
        ("disable-radix-cache: sometimes", "disable_radix_cache='sometimes' is not true or false"),
        ("cuda-graph-bs: [1, two]", "is not a list of whole numbers"),
    ],
)
def test_values_of_another_type_are_refused_by_name(line: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "server.yaml").write_text(line + "\n")
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse("--config", str(tmp_path / "server.yaml"))


def test_auto_may_be_said_where_it_is_the_default(tmp_path: Path) -> None:
    words = [word for flag in flags_of(ServerConfig) if flag.default == "auto" for word in (flag.names[0], "auto")]
    assert {"--quantization", "--dtype", "--max-total-tokens", "--mem-fraction-static", "--cuda-graph-bs"} <= set(words)
    assert parse(*words) == ServerConfig()
    (tmp_path / "server.yaml").write_text("\n".join(f"{name[2:]}: auto" for name in words[::2]))
    assert parse("--config", str(tmp_path / "server.yaml")) == ServerConfig()
    assert parse("--served-model-name", "auto", "--api-key", "auto").http.api_key == "auto"  # a text like others


def test_a_path_may_be_a_path(tmp_path: Path) -> None:
    assert EngineConfig.from_options({"model_path": tmp_path}).model.model_path == str(tmp_path)


def test_help_and_page_show_every_flag() -> None:
    text = flag_parser(ServerConfig, program="ramet serve", description="d").format_help()
    page = flags_markdown(ServerConfig)
    for flag in flags_of(ServerConfig):
        assert flag.names[0] in text
        assert f"`{flag.names[0]}`" in page
    assert "memory:" in text
    assert text.splitlines()[:3] == ["usage: ramet serve [options]", "", "d"], "what it is for comes before a hundred flags"
    assert "(default: 30000)" in text


def test_engine_flags_are_a_part_of_the_servers() -> None:
    engine = {flag.names[0] for flag in flags_of(EngineConfig)}
    assert engine < {flag.names[0] for flag in flags_of(ServerConfig)}
    assert "--port" not in engine


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main([]) == 0
    assert main(["sevre"]) == 2
    assert main(["serve", "--dp-size", "2"]) == 2
    assert main(["bench", "sorting"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("ramet 0.")
    assert "did you mean serve" in err
    assert "ramet serve: error: dp_size=2" in err


def test_output_that_nobody_reads_to_its_end_is_no_crash() -> None:
    command = [sys.executable, "-m", "ramet", "serve", "--help-markdown"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "ramet", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("ramet 0.")


def test_help_is_instant_and_light() -> None:
    code = "import sys; from ramet.cli.main import main; main(['--help']); assert not {'torch', 'fastapi', 'httpx'} & set(sys.modules)"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3  # CPU time: other load on the machine does not count
