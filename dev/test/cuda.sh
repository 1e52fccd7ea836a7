#!/usr/bin/env bash
# End-to-end tests of the CUDA trainer as a user runs it, built for the stand-in (dev/emu), so that
# they need no GPU: against the CPU trainer, several processes, memory, resuming, bad input, and
# what happens when a rank dies. What kernels compute is test_gpt2cu's matter. Needs bash and
# python3, OpenMPI for a part; writes only below a temporary folder.
#
#     make train_gpt2 train_gpt2cu_emu train_gpt2cu_emu_fp32 dev/test/train_faulty_emu
#     dev/test/cuda.sh
#     TRAINER=bf16 TRAINER_FP32=fp32 TRAIN=cpu FAULTY=faulty dev/test/cuda.sh # other programs
#
# Prints `ok <name>`, `FAILED <name>: <why>` or `skip <name>: <reason>` for each test, then
# `test_cuda: N passed, N failed, N skipped`, and exits with 1 if any failed.
set -u
export LC_ALL=C OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_mpi_yield_when_idle=1
export OMPI_MCA_btl_vader_single_copy_mechanism=none
W=$(mktemp -d) || exit 1
export OMPI_MCA_btl_vader_backing_directory=$W # killed processes leave their shared memory behind
trap 'end_all; rm -rf "$W"' EXIT
trap 'exit 1' INT TERM HUP
mkdir "$W/runs"
root=$PWD

. "$(dirname "$0")/verdicts.sh"

# ----------------------------------------------------------------------------
# programs: each a copy with a path of its own, by which its processes are found

program() { # name, path, what makes it
    [ -f "$2" ] && [ -x "$2" ] || { echo "FAILED setup: no program $2; make $3"; exit 1; }
    cp "$2" "$W/$1"
}
program cpu "${TRAIN:-./train_gpt2}" train_gpt2
program cuda "${TRAINER:-./train_gpt2cu_emu}" train_gpt2cu_emu
program cuda_fp32 "${TRAINER_FP32:-./train_gpt2cu_emu_fp32}" train_gpt2cu_emu_fp32
FAULTY=${FAULTY:-dev/test/train_faulty_emu}
[ -x "$FAULTY" ] && cp "$FAULTY" "$W/faulty"
has_mpi=0
openmpi_is_here && ldd "$W/cuda_fp32" 2>/dev/null | grep -q 'libmpi[._]' && has_mpi=1

# Every run starts from these; an option given again later wins.
SMALL=(-i train.bin -j val.bin -e 2x4x32 -t 16 -b 2 -x 10 -l 3e-3 -v 0 -m 2)
# The leaks are OpenMPI's.
MPIRUN=(timeout -k 5 180 mpirun --oversubscribe --bind-to none -x ASAN_OPTIONS=detect_leaks=0)

# try PROGRAM ARGS...; mpi_try N PROGRAM ARGS...: leave $rc, $W/stdout, $W/stderr. run and
# mpi: a failure is a failed test.
try() {
    (cd "$W/runs" && exec timeout -k 5 180 "$W/$1" "${SMALL[@]}" "${@:2}") </dev/null >"$W/stdout" \
        2>"$W/stderr"
    rc=$?
}
mpi_try() {
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n "$1" "$W/$2" "${SMALL[@]}" "${@:3}") </dev/null \
        >"$W/stdout" 2>"$W/stderr"
    rc=$?
}
worked() {
    [ "$rc" = 0 ] ||
        bad "$*" \
        "exit status $rc: $(grep -m1 error: "$W/stderr" || head -c 600 "$W/stderr" | tr '\n' ' ')"
}
run() { try "$@"; worked "$@"; }
mpi() { mpi_try "$@"; worked "mpirun -n $*"; }

trainers() { pgrep -f "^$W/(cpu|cuda|cuda_fp32|faulty) "; }
end_all() { local pids; pids=$(trainers) && kill -9 $pids 2>/dev/null; true; }

steps() {
    sed -nE '/^s:/ { s/ ms:[0-9.]+ tok:[0-9]+//; s/ comm:[0-9.]+//; p }' "$W/runs/$1/main.log"
}
keys()    { sed -nE '/^s:/ { s/:[^ ]+//g; p }' "$W/runs/$1/main.log" | sort -u; }
traffic() { sed -nE 's/^s:([0-9]+) .*(ar:[0-9]+ mb:[0-9.]+).*/\1 \2/p' "$W/runs/$1/main.log"; }
memory_all() { # folder: a sum
    local kinds='parameters ([0-9.]+) gradients ([0-9.]+) optimizer ([0-9.]+) activations ([0-9.]+)'
    sed -nE "s/^# memory_MiB $kinds/\\1 + \\2 + \\3 + \\4/p" "$W/runs/$1/main.log" | head -n 1
}
memory()  { sed -nE "s/^# memory_MiB.* $2 ([0-9.]+).*/\\1/p" "$W/runs/$1/main.log"; } # folder, kind

# near A B FIRST LAST TOLERANCE: losses of updates FIRST to LAST of two folders.
near() {
    compute "$W/runs/$1/main.log" "$W/runs/$2/main.log" "$3" "$4" "$5" <<'PY'
import re, sys
first, last = int(sys.argv[3]), int(sys.argv[4])
def losses(path):
    found = re.findall(r"^s:(\d+) (trl|tel\S*):(\S+)", open(path).read(), re.M)
    return {(int(s), kind): float(loss) for s, kind, loss in found if first <= int(s) <= last}
a, b = losses(sys.argv[1]), losses(sys.argv[2])
if sorted(a) != sorted(b): sys.exit("lines differ: %s and %s" % (sorted(a), sorted(b)))
if sum(kind == "trl" for s, kind in a) != last - max(first, 1) + 1:
    sys.exit("only %d lines" % len(a))
worst = max(a, key=lambda k: abs(a[k] - b[k]))
if not abs(a[worst] - b[worst]) <= float(sys.argv[5]):
    sys.exit("update %d %s: %f and %f" % (*worst, a[worst], b[worst]))
PY
}
identical() { [ -n "$(steps "$1")" ] && diff <(steps "$1") <(steps "$2"); }
files_identical() { # folder, folder, update
    local kind
    for kind in model state; do
        cmp "$W/runs/$1/${kind}_$3.bin" "$W/runs/$2/${kind}_$3.bin" || return 1
    done
}

