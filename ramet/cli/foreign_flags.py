"""What flags of vLLM and llama.cpp, and those of SGLang that Ramet does not need, are called here, so that nobody has to search."""

from __future__ import annotations

LEAVE_OUT = "leave it out: "
NO_LORA = "LoRA adapters are not supported yet"

ADVICE = {
    # vLLM
    "--max-model-len": "use --context-length",
    "--gpu-memory-utilization": "use --mem-fraction-static",
    "--max-num-seqs": "use --max-running-requests",
    "--max-num-batched-tokens": "use --chunked-prefill-size (of one prompt) or --max-prefill-tokens (of one step)",
    "--num-gpu-blocks-override": "use --max-total-tokens",
    "--kv-cache-memory-bytes": "use --max-total-tokens",
    "--block-size": "use --page-size",
    "--enforce-eager": "use --disable-cuda-graph",
    "--tokenizer": "use --tokenizer-path",
    "--seed": "use --random-seed",
    "--hf-overrides": "use --json-model-override-args",
    "--generation-config": "use --sampling-defaults",
    "--guided-decoding-backend": "use --grammar-backend",
    "--speculative-config": "use --speculative-algorithm and its neighbours",
    "--cpu-offload-gb": "weights stay on the device; evicted KV goes to host memory with --enable-hierarchical-cache",
    "--swap-space": "use --enable-hierarchical-cache with --hicache-size",
    "--enable-prefix-caching": LEAVE_OUT + "prefixes are always cached",
    "--no-enable-prefix-caching": "use --disable-radix-cache",
    "--enable-chunked-prefill": LEAVE_OUT + "prompts are always split",
    "--no-enable-chunked-prefill": "use --chunked-prefill-size -1",
    "--enable-auto-tool-choice": LEAVE_OUT + "calls are read wherever --tool-call-parser finds a format",
    "--enable-log-requests": "use --log-requests",
    "--disable-log-requests": LEAVE_OUT + "requests are logged only with --log-requests",
    "--disable-log-stats": "use --log-level warning",
    "--uvicorn-log-level": "use --log-level",
    "--max-logprobs": LEAVE_OUT + "requests may ask for 20",
    "--chat-template-content-format": LEAVE_OUT + "content is read in both forms",
    "--tokenizer-mode": LEAVE_OUT + "there is one",
    "--rope-scaling": "use --json-model-override-args",
    "--compilation-config": LEAVE_OUT + "there is nothing to compile",
    "--download-dir": "set HF_HOME",
    "--hf-token": "set HF_TOKEN",
    "--limit-mm-per-prompt": "models read text only",
    "--enable-lora": NO_LORA,
    "--lora-modules": NO_LORA,
    # llama.cpp
    "--ctx-size": "use --context-length",
    "-c": "use --context-length",
    "-m": "use --model-path",
    "--parallel": "use --max-running-requests",
    "-np": "use --max-running-requests",
    "--n-gpu-layers": "use --device; a model runs whole on one",
    "-ngl": "use --device; a model runs whole on one",
    "--threads": "set OMP_NUM_THREADS; by default all cores are used",
    "-t": "set OMP_NUM_THREADS; by default all cores are used",
    "--cache-type-k": "use --kv-cache-dtype",
    # SGLang
    "--lora-paths": NO_LORA,
    "--log-level-http": "use --log-level",
    "--enable-dp-attention": LEAVE_OUT + "attention is divided by heads (--tp-size)",
    "--ep-size": LEAVE_OUT + "models are divided by --tp-size",
    "--disable-cuda-graph-padding": LEAVE_OUT + "a graph is padded to only where that pays",
    "--warmups": LEAVE_OUT + "kernels are warmed up at start",
    "--model-impl": LEAVE_OUT + "there is one for each architecture",
    "--enable-p2p-check": LEAVE_OUT + "NCCL finds its ways",
    "--show-time-cost": "use --log-requests",
    "--base-gpu-id": "choose devices with CUDA_VISIBLE_DEVICES",
    "--schedule-conservativeness": LEAVE_OUT + "requests are admitted by what they need, and retracted when memory runs short",
    "--enable-mixed-chunk": LEAVE_OUT + "prompts and decoding always share steps",
    "--enable-torch-compile": LEAVE_OUT + "there is nothing to compile",
    "--num-continuous-decode-steps": LEAVE_OUT + "steps are planned while others run",
    "--enable-priority-scheduling": "use --schedule-policy priority",
    "--incremental-streaming-output": 'requests ask for it: {"incremental": true} on /generate',
    "--stream-output": 'requests ask for it: {"incremental": true} on /generate',
    "--allow-auto-truncate": LEAVE_OUT + "prompts that are too long are refused, never cut",
}
"""Flag → what to do instead."""


def advice_for(word: str) -> str | None:
    """Of a word of the command line that no flag here has."""
    return ADVICE.get(word.split("=")[0].replace("_", "-"))
