#!/bin/sh
# 6 blocks, 6 heads, 384 channels (10.8 million parameters) on Shakespeare's characters, 5000
# updates of 64 x 256 tokens, on one GPU. nanoGPT's GPU setting without its dropout: it overfits, so
# the best validation loss is what to compare. Usage: run.sh beside this file.
data=${DATA:-data/shakespeare_char}
what="6x6x384 on Shakespeare's characters" trainer=./train_gpt2cu
settings="-i $data/train.bin -j $data/val.bin -e 6x6x384 -t 256 -b 64 -x 5000
    -l 1e-3 -q 0.1 -u 100 -b2 0.99 -c 0.1 -gc 1 -v 250 -m -1"
. "$(dirname "$0")/run.sh"