# refused NAME WHAT COMMAND...: exit status 1, and an error that says WHAT; nothing is written.
refused() {
    "${@:3}"
    if [ "$rc" != 1 ]; then
        bad "$1" "exit status $rc: $(head -c 300 "$W/stderr" | tr '\n' ' ')"
    elif ! grep -qE "^error: (rank [0-9]+: )?.*$2" "$W/stderr"; then
        bad "$1" "no error saying $2: $(head -c 300 "$W/stderr" | tr '\n' ' ')"
    elif [ -e "$W/runs/never" ]; then
        bad "$1" "wrote the folder of -o"
    else
        ok "$1"
    fi
}

# ----------------------------------------------------------------------------
# files: tokens of 65 symbols, and a tokenizer

(cd "$W/runs" && compute <<'PY'
import random, struct
V = 65
def write(path, data): open(path, "wb").write(data)
def tokens(seed, n):
    random.seed(seed)
    ids = [random.randrange(V)]
    while len(ids) < n: ids.append((ids[-1] * 7 + random.randrange(9)) % V)
    return struct.pack("<256i", 20240520, 1, n, V, *[0] * 252) + struct.pack("<%dH" % n, *ids)
write("train.bin", tokens(1, 4000)), write("val.bin", tokens(2, 500))
write("long.bin", tokens(3, 8000))
write("tokenizer.bin", struct.pack("<256i", 20240328, 2, V, 0, *[0] * 252) +
      b"".join(bytes([1, 48 + i]) for i in range(V)))
PY
) || { echo "FAILED setup: python3"; exit 1; }

# ----------------------------------------------------------------------------

echo "# builds: broken by a precision that is not the one asked for, or an nvcc that cannot compile"
for precision in BF16 FP32 TF32; do
    same "make train_gpt2cu_emu PRECISION=$precision" "$(make -n -W train_gpt2.cu \
        train_gpt2cu_emu PRECISION=$precision | grep -o -e '-DPRECISION_[A-Z0-9]*')" \
        "-DPRECISION_$precision"
done
for script in dev/test/nvcc.sh "dev/cuda/resources --test"; do # `false` in the place of nvcc
    same "$script: skipped where nvcc has no g++, and why" \
        "$(NVCC=false $script | sed -nE 's/^skip .*(no g\+\+).*/\1/p; s/.*: (0 passed.*)/\1/p')" \
        "no g++"$'\n'"0 passed, 0 failed, 1 skipped"
done

echo "# each letter, fp32, as the CPU trainer: broken by another order of data, another" \
    "schedule, or a wrong gradient"
run cpu -p t -e 4x4x32 -l 1e-2 -x 5 -o teacher
while read -r name args; do
    run cpu $args -v 5 -o cpu_$name
    run cuda_fp32 $args -v 5 -o fp32_$name
    holds "fp32 as the CPU trainer: $args" near cpu_$name fp32_$name 0 10 1e-4
    same "its lines have the same keys" "$(keys fp32_$name)" "$(keys cpu_$name)"
    same "its all-reduces, in number and size" "$(traffic fp32_$name)" "$(traffic cpu_$name)"
done <<'ARGS'
t -p t
s -p s -c 0.1 -gc 0.5
p -p p -pm mean -u 3 -k linear
sppp -p sppp -e 4x4x32 -wi linear
pp -p pp. -e 4x4x32 -pm streams -tp 4
vp -p sp -vp 1 -d 64
R1 -p t -tp 1 -sh 0
taught -p sppp -e 4x4x32 -kd teacher/model_00000005.bin -kw 3 -d 64
pe -p t -pe t,sppp,p,dl -e 4x4x32 -d 64
ARGS
holds "and the same distance to the teacher" compute "$W/runs/cpu_taught/main.log" \
    "$W/runs/fp32_taught/main.log" <<'PY'
import re, sys
a, b = ([float(kd) for kd in re.findall(r" kd:(\S+)$", open(path).read(), re.M)]
        for path in sys.argv[1:])
if len(a) != 10 or any(abs(x / y - 1) > 1e-3 for x, y in zip(a, b)): sys.exit("%s %s" % (a, b))
PY
drawn() { steps "$1" | sed -n 's/.* pe://p' | tr '\n' ' '; }
same "-pe: its draws are those of the CPU trainer" "$(drawn fp32_pe)" "$(drawn cpu_pe)"
# Of three replicas the partial gradients' copies do not begin where the flat block ends.
for how in cpu cuda_fp32; do
    mpi 3 $how -p t -pe t,s -e 2x2x32 -tp 2 -l 1e-2 -x 8 -o three_$how
done
holds "-pe on three replicas: nothing is left of another pattern's gradients" \
    near three_cpu three_cuda_fp32 0 8 1e-5

echo "# gpu_check.sh cpu, here with the stand-in's programs: broken by losses of another precision"
mkdir "$W/smi" && printf '#!/bin/sh\necho a stand-in\n' >"$W/smi/nvidia-smi"
chmod +x "$W/smi/nvidia-smi"
gpu_check() { # the program that is taken for fp32: how many checks passed and failed
    PATH=$W/smi:$PATH RESULTS=$W/checked SHAPE="-e 4x4x32 -t 16 -b 2" PATTERNS=l TRAIN=$W/cpu \
        TRAINER=$W/cuda TRAINER_FP32=$1 timeout -k 5 200 dev/cuda/gpu_check.sh cpu \
        >"$W/stdout" 2>"$W/stderr"
    tail -n 1 "$W/stdout"
}
right="7 passed, 0 failed, 0 skipped" wrong="5 passed, 2 failed, 0 skipped"
command -v mpirun >/dev/null || # then not by two processes
    right="5 passed, 0 failed, 1 skipped" wrong="4 passed, 1 failed, 1 skipped"
