#!/bin/sh
# 4 blocks, 4 heads, 128 channels (0.8 million parameters) on Shakespeare's characters, 2000
# updates: about a minute on two cores. Usage: run.sh beside this file.
data=${DATA:-data/shakespeare_char}
what="4x4x128 on Shakespeare's characters" trainer=./train_gpt2
settings="-i $data/train.bin -j $data/val.bin -e 4x4x128 -t 64 -b 12 -x 2000
    -l 1e-3 -q 0.1 -u 100 -b2 0.99 -c 0.1 -gc 1 -v 250 -m -1 -vp 0"
. "$(dirname "$0")/run.sh"
