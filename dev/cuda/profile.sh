#!/usr/bin/env bash
# Where the time of an update goes on this machine's GPU, by Nsight Systems, or by Nsight Compute
# where that is not there. Takes the trainer's options:
#
#   dev/cuda/profile.sh -e d12 -b 16 -p sppp            one process, both tensor ranks in it
#   RANKS=2 dev/cuda/profile.sh -e d12 -b 16 -p sppp    two processes under mpirun, a GPU each;
#                                                       what is printed is rank 0's
#
# Prints for the updates after the first, in which libraries start and cuBLASLt chooses its
# algorithms: how long an update takes, how long the GPU is idle and after what, what
# communication costs and how much of it nothing hides; then nsys's own tables, of kernels
# and, for functions of train_gpt2.cu, of what they launched. The profile itself stays in
# FOLDER (out/profile), for nsys-ui. ncu has kernels run one by one: there only their times are
# printed, added up by name.
#
#   UPDATES=5       profiled updates, after one that is not
#   TRAIN=./train_gpt2cu
#
# Needs a GPU, python3, and nsys (from 2023.1 on; in the CUDA toolkit or from
# https://developer.nvidia.com/nsight-systems), or for one process ncu, which is in the toolkit.
set -euo pipefail
cd "$(dirname "$0")/../.."
TRAIN=${TRAIN:-./train_gpt2cu} FOLDER=${FOLDER:-out/profile} UPDATES=${UPDATES:-5} RANKS=${RANKS:-1}
stop() { echo "error: $1" >&2; exit 1; }
nvidia-smi -L >/dev/null 2>&1 || stop "no GPU here that nvidia-smi finds"
[ -x "$TRAIN" ] || stop "no $TRAIN here; make train_gpt2cu"
mkdir -p "$FOLDER"

# What is known without nsys. The clocks stay as they are.
kernels_by_ncu() {
    [ "$RANKS" = 1 ] || stop "$1, and ncu is for one process"
    command -v ncu >/dev/null || stop "$1, and no ncu;" \
        "get nsys from https://developer.nvidia.com/nsight-systems"
    echo "$1: kernels by ncu, one by one"
    ncu --clock-control none --metrics gpu__time_duration.sum --print-units base \
        --print-kernel-base function --csv --page raw --log-file "$FOLDER/profile.csv" \
        --force-overwrite "$TRAIN" "${@:2}" -x $((UPDATES + 1)) -v 0
    python3 - "$FOLDER/profile.csv" <<'END'
import csv, sys

lines = [line for line in open(sys.argv[1]) if line.startswith('"')]
rows = list(csv.DictReader(lines))[1:]  # without that of the units
events = [(row["Kernel Name"], float(row["gpu__time_duration.sum"].replace(",", "")))
          for row in rows]
# An update goes from the end of one AdamW step to the end of the next.
steps = [i for i, (name, _) in enumerate(events) if name.startswith("adamw_kernel")]
if len(steps) < 2:
    sys.exit(f"error: {len(steps)} updates in the profile, but 2 are needed; raise UPDATES")
updates, times = len(steps) - 1, {}
for name, ns in events[steps[0] + 1:steps[-1] + 1]:
    times.setdefault(name, []).append(ns)
total = sum(map(sum, times.values()))
print(f"\n{updates} updates: kernels take {total / updates / 1e6:.3f} ms of each\n")
for name, ns in sorted(times.items(), key=lambda item: -sum(item[1])):
    print(f"{sum(ns) / updates / 1e6:9.3f} ms {100 * sum(ns) / total:5.1f}% "
          f"{len(ns) / updates:6.1f} launches  {name[:90]}")
END
    exit
}
command -v nsys >/dev/null || kernels_by_ncu "nsys is not here" "$@"