same "30 updates as the CPU trainer's" "$(gpu_check "$W/cuda_fp32")" "gpu_check: $right"
same "and not if fp32 is bf16" "$(gpu_check "$W/cuda")" "gpu_check: $wrong"
same "the report is kept in RESULTS" "$(tail -qn 1 "$W"/checked/gpu_check_*_cpu.txt | tail -n 1)" \
    "gpu_check: $wrong"

echo "# launches: broken by one that the list above forward_pass lacks, or has too many"
EMU_LAUNCHES=$W/launches run cuda -p t -tp 1 -e 2x4x64 -x 1
holds "the launches of an update are those of the list" compute train_gpt2.cu "$W/launches" <<'PY'
import re, sys
letters = {"32": "BT", "64": "C", "192": "3C", "256": "4C", "128": "Vp"}
def launched(line): # products as the list has them: (M,K) (K,N)
    if not line.startswith("cublasLtMatmul"): return line
    name, epilogue, *sizes, batch = line.split()
    N, M, K = (letters.get(size, size) for size in sizes)
    epilogue = epilogue.replace("DEFAULT", "")
    return " ".join(f"{name} {epilogue} ({M},{K}) ({K},{N})".split())
text = re.search(r"// The launches of an update(.*?)\n\n", open(sys.argv[1]).read(), re.S)
if not text: sys.exit("there is no list")
parts = [(1, [])]
for indent, item in re.findall(r"^//( {3,})(\S.*?)(?:  .*)?$", text[1], re.M):
    if item == "L times:": parts.append((2, []))
    elif len(indent) == 3 and parts[-1][0] == 2: parts.append((1, [item]))
    else: parts[-1][1].append(item)
listed = [item for times, items in parts for item in items * times]
found = [launched(line) for line in open(sys.argv[2]).read().splitlines()]
if len(listed) < 60: sys.exit("only %d launches in the list" % len(listed))
for i, (a, b) in enumerate(zip(found + ["nothing"], listed + ["nothing"])):
    if a != b: sys.exit("launch %d is %s, the list has %s" % (i + 1, a, b))
PY

echo "# bf16: broken by a sum in bf16, or by weights that lose small updates"
for p in t p; do
    run cpu -p $p -x 20 -v 20 -o cpu_long_$p
    run cuda -p $p -x 20 -v 20 -o bf16_$p
    holds "bf16, 20 updates as the CPU trainer: -p $p" near cpu_long_$p bf16_$p 0 20 2e-2
    holds "as many all-reduces, of half the size" compute "$W/runs/cpu_long_$p/main.log" \
        "$W/runs/bf16_$p/main.log" <<'PY'
import re, sys
def traffic(path):
    lines = re.findall(r"^s:.* ar:(\d+) mb:(\S+)", open(path).read(), re.M)
    return [(int(ar), float(mb)) for ar, mb in lines]
a, b = traffic(sys.argv[1]), traffic(sys.argv[2])
if len(a) != 20 or len(b) != 20: sys.exit("%d and %d lines" % (len(a), len(b)))
for x, y in zip(a, b):
    if x[0] != y[0] or abs(x[1] / 2 - y[1]) > 0.0101: sys.exit("%s and %s" % (x, y))
PY
done

echo "# other orders of threads, blocks and streams: broken by a race"
for p in t p; do
    EMU_SEED=1 run cuda -p $p -x 4 -n 4 -o seed1_$p
    EMU_SEED=4242 run cuda -p $p -x 4 -n 4 -o seed2_$p
    holds "-p $p under two seeds of the stand-in: the same model, bit for bit" files_identical \
        seed1_$p seed2_$p 00000004
done

echo "# options of CUDA: broken by a recomputed activation that differs, or that is kept all the" \
    "same"
run cuda_fp32 -p p -x 4 -o r0
run cuda_fp32 -p p -x 4 -r 1 -o r1
run cuda_fp32 -p p -x 4 -r 2 -o r2
holds "-r 1 trains the same" near r0 r1 1 4 1e-5
holds "-r 2 trains the same" near r0 r2 1 4 1e-5
big=(-p p -e 4x4x128 -b 4 -t 64 -x 0)
for r in 0 1 2; do run cuda "${big[@]}" -r $r -o big$r; done
holds "-r 1 and -r 2 need less memory for activations" awk \
    "BEGIN { r0 = $(memory big0 activations); r1 = $(memory big1 activations)
        exit !(r0 > r1 && r1 > $(memory big2 activations)) }"
run cuda_fp32 -p p -d 64 -x 4 -b 2 -o accumulated
run cuda_fp32 -p p -x 4 -b 4 -o whole
holds "two micro-batches as one of twice the size" near accumulated whole 1 4 1e-5
run cuda_fp32 -p p -x 2 -o net0
run cuda_fp32 -p p -x 2 -nl 1000 -nb 1 -o net
holds "an emulated network takes its time" compute "$W/runs/net/main.log" <<'PY'
import re, sys
found = re.findall(r"^s:(\d+) trl.* ar:(\d+).* comm:(\S+)", open(sys.argv[1]).read(), re.M)
us = 2 * 1000 + 8 * 4 * 16 * 2 * 32 / 1e3
if len(found) != 2: sys.exit("%d updates" % len(found))
# All of it in the forward pass; weight gradients are computed meanwhile in the backward pass.
for s, ar, comm in found:
    expected = int(ar) / 2 * us * 1e-3
    if not float(comm) >= expected - 0.06:
        sys.exit("update %s: comm %s ms, expected %.1f" % (s, comm, expected))
