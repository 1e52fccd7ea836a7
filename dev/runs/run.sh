# shellcheck shell=sh
# What the scripts of this folder share; each sets `what`, `trainer` and `settings` and then reads
# this file. Of `batches`, where it is set, the first is taken that fits: each is tried by an update
# without a folder. A run that goes on from a checkpoint keeps what it has.
#
#   dev/runs/EXPERIMENT.sh OUT PATTERN [R] [RULE] [SEED] [OPTION VALUE]...
#   dev/runs/shakespeare_4x4x128.sh out/sppp sppp                    R 2, rule sum, seed 1337
#   dev/runs/shakespeare_4x4x128.sh out/p p 4 mean 1338 -wi linear
#
# Options at the end overrule those of the experiment.
# From the environment: TRAINER, the program; LAUNCH, what starts it, such as "mpirun -n 2"; DATA,
# the folder of the text; SHOW=1 prints the command, with the last of `batches`, and does not run
# it, SHOW=trainer only the program.
if [ $# -lt 2 ]; then
    echo "error: expected $0 OUT PATTERN [R] [RULE] [SEED] [OPTION VALUE]...; trains $what" >&2
    exit 2
fi
trainer=${TRAINER:-$trainer} out=$1 pattern=$2 R=${3:-2} rule=${4:-sum} seed=${5:-1337}
shift $(($# < 5 ? $# : 5))
# launcher and settings are words; a glob of shards is the trainer's to expand
set -f
# shellcheck disable=SC2086,SC2154
set -- ${LAUNCH:-} "$trainer" $settings -p "$pattern" -tp "$R" -pm "$rule" -rs "$seed" \
    -o "$out" "$@"
set +f
case " $* " in *' -b '*) batches= ;; esac
for saved in "$out"/DONE_*; do [ ! -e "$saved" ] || batches=; done
if [ -n "${SHOW:-}" ]; then
    [ -z "${batches:-}" ] || set -- "$@" -b "${batches##* }"
    [ "$SHOW" != trainer ] || set -- "$trainer"
    echo "$*"
    exit 0
fi
if ! command -v "$trainer" >/dev/null; then
    build="build it with make ${trainer##*/}, or name another with TRAINER="
    echo "error: $trainer is not here; $build" >&2
    exit 2
fi

# Prints the first of $batches that fits in memory and divides the tokens of an update.
largest_batch() {
    for b in $batches; do
        if said=$("$@" -b "$b" -x 1 -v 0 -s 0 -n 0 -nk 0 -y 0 -o '' 2>&1 </dev/null); then
            echo "-b $b: $(echo "$said" | sed -n 's/^# \(memory_MiB\)/\1/p')" >&2
            echo "$b"
            return
        fi
        why=$(echo "$said" |
            grep -m 1 -E '^error: .*(out of .*memory|-d .* must be a multiple)') || break
        echo "-b $b: $why" >&2
    done
    echo "$said" >&2
    return 1
}
if [ -n "${batches:-}" ]; then
    b=$(largest_batch "$@") || exit 1
    set -- "$@" -b "$b"
fi
exec "$@"
