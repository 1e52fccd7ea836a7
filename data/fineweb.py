#!/usr/bin/env python3
"""FineWeb or FineWeb-Edu, filtered web text, as shards of GPT-2 tokens: samples of about 10 or
100 billion.

    pip install datasets tiktoken
    python3 data/fineweb.py                              # FineWeb 10B: stores 20 GB of shards
    python3 data/fineweb.py --type edu --version 100B
    python3 data/fineweb.py --max-tokens 1e9             # 10 shards
    python3 data/fineweb.py --input FILE.jsonl ...       # {"text": ...} per line, no network
    ./train_gpt2 -i 'data/fineweb10B/*train*.bin' -j 'data/fineweb10B/*val*.bin'

It writes fineweb_val_000000.bin, fineweb_train_000001.bin, ... (edu_fineweb_... for --type edu),
tokenizer.bin and source.txt into --out (default: the folder fineweb10B, fineweb100B, edu_fineweb10B
or edu_fineweb100B beside this file); data/shards.py says how. The same command after a stop goes on
where it stopped, and the files are the same bytes as without it. A failure prints one line on
stderr and exits with status 1.
"""
import os
import sys

import shards

HUB = {"classic": ("fineweb", "HuggingFaceFW/fineweb"),
       "edu": ("edu_fineweb", "HuggingFaceFW/fineweb-edu")}
CONFIG = {"10B": "sample-10BT", "100B": "sample-100BT"}


def run(argv):
    parser = shards.parser_make(__doc__, None)
    parser.add_argument("--type", choices=sorted(HUB), default="classic",
                        help="default %(default)s")
    parser.add_argument("--version", choices=sorted(CONFIG), default="10B",
                        help="default %(default)s")
    args = shards.args_check(parser.parse_args(argv))
    name, path = HUB[args.type]
    if args.out is None:
        args.out = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + args.version)
    shards.set_make(name, args, (path, CONFIG[args.version]))


def main(argv=None):
    return shards.script_main(run, "run the same command again to go on after the last finished "
                                   "shard", argv)


if __name__ == "__main__":
    sys.exit(main())
