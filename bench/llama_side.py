"""The rival's side of decode.py and prefill.py: one timing of llama.cpp, printed as JSON.

Runs in an interpreter that has llama-cpp-python; the drivers start it. Random token ids, so no tokenizer is involved.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import llama_cpp


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    parser.add_argument("--work", choices=("decode", "prefill"), required=True)
    parser.add_argument("--tokens", type=int, default=16, help="decode steps, or prompt length")
    parser.add_argument("--batch", type=int, default=1, help="sequences decoded at once")
    parser.add_argument("--context", type=int, default=16, help="tokens in each sequence before decoding")
    parser.add_argument("--repack", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    started = time.perf_counter()
    model_params = llama_cpp.llama_model_default_params()
    model_params.use_extra_bufts = bool(args.repack)
    model = llama_cpp.llama_model_load_from_file(args.gguf.encode(), model_params)
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = max(1024, args.batch * (args.context + args.tokens + 8) + 64)
    params.n_batch = params.n_ubatch = 512
    params.n_seq_max = args.batch
    params.n_threads = params.n_threads_batch = args.threads
    context = llama_cpp.llama_init_from_model(model, params)
    n_vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    random.seed(0)

    def decode(rows: list[tuple[int, int]]) -> None:
        """One call on (sequence, position) rows; logits for the last row of each sequence."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        last = {sequence: i for i, (sequence, _) in enumerate(rows)}
        for i, (sequence, position) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = random.randrange(3, n_vocab), position, 1
            batch.seq_id[i][0] = sequence
            batch.logits[i] = last[sequence] == i
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        llama_cpp.llama_synchronize(context)
        llama_cpp.llama_batch_free(batch)

    def prompt(sequence: int, length: int) -> None:
        for start in range(0, length, 512):
            decode([(sequence, p) for p in range(start, min(start + 512, length))])

    if args.work == "prefill":
        prompt(0, 8)  # touch the weights
        memory = llama_cpp.llama_get_memory(context)
        times = []
        for _ in range(3):
            llama_cpp.llama_memory_clear(memory, True)
            begun = time.perf_counter()
            prompt(0, args.tokens)
            times.append(time.perf_counter() - begun)
        n_tokens = args.tokens
    else:
        for sequence in range(args.batch):
            prompt(sequence, args.context)
        times = []
        for step in range(args.tokens):
            begun = time.perf_counter()
            decode([(sequence, args.context + step) for sequence in range(args.batch)])
            times.append(time.perf_counter() - begun)
        n_tokens = args.batch
    mean = n_tokens * len(times) / sum(times)
    times.sort()
    print(json.dumps({"tokens_per_s": n_tokens / times[len(times) // 2], "best": n_tokens / times[0],
                      "mean_tokens_per_s": mean,
                      "total_s": time.perf_counter() - started}))


if __name__ == "__main__":
    main()
