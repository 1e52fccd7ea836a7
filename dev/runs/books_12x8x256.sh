#!/bin/sh
# 12 blocks, 8 heads, 256 channels (9.6 million parameters) on the characters of 655 books, 1500
# updates: about ten minutes on two cores. The settings of the Shakespeare runs. Validation reads
# the first 262,144 of 4.3 million characters. Usage: run.sh beside this file. The books are made by
# `python3 data/books.py`.
data=${DATA:-data/books_char}
what="12x8x256 on the characters of books" trainer=./train_gpt2
settings="-i $data/train.bin -j $data/val.bin -e 12x8x256 -t 128 -b 8 -x 1500
    -l 1e-3 -q 0.1 -u 100 -b2 0.99 -c 0.1 -gc 1 -v 500 -m 256 -vp 0 -n 250 -nk 1"
. "$(dirname "$0")/run.sh"