# From the first gpt2_update on, the end of update 1, until the program ends. The ranges' names are
# plain strings, which nsys looks at only when told so.
export NSYS_NVTX_PROFILER_REGISTER_ONLY=0
report=profile launcher=()
if [ "$RANKS" -gt 1 ]; then
    report='profile.%q{OMPI_COMM_WORLD_RANK}'
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    launcher=(mpirun -n "$RANKS" --bind-to none -x NSYS_NVTX_PROFILER_REGISTER_ONLY)
fi
rm -f "$FOLDER"/profile*.nsys-rep "$FOLDER"/profile*.sqlite
status=0
"${launcher[@]}" nsys profile --trace=cuda,nvtx --sample=none --cpuctxsw=none \
    --capture-range=nvtx --nvtx-capture=gpt2_update --capture-range-end=none \
    --force-overwrite=true -o "$FOLDER/$report" "$TRAIN" "$@" -x $((UPDATES + 1)) -v 0 || status=$?
report=$(find "$FOLDER" -name 'profile*.nsys-rep' | sort | head -n 1)
[ -f "$report" ] || kernels_by_ncu "nsys made no report (exit status $status)" "$@"
nsys export --type=sqlite --force-overwrite=true -o "${report%.nsys-rep}.sqlite" "$report" \
    >/dev/null

python3 - "${report%.nsys-rep}.sqlite" <<'END'
import sqlite3, sys

db = sqlite3.connect(sys.argv[1])
tables = {name for name, in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
events = []  # what the GPU does: start, end, name; in ns
if "CUPTI_ACTIVITY_KIND_KERNEL" in tables:
    events += db.execute("SELECT k.start, k.end, s.value FROM CUPTI_ACTIVITY_KIND_KERNEL k "
                         "JOIN StringIds s ON s.id = k.shortName")
for kind in ("MEMCPY", "MEMSET"):
    if "CUPTI_ACTIVITY_KIND_" + kind in tables:
        events += db.execute(f"SELECT start, end, '{kind.lower()}' FROM CUPTI_ACTIVITY_KIND_{kind}")

# An update goes from the end of one AdamW step to the end of the next.
steps = sorted(end for _, end, name in events if name.startswith("adamw_kernel"))
if len(steps) < 2:
    sys.exit(f"error: {len(steps)} updates in the profile, but 2 are needed; raise UPDATES")
begin, end, updates = steps[0], steps[-1], len(steps) - 1
events = sorted((max(a, begin), min(b, end), name)
                for a, b, name in events if b > begin and a < end)

# Ns in which at least one of them runs, and the gaps: length, name of what ended last.
def covered(spans):
    total, until, last, gaps = 0, begin, "adamw_kernel", []
    for a, b, name in spans:
        if a > until:
            gaps.append((a - until, last))
        total += max(0, b - max(a, until))
        if b > until:
            until, last = b, name
    return total, gaps

TALK = ("nccl", "network_")  # and the network that -nl and -nb put in its place
busy, gaps = covered(events)
talk = covered([e for e in events if e[2].startswith(TALK)])[0]
work = covered([e for e in events if not e[2].startswith(TALK)])[0]
def line(what, ns, more=""):
    share = 100 * ns / (end - begin)
    print(f"{what:30} {ns / updates / 1e6:9.3f} ms {share:6.1f}%  {more}".rstrip())

print(f"\n{updates} updates, {len(events) / updates:.0f} kernels and copies in each\n")
line("an update", end - begin)
line("the GPU works", busy)
line("it is idle", end - begin - busy, f"{len(gaps) / updates:.0f} gaps")
line("communication", talk)
line("  that nothing hides", busy - work)
after = {}
for ns, name in gaps:
    after[name] = after.get(name, 0) + ns
for name, ns in sorted(after.items(), key=lambda item: -item[1])[:5]:
    line("  idle after", ns, name)
END

nsys stats --quiet --force-export=true --report cuda_gpu_kern_sum:base --report nvtx_gpu_proj_sum \
    --format table "$report"
echo "the profile: $report (nsys-ui opens it)"