PY
same "and changes no number" "$(steps net)" "$(steps net0)"
run cuda_fp32 -p s -x 4 -d 64 -b 2 -o first
run cuda_fp32 -p s -x 4 -d 64 -b 2 -ms 3 -o fastest
holds "-ms 3, the fastest of three algorithms, trains the same" near first fastest 1 4 1e-5
echo "# choices by time: broken by one that is made anew in every run, or a file that nobody reads"
choices=$W/cuda_fp32.choices
rm -f "$choices"
run cuda_fp32 -p s -x 4 -ms 3 -o chosen
EMU_SEED=5 run cuda_fp32 -p s -x 4 -ms 3 -o chosen_again
holds "-ms, run twice: the same bits" files_identical chosen chosen_again 00000004
summed() { # the stand-in's algorithms: how many terms one adds up at a time
    sed -i -E "/ -ms 3,/ s/: (.{96}).{8}/: \\1$1/" "$choices"
}
same "one choice for each shape, by GPU and library" \
    "$(sed -E 's/ [0-9]+ x .*//' "$choices" | sort | uniq -c | wc -l)" 1
shapes=$(wc -l <"$choices")
run cuda_fp32 -p s -x 4 -o plain
for algorithm in 10000000 00010000; do # 16 terms, and the first choice's 256
    summed $algorithm
    run cuda_fp32 -p s -x 4 -ms 3 -o "sum_$algorithm"
    EMU_SEED=5 run cuda_fp32 -p s -x 4 -ms 3 -o "again_$algorithm"
    holds "and so with what somebody writes there" files_identical \
        "sum_$algorithm" "again_$algorithm" 00000004
done
differs "another choice, other bits" "$(md5sum <"$W/runs/sum_10000000/model_00000004.bin")" \
    "$(md5sum <"$W/runs/plain/model_00000004.bin")"
holds "the first choice, those without -ms" files_identical sum_00010000 plain 00000004
mkdir "$W/cuda.choices"
refused "-ms where nothing can be kept" "-ms keeps its choices in .*cuda.choices: Is a directory" \
    try cuda -ms 3 -o never
rmdir "$W/cuda.choices"
# GELU's kernels, forward and backward (columns); the merge after the head is one of the latter too.
gelus() { echo $(($(grep -cE '^(gelu|columns)_kernel' "$W/launches_$1") - 2)); }
capable() { # NAME, capability: a run of two updates, two blocks
    EMU_LAUNCHES=$W/launches_$1 EMU_CAPABILITY=$2 run cuda_fp32 -p t -x 2 -o "$1"
}
capable hopper 90
same "on 9.0 GELU is part of the products, untimed" "$(gelus hopper) $(wc -l <"$choices")" \
    "0 $shapes"
capable timed 80
same "elsewhere both ways are timed once: forward and backward" "$(grep -c ' GELU ' "$choices")" 2
sed -i '/ GELU /s/: ..$/: 01/' "$choices"
capable fused 80
sed -i '/ GELU /s/: ..$/: 00/' "$choices"
capable apart 80
same "and then it is as the file says" "$(gelus fused) $(gelus apart)" "0 8"
holds "GELU apart trains the same" near hopper apart 1 2 1e-5
holds "GELU timed trains the same" near hopper timed 1 2 1e-5
rm "$choices" && mkdir "$choices"
capable unkept 80
same "where nothing can be kept, GELU is apart" "$(gelus unkept)" 8
rmdir "$choices"

echo "# products that cuBLASLt does not do: broken by one that is left out, an error of the GPU" \
    "taken for one"
apart() { sed -n 's/^# products in several launches.*epilogue: //p' "$W/runs/$1/main.log"; }
run cuda_fp32 -p t -x 2 -o whole_products
EMU_PRODUCT="DGELU_BGRAD 15" run cuda_fp32 -p t -x 2 -o no_dgelu
holds "without the gradient of GELU it trains the same" near whole_products no_dgelu 1 2 1e-5
same "the log says how many are apart, and nothing where none is" \
    "$(apart whole_products)$(apart no_dgelu)" "DGELU_BGRAD 1"
EMU_PRODUCT="BIAS 13" refused "a fault of the GPU is an error" \
    "train_gpt2.cu:[0-9]+: plan->status: CUBLAS_STATUS_EXECUTION_FAILED" try cuda_fp32

run cuda_fp32 -p l -x 3 -o hidden0
run cuda_fp32 -p l -x 3 -nl 1000 -o hidden
same "nor where it is hidden behind computation" "$(steps hidden)" "$(steps hidden0)"
sample() {
    run "$1" -p t -x 2 -s 1 -g 24 -gp 012
    sampled=$(grep -a -A1 '^--- sample' "$W/stdout" | grep -a -v '^--')
}
sample cpu; by_cpu=$sampled
sample cuda_fp32
same "samples are those of the CPU trainer" "$sampled" "$by_cpu"
for options in "-p t -g 70 -t 16" "-p sp -g 70 -t 16 -gt 0" "-p l -g 30 -t 1" \
    "-p s -g 40 -vp 1"; do
    for program in cpu cuda_fp32; do
        run $program -x 0 -wi linear -gp 01234567890123456789 $options
        sampled "$W/stdout" >"$W/text_$program"
    done
    holds "$options: the CPU trainer's text through refills of the window" \
        cmp "$W/text_cpu" "$W/text_cuda_fp32"
done
drafts() { # PROGRAM OPTION...: its greedy text, and the rounds it took
    run "$1" -x 0 -wi linear -gp 0123456789 -g 70 -gt 0 -tp 2 "${@:2}"
    sampled "$W/stdout" >"$W/text_$1"
}
for options in "-p t -sd 4" "-p t -sd 8 -sp s -vp 1" "-p sp -sd 3 -sp l"; do
    drafts cpu $options
    drafts cuda_fp32 $options
    holds "$options: the CPU trainer's text, in as many rounds" \
        cmp "$W/text_cpu" "$W/text_cuda_fp32"
    drafts cuda_fp32 $options -sd 0
    same "$options: the text without drafts" "$(sed '/^g:/d' "$W/text_cuda_fp32")" \
        "$(sed '/^g:/d' "$W/text_cpu")"
done
if [ $has_mpi = 1 ]; then
    drafts cuda_fp32 -p t -sd 4 -g 20
    mpi 2 cuda_fp32 -x 0 -wi linear -gp 0123456789 -g 20 -gt 0 -p t -sd 4
    same "drafts over two ranks" "$(sampled "$W/stdout")" "$(cat "$W/text_cuda_fp32")"
