#!/bin/sh
# Compiles the CUDA trainer and its tests with nvcc for compute capability 8.0 and 9.0, in both
# precisions: any warning fails. Nothing runs here; the rest of the CUDA tests run the same files on
# a CPU (dev/emu), dev/cuda/gpu_check.sh runs them on a GPU.
cd "$(dirname "$0")/../.." || exit 1
passed=0 failed=0
if ! command -v nvcc >/dev/null && ! [ -x /usr/local/cuda/bin/nvcc ]; then
    echo "skip    nvcc: not installed (the CUDA toolkit," \
        "https://developer.nvidia.com/cuda-downloads)"
    echo "test_nvcc: 0 passed, 0 failed, 1 skipped"
    exit 0
fi
if ! command -v "${CXX:-g++}" >/dev/null; then
    echo "skip    nvcc: it needs ${CXX:-g++}, which is not installed (Debian: apt-get install g++)"
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
echo "test_nvcc: $passed passed, $failed failed, 0 skipped"
[ "$failed" -eq 0 ]
