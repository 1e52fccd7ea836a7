#!/bin/sh
# GPT-2 124M on the byte pairs of 655 books, on one GPU with the tensor ranks folded: 400 updates of
# 65,536 tokens, 64 sequences of 1024, which is a third of the text. Validation reads all 17 books.
# The books are made by `python3 data/books.py --bpe`. Usage: run.sh beside this file.
data=${DATA:-data/books_bpe}
what="GPT-2 124M on books" trainer=./train_gpt2cu
settings="-i $data/train.bin -j $data/val.bin -e d12 -t 1024 -d 65536 -x 400
    -l 6e-4 -q 0.1 -u 40 -b2 0.95 -c 0.1 -gc 1 -v 100 -m -1 -vp 0 -n 0"
batches="64 32 16 8"
. "$(dirname "$0")/run.sh"