fi
sample cuda_fp32
same "two of them, that go on from the prompt" "$(grep -a -cE '^012.{24}$' <<<"$sampled")" 2

echo "# resuming: broken by state that is not in the checkpoint, or a rounded copy of the weights"
from_4() { went_on "$W/runs/$1/main.log" 4 8 "${@:2}"; }
resumes() { # PROGRAM NAME OPTIONS: from update 4, where -pe comes from the checkpoint too
    run "$1" "${@:3}" -x 8 -n 4 -o "whole_$2"
    mkdir "$W/runs/part_$2" &&
        cp "$W/runs/whole_$2/"*_00000004* "$W/runs/whole_$2/main.log" "$W/runs/part_$2/"
    run "$1" -x 8 -n 4 -y 1 -o "part_$2"
    holds "$2: a resumed run is the uninterrupted one, bit for bit" from_4 "part_$2" \
        identical "whole_$2" "part_$2"
    holds "$2: and so are its files" files_identical "whole_$2" "part_$2" 00000008
}
resumes cuda cuda -p p
resumes cuda_fp32 cuda_fp32 -p p
resumes cuda_fp32 pe -pe t,p,s
taken_over() { # by PROGRAM from FOLDER at update 4, into FOLDER
    mkdir "$W/runs/$3" && cp "$W/runs/$2/"*_00000004* "$W/runs/$2/main.log" "$W/runs/$3/"
    run "$1" -p p -x 8 -n 4 -y 1 -o "$3"
}
taken_over cpu whole_cuda_fp32 cpu_takes
holds "the CPU trainer goes on from CUDA's checkpoint" from_4 cpu_takes \
    near whole_cuda_fp32 cpu_takes 5 8 1e-4
run cpu -p p -x 8 -n 4 -o whole_cpu
taken_over cuda_fp32 whole_cpu cuda_takes
holds "CUDA goes on from the CPU trainer's" from_4 cuda_takes near whole_cpu cuda_takes 5 8 1e-4
taken_over cuda whole_cpu bf16_takes
holds "CUDA in bf16 goes on from the CPU trainer's" from_4 bf16_takes \
    near whole_cpu bf16_takes 5 8 2e-2

echo "# a signal: broken by an update that is cut short, or a checkpoint that is not saved"
(cd "$W/runs" && exec "$W/cuda_fp32" "${SMALL[@]}" -p p -x 8 -n 4 -nl 30000 -o told) </dev/null \
    >"$W/stdout" 2>"$W/stderr" &
until_true grep -qs '^s:1 trl' "$W/runs/told/main.log"
kill -USR1 $!
wait $!
same "SIGUSR1: status, and what the log says" \
    "$? $(tail -n 1 "$W/runs/told/main.log" | sed -E 's/ update [0-9]+/ update N/')" \
    "138 # stopped by SIGUSR1 after update N of 8: its checkpoint is saved, -y 1 goes on from it"
run cuda_fp32 -p p -x 8 -n 4 -y 1 -o told
holds "resumed, it is the uninterrupted run, bit for bit" \
    went_on "$W/runs/told/main.log" '[1-7]' 8 identical whole_cuda_fp32 told
holds "and so are its files" files_identical whole_cuda_fp32 told 00000008

echo "# bad input: broken by a kernel that is launched with it"
OUT=(-o never)
EMU_GPUS=0 refused "no GPU" "no GPU that CUDA can use.*train_gpt2 trains on the CPU" try cuda \
    "${OUT[@]}"
refused "heads of 12" "head size of 12 .*multiple of 8" try cuda -e 4x4x48 "${OUT[@]}"
refused "heads of 136" "head size of 136 .*up to 128" try cuda -e 1x2x272 "${OUT[@]}"
refused "channels that do not fit the heads" "50 channels cannot be divided by 4 heads" try cuda \
    -e 4x4x50 "${OUT[@]}"
refused "-tp 3 with 4 heads" "-tp 3: 4 heads cannot be divided" try cuda -tp 3 "${OUT[@]}"
refused "-r 3" "-r '3'" try cuda -r 3 "${OUT[@]}"
refused "-cm of another name" "-cm 'gloo'.*nccl mpi" try cuda -cm gloo "${OUT[@]}"
run cuda -cm nccl -z 1 -x 1
same "-cm nccl and -z 1 in one process run" "$rc" 0
refused "a loss that is not a number names update and tensor" \
    "update [0-9]+: .*gradient of [a-z0-9]+ is not finite" try cuda_fp32 -l 1e3 -gc 0 -x 100

echo "# gpt2_124m.sh: broken by a batch that does not fit, or one smaller than what does"
experiment() { # MiB of memory, OUT, options
    (cd "$W/runs" && EMU_MEMORY_MIB=$1 TRAINER=$W/cuda timeout -k 5 200 \
        "$root/dev/runs/gpt2_124m.sh" "$2" t 2 sum 1337 -i long.bin -e 1x2x16 -t 128 \
        -d 30720 -x 1 -v 0 "${@:3}") </dev/null >"$W/stdout" 2>"$W/stderr"
    rc=$?
}
experiment 16384 unlimited
worked "gpt2_124m.sh"
same "with memory to spare: 60" "$(sed -n 's/^# -b //p' "$W/runs/unlimited/main.log")" 60
run cuda -i long.bin -e 1x2x16 -t 128 -b 48 -x 0 -o of_48
experiment "$(awk "BEGIN { print int(1 + $(memory_all of_48)) }")" limited
worked "gpt2_124m.sh"
same "with memory for 48" "$(sed -n 's/^# -b //p' "$W/runs/limited/main.log")" 48
holds "it says why not 60, and what 48 takes" awk '/-b 60: .*out of GPU memory/ { a = 1 }
    /-b 48: memory_MiB parameters .* activations/ { b = 1 } END { exit !(a && b) }' "$W/stderr"
