"""Memory and time to the first batch of a streamed JSON-lines file, by its size.

`python tests/benchmarks/streaming.py 0.1 2` writes a file of 0.1 and one of 2 GB into a temporary
folder, reads each in a process of its own, and prints a row for each.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

STEPS = 200
ROW_BYTES = 600


def write_rows(path: Path, num_bytes: int) -> None:
    """Write rows of about 600 bytes, each with its number in it."""
    text = " ".join(f"word{n % 97}" for n in range(75))
    with path.open("w") as file:
        for number in range(num_bytes // ROW_BYTES):
            file.write(json.dumps({"question": f"{number}? {text}", "answer": str(number)}) + "\n")


def anonymous_mb(pid: int) -> float:
    """Return the memory of a process that is no file's: what the page cache holds is free to go."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous")) / 1024


def watch(peak: list[float], done: threading.Event) -> None:
    while not done.wait(0.05):
        peak[0] = max(peak[0], anonymous_mb(os.getpid()))


def measure(path: str, workers: int) -> dict[str, float]:
    """Stream a file for some steps; return seconds and megabytes."""
    from lit_sft import ChatFile, SFTDataModule

    data = SFTDataModule(
        ChatFile(path), "lit_sft/tiny", streaming=True, max_length=1024, num_workers=workers
    )
    base, peak, done = anonymous_mb(os.getpid()), [0.0], threading.Event()
    watcher = threading.Thread(target=watch, args=(peak, done))
    watcher.start()
    started = time.perf_counter()
    data.setup("fit")
    windows = iter(data.train_dataloader())
    next(windows)
    first = time.perf_counter() - started
    rows = sum(len(batch["cu_seq_lens"]) - 1 for _ in range(STEPS) for batch in next(windows))
    seconds = time.perf_counter() - started - first
    done.set()
    watcher.join()
    return {"first_s": first, "base_mb": base, "peak_mb": peak[0], "rows_per_s": rows / seconds}


def main(sizes: list[float], workers: int = 0) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / "rows.jsonl"
            write_rows(path, int(size * 1e9))
            for start in ("first start", "second start"):
                command = [sys.executable, __file__, "--measure", str(path), str(workers)]
                env = os.environ | {"LIT_SFT_CACHE": f"{folder}/cache"}
                run = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
                print(f"{size} GB, {start}: {run.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--measure":
        print(
            json.dumps({k: round(v, 1) for k, v in measure(sys.argv[2], int(sys.argv[3])).items()})
        )
    else:
        main([float(size) for size in sys.argv[1:]])
