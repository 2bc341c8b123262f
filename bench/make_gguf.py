"""Write a GGUF of the same weights as a libremoe folder, for llama.cpp to be measured on.

    python bench/make_gguf.py big-int4 big-q8_0.gguf --type q8_0
    PYTHON_WITH_LLAMA bench/make_gguf.py big-q8_0.gguf big-q4_k_m.gguf --type q4_k_m     (llama.cpp's own quantiser)
"""

from __future__ import annotations

import argparse

LLAMA_FTYPES = {"q4_k_m": 15, "q4_0": 2, "q8_0": 7}  # llama.h, enum llama_ftype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("src")
    parser.add_argument("dst")
    parser.add_argument("--type", default="q8_0")
    args = parser.parse_args()
    if args.src.endswith(".gguf"):
        import llama_cpp

        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread, params.allow_requantize = LLAMA_FTYPES[args.type], 2, True
        if llama_cpp.llama_model_quantize(args.src.encode(), args.dst.encode(), params):
            raise SystemExit("llama_model_quantize failed")
        return
    from libremoe.weights import open_checkpoint
    from libremoe.weights.gguf_writer import write_gguf

    reader = open_checkpoint(args.src)
    write_gguf(args.dst, reader.config, reader.read, args.type)


if __name__ == "__main__":
    main()