experiment 16384 limited -x 2 -y 1
worked "gpt2_124m.sh"
same "resumed, it keeps its batch" "$(sed -n 's/^# -b //p' "$W/runs/limited/main.log")" "48
48"
experiment 16384 given -b 12
same "-b at the end is taken as it is" "$(sed -n 's/^# -b //p' "$W/runs/given/main.log")" 12
experiment 16384 wrong -l nothing
same "another error is said at once, and no other batch tried" \
    "$rc $(grep -c "^error: -l 'nothing'" "$W/stderr") $(grep -c -e '-b 48' "$W/stderr")" "1 1 0"

echo "# memory: broken by an allocation that nobody counts, or an error that does not help"
run cuda -x 0 -o mem
whole=$(memory_all mem)
asked() { # NAME, MiB too few, kind, advice: of a model of 8 x 512 channels
    EMU_MEMORY_MIB=$2 refused "$1" \
        "out of GPU memory: [0-9.]+ MiB asked for $3, .*parameters [0-9.]+.*MiB are free; .*$4" \
        try cuda -e 8x8x512 -b 4 -t 16 "${OUT[@]}"
}
asked "out of memory for parameters"  20 "parameters" "more GPUs under mpirun"
asked "out of memory for gradients"   60 "gradients" "-z 1"
asked "out of memory for optimizer state" 200 "optimizer state" "-z 1"
asked "out of memory for activations" 470 "activations" "lower -b .*-t .*-r 1 or -r 2"
refused "more sequences than a grid has room for" "-b 40000: at most 32767 with 2 ranks on a GPU" \
    try cuda -x 0 -t 2 -b 40000 -o never
# Streams of its own for every rank take more than t's: what -pe needs is known at the start.
one=(-e 4x4x128 -b 4 -t 64 -p t)
run cuda "${one[@]}" -x 0 -o mem_t
refused_under() {
    EMU_MEMORY_MIB=$(awk "BEGIN { printf \"%d\", $(memory_all mem_t) + 1.5 }") "$@"
}
refused_under run cuda "${one[@]}" -x 1
refused_under refused "out of memory for a pattern of -pe" \
    "out of GPU memory: .* asked for activations, .*; that is for pattern d of -pe" \
    try cuda "${one[@]}" -pe t,d "${OUT[@]}"
EMU_MEMORY_MIB=$(awk "BEGIN { printf \"%d\", $whole + 1.5 }") run cuda -x 1
same "the lines memory_MiB are all that it needs" "$rc" 0

# ----------------------------------------------------------------------------

if [ $has_mpi = 0 ]; then
    skip "several processes" "install libopenmpi-dev openmpi-bin and make again"
    echo "test_cuda: $passed passed, $failed failed, $skipped skipped"
    [ "$failed" = 0 ]; exit
fi

echo "# real ranks: broken by a sum over the wrong group, or a merge that adds a stream twice"
while read -r name args; do
    run cuda_fp32 $args -fold 0 -v 2 -x 4 -o one_$name
    mpi 2 cuda_fp32 $args -v 2 -x 4 -o two_$name
    holds "two processes as one: $args" near one_$name two_$name 0 4 1e-5
    same "all-reduces of two processes as of one" "$(traffic two_$name)" "$(traffic one_$name)"
done <<'ARGS'
t -p t
sppp -p sppp -e 4x4x32 -pm mean -d 64
streams -p p -pm streams
vp -p sp -vp 1
pe -pe t,sppp,p,dl -e 4x4x32
fold -p pp. -tp 4 -fold 2
foldvp -p p -pm mean -tp 4 -fold 2 -vp 1 -r 2
ladder -p l
ladderfold -p sl -tp 4 -fold 2 -r 2
delayed -p d
ARGS
mkdir -p "$W/runs/data/shakespeare_char" &&
    cp "$W/runs/train.bin" "$W/runs/val.bin" "$W/runs/data/shakespeare_char/"
(cd "$W/runs" && exec "${MPIRUN[@]}" -n 2 "$W/cuda" -p sppp -tp 2 -x 2) </dev/null >"$W/stdout" \
    2>"$W/stderr"
same "mpirun -n 2 train_gpt2cu_emu -p sppp -tp 2 trains, with every other option its default" \
    "$(grep -c '^s:2 trl:' "$W/stdout")" 1
mixed() {
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n 1 "$W/cuda" "${SMALL[@]}" "$@" : -n 1 \
        -x EMU_CAPABILITY=80 "$W/cuda" "${SMALL[@]}" "$@") </dev/null >"$W/stdout" 2>"$W/stderr"
    rc=$?
}
refused "GPUs of two kinds" "GPU, .* \(8.0, 4 multiprocessors\), differs from rank 0's" mixed \
    -o never
run cuda -p p -x 4 -o bf16_one
mpi 2 cuda -p p -x 4 -n 2 -o bf16_two
holds "bf16, two processes as one" near bf16_one bf16_two 1 4 1e-2
mpi 2 cuda_fp32 -p sppp -e 4x4x32 -x 4 -n 4 -o merged_whole
mpi 2 cuda_fp32 -p sppp -e 4x4x32 -x 4 -n 4 -mc 3 -o merged_chunks
holds "-mc 3, merges in three chunks of rows: the same model, bit for bit" files_identical \
    merged_whole merged_chunks 00000004
# Two batches of two merges, of which each has a product that makes its first chunk.
for row in "1 0" "3 8"; do
    read -r chunks beside <<<"$row"
    EMU_NCCL=1 mpi 2 cuda_fp32 -p sppp -e 4x4x32 -x 0 -v 1 -mc "$chunks"
    same "-mc $chunks: products of the forward pass while NCCL sums" \
        "$(sed -nE 's/^emu: NCCL: .* of ([0-9]+) products.*/\1/p' "$W/stderr" | uniq)" "$beside"
done
mpi 2 cuda_fp32 -p sppp -e 4x4x32 -pm mean -x 4 -v 2 -d 64 -cm mpi -o two_mpi
holds "-cm mpi" near one_sppp two_mpi 0 4 1e-5
same "and says so" \
    "$(grep -c 'by MPI through host memory' "$W/runs/two_mpi/main.log") $(
        grep -c 'by NCCL' "$W/runs/two_sppp/main.log")" \
    "1 1"
