#!/bin/sh
# GPT-2 124M on OpenWebText or FineWeb: 20,000 updates of 491,520 tokens (480 sequences of 1024),
# checkpoints every 500.
#
#   dev/runs/gpt2_124m.sh OUT PATTERN [R] [RULE] [SEED] [OPTION VALUE]...
#                                       one GPU
#   GPUS=5 dev/runs/gpt2_124m.sh ...    5 replicas, the tensor ranks folded: 12 heads cannot be cut
#                                       by 5
#   GPUS=8 dev/runs/gpt2_124m.sh ...    R 2: 4 replicas of 2 GPUs, real tensor parallelism
#   GPUS=8 dev/runs/gpt2_124m.sh ... -fold 2         R 2: 8 replicas, folded
#   DATA=data/fineweb10B dev/runs/gpt2_124m.sh ...   the folder of shards *train*.bin and *val*.bin
#                                                    (data/openwebtext)
#
# A micro-batch has 60, 48, 30 or 12 sequences, the most that fit in memory and divide the 480 over
# all replicas; -b at the end says otherwise. The loss does not depend on that, nor on the number of
# GPUs, only on pattern, R, rule and seed: every mesh sees the same batches. More in run.sh beside
# this file.
data=${DATA:-data/openwebtext} gpus=${GPUS:-1}
what="GPT-2 124M" trainer=./train_gpt2cu
[ "$gpus" = 1 ] || LAUNCH=${LAUNCH:-mpirun -n $gpus}
settings="-i $data/*train*.bin -j $data/*val*.bin -e d12 -t 1024 -d 491520 -x 20000
    -l 6e-4 -q 0.1 -u 700 -b1 0.9 -b2 0.95 -c 0.1 -gc 1 -v 250 -m 100 -n 500 -nk 2"
batches="60 48 30 12"
. "$(dirname "$0")/run.sh"
