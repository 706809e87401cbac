"""Ask llama.cpp's server, in the environment that has it: a request as JSON comes in, one goes out.

python llama_cpp_server.py < {"model": FILE, "prompts": [[ids]], "chats": [[messages]], "tokens": N}
"""

import json
import sys
import urllib.request

import xllamacpp


def start(model: str) -> xllamacpp.Server:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = model
    parameters.n_ctx, parameters.n_parallel, parameters.port = 512, 1, 0
    parameters.warmup, parameters.use_jinja = False, True
    # Threads of a small model mostly wait for each other, and spin meanwhile.
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    # float32 where there is a choice: keys and values are halved by default.
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.flash_attn_type = off
    return xllamacpp.Server(parameters)


def post(address: str, path: str, body: dict) -> dict:
    data = json.dumps(body | {"temperature": 0, "top_k": 1}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}{path}", data, headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def main() -> None:
    asked = json.load(sys.stdin)
    server = start(asked["model"])
    address, limit = server.listening_address, asked["tokens"]
    tokens = [
        post(
            address,
            "/completion",
            {"prompt": x, "n_predict": limit, "return_tokens": True, "cache_prompt": False},
        )["tokens"]
        for x in asked["prompts"]
    ]
    chats = [
        post(address, "/v1/chat/completions", {"messages": x, "max_tokens": limit})["choices"][0]
        for x in asked["chats"]
    ]
    print(json.dumps({"tokens": tokens, "texts": [x["message"]["content"] for x in chats]}))


if __name__ == "__main__":
    main()