mpi 2 cuda -p p -x 4 -cm mpi -o bf16_two_mpi
holds "-cm mpi, bf16" near bf16_one bf16_two_mpi 1 4 1e-2

echo "# replicas: broken by a gradient scaled by DP, a sum that begins too early, or state of" \
    "another replica"
run cuda_fp32 -p p -b 4 -x 6 -d 64 -v 6 -o dp1
mpi 4 cuda_fp32 -p p -b 2 -x 6 -d 64 -v 6 -m 4 -n 3 -o dp2
holds "DP 2 x TP 2 as one process" near dp1 dp2 0 6 1e-5
mpi 4 cuda_fp32 -p p -b 1 -x 6 -d 64 -v 6 -m 8 -cm mpi -o dp2_mpi
holds "DP 2 x TP 2 by -cm mpi, with accumulation, as one process" near dp1 dp2_mpi 0 6 1e-5
NCCL_LAUNCH_ORDER_IMPLICIT=0 mpi 4 cuda_fp32 -p p -b 2 -x 6 -d 64 -v 6 -m 4 -o dp2_unordered
holds "NCCL orders no launches: sums over replicas come after those over ranks, the same bits" \
    identical dp2 dp2_unordered
cat >"$W/mixed" <<'END'
#!/bin/sh
[ "$OMPI_COMM_WORLD_RANK" != 1 ] || export EMU_DRIVER=12020
exec "${0%/*}/cuda_fp32" "$@"
END
chmod +x "$W/mixed"
mpi 4 mixed -p p -b 2 -x 6 -d 64 -v 6 -m 4 -o dp2_mixed
holds "one driver of four has NCCL wait for each sum: all go the same way" identical dp2 dp2_mixed
EMU_NCCL=1 mpi 4 cuda_fp32 -p p -b 2 -x 6 -d 64 -v 6 -m 4 -z 1 -n 3 -o dp2_zero
same "products beside NCCL's sums leave it multiprocessors, in all processes" \
    "$(grep -cE 'of [1-9][0-9]* products beside them 0 leave no multiprocessor' "$W/stderr")" 4
holds "-z 1 as -z 0, bit for bit" identical dp2 dp2_zero
holds "and so are its files" files_identical dp2 dp2_zero 00000006
sent() { sed -nE 's/^emu: NCCL: .* sent ([0-9]+) bytes.*/\1/p' "$W/stderr" | sort -un; }
EMU_NCCL=1 mpi 2 cuda -p p -fold 2 -x 4 -n 2 -o bf16_dp2; plain=$(sent)
mpi 2 cuda -p p -fold 2 -x 4 -n 2 -z 1 -cm mpi -o bf16_dp2_zero
holds "bf16 and -cm mpi too, with two replicas" files_identical bf16_dp2 bf16_dp2_zero 00000004
EMU_NCCL=1 mpi 2 cuda -p p -fold 2 -x 4 -z 1 -o bf16_dp2_nccl
# A gradient is 4 bytes to one replica and 4 back; with -z 1 4 there, and a parameter's 2 back.
same "-z 1 sends three quarters of the bytes" "$(($(sent) * 4 / plain))" 3
holds "-z 1 halves the optimizer state" awk \
    "BEGIN { whole = $(memory bf16_dp2 optimizer | head -n 1)
        half = $(memory bf16_dp2_zero optimizer | head -n 1)
        exit !(half > 0 && half < 0.6 * whole + 0.06) }"
mkdir "$W/runs/zero_resumed" &&
    cp "$W/runs/dp2_zero/"*_00000003* "$W/runs/dp2_zero/main.log" "$W/runs/zero_resumed/"
mpi 4 cuda_fp32 -p p -b 2 -x 6 -d 64 -v 6 -m 4 -z 1 -n 3 -y 1 -o zero_resumed
holds "-z 1 resumes bit for bit" went_on "$W/runs/zero_resumed/main.log" 3 6 \
    files_identical dp2 zero_resumed 00000006
mkdir "$W/runs/crossed" &&
    cp "$W/runs/dp2_zero/"*_00000003* "$W/runs/dp2_zero/main.log" "$W/runs/crossed/"
run cpu -p p -b 4 -x 6 -d 64 -v 6 -y 1 -o crossed
holds "a checkpoint of DP 2 x TP 2 with -z 1 goes on in the CPU trainer, alone" \
    went_on "$W/runs/crossed/main.log" 3 6 near dp1 crossed 4 6 1e-4

echo "# NVLink SHARP, whose sums differ from call to call: broken when NCCL may use it unasked"
for seed in 1 2; do
    EMU_NVLS=1 EMU_SEED=$seed mpi 4 cuda_fp32 -p p -tp 4 -x 4 -n 4 -o sharp$seed
    EMU_NVLS=1 EMU_SEED=$seed NCCL_ALGO=NVLS mpi 4 cuda_fp32 -p p -tp 4 -x 4 -n 4 -o asked$seed
done
holds "the same run twice is the same model, bit for bit" files_identical sharp1 sharp2 00000004
differs "and is not where NCCL_ALGO asks for it" "$(cksum <"$W/runs/asked1/model_00000004.bin")" \
    "$(cksum <"$W/runs/asked2/model_00000004.bin")"

echo "# processes and GPUs: broken by two ranks on one GPU, or a process that waits for ever"
EMU_GPUS=1 mpi 3 cuda_fp32 -p p -x 4 -o aside
same "processes beyond the GPUs step aside, and it is said" \
    "$(grep -cE '^# aside 2 processes' "$W/stdout")$(grep -cE '^# mesh 1 process ' "$W/stdout")" \
    11
holds "and the rest trains as ever" near r0 aside 1 4 1e-5
(cd "$W/runs" && exec env EMU_GPUS=1 "${MPIRUN[@]}" -n 1 -x EMU_FIRST_GPU=0 "$W/cuda_fp32" \
    "${SMALL[@]}" -p p -x 4 -o handed \
    : -n 1 -x EMU_FIRST_GPU=1 "$W/cuda_fp32" "${SMALL[@]}" -p p -x 4 -o handed) </dev/null \
    >"$W/stdout" 2>"$W/stderr"
