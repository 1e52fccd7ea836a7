#!/bin/sh
# Compiles the CUDA trainer and its tests with nvcc for compute capability 8.0 and 9.0, in both
# precisions: any warning fails, and so does a trainer without PTX for newer GPUs. Nothing runs
# here; the rest of the CUDA tests run the same files on a CPU (dev/emu), dev/cuda/gpu_check.sh runs
# them on a GPU.
cd "$(dirname "$0")/../.." || exit 1
passed=0 failed=0
if ! why=$(make -s nvcc 2>&1); then
    echo "skip    nvcc: $(echo "$why" | sed -n 's/^error: //p')"
    echo "test_nvcc: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
# Which the trainer's rule would make, and may warn that it had to take another text.
make data/shakespeare_char/train.bin >/dev/null 2>&1
for target in train_gpt2cu train_gpt2cu_fp32 test_gpt2cu test_gpt2cu_fp32 \
    dev/test/faults_gpt2cu; do
    rm -f "$target"
    if make GPU_ARCHS="80 90" PRECISION=BF16 "$target" >"$log" 2>&1 && [ -x "$target" ] &&
        ! grep -i warning "$log"; then
        passed=$((passed + 1)) && echo "ok      $target compiles for 8.0 and 9.0 without a warning"
    else
        failed=$((failed + 1)) && echo "FAILED  $target" && tail -n 30 "$log"
    fi
done

# What the fat binary's entries say of themselves: kind 1 is PTX, 2 machine code.
entries() {
    python3 - "$1" <<'PY'
import re, struct, sys
data = open(sys.argv[1], "rb").read()
found = set()
for at in (m.start() for m in re.finditer(re.escape(struct.pack("<I", 0xBA55ED50)), data)):
    version, header, size = struct.unpack_from("<HHQ", data, at + 4)
    entry, end = at + header, at + header + size
    while entry < end:
        kind, _, header, size = struct.unpack_from("<HHIQ", data, entry)
        arch, = struct.unpack_from("<I", data, entry + 28)
        found.add("%s of %d" % ({1: "PTX", 2: "code"}.get(kind, kind), arch))
        entry += header + size
print(*sorted(found), sep=", ")
PY
}
expected="PTX of 90, code of 80, code of 90"
for target in train_gpt2cu train_gpt2cu_fp32; do
    found=$(entries $target)
    if [ "$found" = "$expected" ]; then
        passed=$((passed + 1)) && echo "ok      $target starts on GPUs newer than 9.0: $found"
    else
        failed=$((failed + 1)) && echo "FAILED  $target has $found, expected $expected"
    fi
done

# GPUs that the trainer, or this nvcc, does not know beside one that both do, and alone.
mkdir "$log.gpus" && trap 'rm -rf "$log" "$log.gpus"' EXIT
for gpus in "6.1 8.6: 86" "9.0 8.0 99.0: 80 90" "7.5: 80 90" "99.0: 80 90"; do
    # shellcheck disable=SC2086 # a line each
    printf '#!/bin/sh\nprintf "%%s\\n" %s\n' "${gpus%:*}" >"$log.gpus/nvidia-smi"
    chmod +x "$log.gpus/nvidia-smi"
    found=$(PATH="$log.gpus:$PATH" env -u GPU_ARCHS make -n -W train_gpt2.cu train_gpt2cu |
        grep -oE 'code=sm_[0-9]+' | tr -dc '0-9\n' | tr '\n' ' ')
    if [ "$found" = "${gpus#*: } " ]; then
        passed=$((passed + 1)) && echo "ok      GPUs of ${gpus%:*}: built for $found"
    else
        failed=$((failed + 1)) && echo "FAILED  GPUs of $gpus expected, found $found"
    fi
done
# The compiler that nvcc is told to use is used with MPI's wrapper too.
printf '#!/bin/sh\ntouch "%s"\nexec g++ "$@"\n' "$log.gpus/used" >"$log.gpus/g++"
chmod +x "$log.gpus/g++"
for compiler in "$log.gpus/g++" "$log.gpus"; do
    rm -f "$log.gpus/used"
    if NVCC_CCBIN="$compiler" env -u OMPI_CXX -u MPICH_CXX make -s nvcc &&
        [ -f "$log.gpus/used" ]; then
        passed=$((passed + 1)) && echo "ok      NVCC_CCBIN=${compiler#"$log".} is used"
    else
        failed=$((failed + 1)) && echo "FAILED  NVCC_CCBIN=$compiler is not used"
    fi
done

echo "test_nvcc: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
