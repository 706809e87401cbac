"""Ask vLLM's server, in the environment that has it: a request as JSON comes in, one goes out.

python vllm_server.py < {"model": FOLDER, "adapter": FOLDER or null, "prompts": [[ids]],
"chats": [[messages]], "tokens": N}
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

START_SECONDS = 400


def start(asked: dict, port: int) -> subprocess.Popen:
    options = ["--dtype", "float32", "--max-model-len", "512", "--enforce-eager"]
    options += ["--served-model-name", "base"]
    if adapter := asked["adapter"]:
        options += ["--tokenizer", adapter, "--generation-config", adapter, "--enable-lora"]
        options += ["--max-lora-rank", "32", "--lora-modules", f"tuned={adapter}"]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model"]
    command += [asked["model"], "--host", "127.0.0.1", "--port", str(port), *options]
    environment = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("PYTHONPATH", None)
    return subprocess.Popen(command, env=environment, stdout=sys.stderr)


def call(address: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body | {"temperature": 0}).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read() or b"{}")


def wait(server: subprocess.Popen, address: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            call(f"{address}/health")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
        else:
            return
    sys.exit("vLLM's server did not start")


def main() -> None:
    asked = json.load(sys.stdin)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server, address = start(asked, port), f"http://127.0.0.1:{port}"
    common = {"model": "tuned" if asked["adapter"] else "base", "max_tokens": asked["tokens"]}

    def complete(prompt: list[int]) -> list[int]:
        body = common | {"prompt": prompt, "return_token_ids": True}
        return call(f"{address}/v1/completions", body)["choices"][0]["token_ids"]

    def chat(messages: list[dict]) -> str:
        body = common | {"messages": messages}
        return call(f"{address}/v1/chat/completions", body)["choices"][0]["message"]["content"]

    try:
        wait(server, address)
        with ThreadPoolExecutor(8) as pool:
            tokens = list(pool.map(complete, asked["prompts"]))
            texts = list(pool.map(chat, asked["chats"]))
    finally:
        server.terminate()
        server.wait(30)
    print(json.dumps({"tokens": tokens, "texts": texts}))


if __name__ == "__main__":
    main()
