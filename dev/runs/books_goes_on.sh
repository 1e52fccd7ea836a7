#!/bin/sh
# Training goes on, from a model of t, under another pattern: 12x8x256 on the characters of books,
# 1000 updates at a tenth of the first rate, validated every 200 on the first 65,536 characters.
# MODEL is its file; `-kd MODEL` among the options has it for a teacher. Usage: run.sh beside this
# file. Take another seed than the model's: with the same one it would read the same rows again.
data=${DATA:-data/books_char}
what="12x8x256 on books, from MODEL=model.bin" trainer=./train_gpt2
settings="-i $data/train.bin -j $data/val.bin -e ${MODEL:-MODEL} -t 128 -b 8 -x 1000
    -l 1e-4 -k constant -u 20 -b2 0.99 -c 0.1 -gc 1 -v 200 -m 64 -vp 0 -n 250 -nk 1"
for word; do
    shift
    [ "$word" != MODEL ] || word=${MODEL:-MODEL}
    set -- "$@" "$word"
done
. "$(dirname "$0")/run.sh"
