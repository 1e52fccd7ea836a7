#!/usr/bin/env python3
"""OpenWebText, the open copy of GPT-2's training text, as shards of GPT-2 tokens: about 9 billion
in 8 million documents.

    pip install datasets tiktoken
    python3 data/openwebtext.py                          # all of it: stores 18 GB of shards
    python3 data/openwebtext.py --max-tokens 1e9         # 10 shards
    python3 data/openwebtext.py --input FILE.jsonl ...   # {"text": ...} per line, no network
    ./train_gpt2 -i 'data/openwebtext/*train*.bin' -j 'data/openwebtext/*val*.bin'

It writes openwebtext_val_000000.bin, openwebtext_train_000001.bin, ..., tokenizer.bin and
source.txt into --out (default: the folder openwebtext beside this file); data/shards.py says how.
The same command after a stop goes on where it stopped, and the files are the same bytes as without
it. A failure prints one line on stderr and exits with status 1.

Should the hub still have the data set as a script, which datasets 4 and newer refuse, --revision
refs/pr/22 names the maintainers' conversion into files
(huggingface.co/datasets/Skylion007/openwebtext/discussions/22; not tried).
"""
import os
import sys

import shards

HUB = ("Skylion007/openwebtext", None)


def run(argv):
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "openwebtext")
    args = shards.args_check(shards.parser_make(__doc__, beside).parse_args(argv))
    shards.set_make("openwebtext", args, HUB)


def main(argv=None):
    return shards.script_main(run, "run the same command again to go on after the last finished "
                                   "shard", argv)


if __name__ == "__main__":
    sys.exit(main())