same "nobody steps aside where the launcher gives each process a GPU of its own" \
    "$(grep -c '^# aside' "$W/runs/handed/main.log") $(
        grep -c '^# process 1 ' "$W/runs/handed/main.log")" "0 1"
(cd "$W/runs" && exec env EMU_GPUS=1 "${MPIRUN[@]}" -n 3 "$W/cuda_fp32" "${SMALL[@]}" -p p -x 999 \
    -nl 3000 -o aside_told) </dev/null >"$W/stdout" 2>"$W/stderr" &
launched=$!
until_true grep -qs '^s:1 trl' "$W/runs/aside_told/main.log"
kill -USR1 "$(pgrep -P $launched mpirun)"
wait $launched
same "a signal that mpirun sends to all does not end those aside, and the run with them" \
    "$? $(grep -c '^# stopped by SIGUSR1' "$W/runs/aside_told/main.log")" "138 1"
EMU_GPUS=1 mpi 2 cuda_fp32 -p p -x 4 -cm mpi -o shared
same "-cm mpi: two processes share a GPU" \
    "$(grep -cE '^# process [01] .* on GPU 0' "$W/stdout")$(grep -c '^# aside' "$W/stdout")" 20
holds "and train as ever" near r0 shared 1 4 1e-5
rm -rf "$W/runs/never"
refused "-tp 2 -fold 1 with three processes" "needs a multiple of 2 processes, but there are 3" \
    mpi_try 3 cuda -fold 1 "${OUT[@]}"

rank1() { # its process
    local pid
    for pid in $(trainers); do
        tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | grep -qx "OMPI_COMM_WORLD_RANK=1" &&
            echo "$pid" && return
    done
}
killed() { # -cm
    local begun limit saved
    (cd "$W/runs" && exec "${MPIRUN[@]}" -n 2 "$W/cuda_fp32" "${SMALL[@]}" -p p -x 100000 -cm "$1" \
        -n 5 -nk 2 -o "killed_$1") </dev/null >"$W/stdout" 2>"$W/stderr" &
    launched=$!
    limit=$((SECONDS + 30))
    until grep -qE '^s:7 trl' "$W/runs/killed_$1/main.log" 2>/dev/null ||
        [ $SECONDS -ge $limit ]; do
        sleep 0.05
    done
    kill -9 $(rank1)
    begun=$SECONDS
    wait "$launched"; rc=$?
    same "-cm $1, a rank killed: mpirun ends with an error, soon, and no process is left" \
        "$((rc != 0)) $((SECONDS - begun < 30)) $(left)" "1 1 0"
    holds "-cm $1, a rank killed: the output names a rank" grep -qE '[Rr]ank [0-9]' "$W/stdout" \
        "$W/stderr"
    end_all
    saved=$(cd "$W/runs/killed_$1" && ls DONE_???????? | tail -n 1 | sed 's/DONE_0*//')
    run cuda_fp32 -p p -y 1 -n 0 -x $((saved + 1)) -o "killed_$1"
}
killed nccl
killed mpi

(cd "$W/runs" && exec "${MPIRUN[@]}" -n 2 "$W/cuda_fp32" "${SMALL[@]}" -p p -x 30 -wd 2 \
    -o stopped) </dev/null >"$W/stdout" 2>"$W/stderr" &
launched=$!
until_true grep -qs '^s:2 trl' "$W/runs/stopped/main.log"
pid=$(rank1) && kill -STOP "$pid"
until_true grep -q '^waiting: ' "$W/stderr"
kill -CONT "$pid"
wait $launched
same "a rank stopped: rank 0 says which update and whom it waits for" \
    "$(sed -nE "s/update [0-9]+/update N/; s/ (the GPU's work.*|a collective .*);/ SUM;/
        /^waiting: /p" "$W/stderr" | head -n 1)" \
    "waiting: update N: for 2 s in SUM; rank 1 (process $pid of this host) is stopped"
mpi 2 cuda_fp32 -p p -x 30 -o never_stopped
holds "and goes on: the losses of a run never stopped" identical never_stopped stopped

echo "# a planted fault: the suite is seen to fail on it"
if [ -x "$W/faulty" ]; then
    mpi 2 faulty -p t -v 2 -x 4 -o faultless
    holds "no fault: two processes as one" near one_t faultless 0 4 1e-5
    for seed in 1 2 3; do
        rm -f "$W/faulty.choices"
        EMU_SEED=$seed mpi 2 faulty -p t -v 2 -x 4 -ms 3 -o agreed$seed
        holds "-ms 3 on two processes, replicas compared: which algorithm is fastest is agreed on" \
            near one_t agreed$seed 0 4 1e-5
    done
    for how in "-cm nccl" "-cm nccl -z 1" "-cm mpi"; do
        name=${how//[- ]/}
        # shellcheck disable=SC2086 # two words or four
        mpi 6 faulty -p t -tp 2 -x 3 $how -o "alike_$name"
        # shellcheck disable=SC2086
        PLANTED_FAULT=RANKS_SUM_APART mpi 6 faulty -p t -tp 2 -x 3 $how -o "unlike_$name"
        holds "$how, three replicas of two ranks: the first one's bits of a sum count" \
            identical "alike_$name" "unlike_$name"
    done
    PLANTED_FAULT=COUNT_IN_BYTES mpi_try 2 faulty -p t -v 2 -x 4 -o faulty
    if [ "$rc" = 0 ] && near one_t faulty 0 4 1e-5; then
        bad "planted fault: an all-reduce told bytes" "went unseen"
    else
        why=$(grep -m1 -oE '(emu|error): .*' "$W/stderr" | cut -c1-100)
        ok "planted fault: an all-reduce told bytes is seen ($why)"
    fi
else
    bad "planted fault" "no program $FAULTY; make dev/test/train_faulty_emu"
fi

echo "test_cuda: $passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
