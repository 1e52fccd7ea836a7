# GPT-2 with low-communication tensor parallelism.
#
#   make             the CPU trainer, and the Shakespeare text it trains on when that is missing
#   make demo        trains t, s, sppp and p blocks for 500 updates each and prints what each costs (under 3 minutes)
#   make test        builds and runs every test; ends with "N passed, N failed, N skipped"
#   make asan        the same tests under the address and undefined-behaviour sanitizers
#   make bench       the CPU kernels, as a share of what this machine can do
#
#   make plots       figures of a sweep of experiments (dev/sweep), from its table and logs: SWEEP=folder, by gnuplot
#   make report      a page on it, with what each pattern costs and how sure that is
#
#   make train_gpt2cu        the CUDA trainer for this machine's GPU (for 8.0 and 9.0 where there is none); PRECISION=BF16
#                            (default), FP32 or TF32
#   make train_gpt2cu_emu    the same file built by g++ with dev/emu, which stands in for a GPU: slow, for tests
#   dev/cuda/all             benchmarks of its kernels, made by make dev/cuda/NAME
#
# Needs gcc (with OpenMP), make and python3 (for the data only). MPI is used when it is there, clang for fuzzing, g++ for the
# stand-in, and for train_gpt2cu the CUDA toolkit with cuBLAS, and NCCL when it is there.

CC ?= cc
PYTHON ?= python3
# -fno-math-errno and -fno-trapping-math let loops vectorize and change no result; NaN and Inf behave as IEEE says.
CFLAGS ?= -O3 -march=native
OPT := -std=gnu11 -fopenmp -fno-math-errno -fno-trapping-math -Wall -Wextra
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all -march=native
LIBS := -lm
# Tests and benchmarks include the trainer and do not call all of it.
PART := -Wno-unused-function

# MPI, when a program with it can be built: then mpirun -n 2 ./train_gpt2 is real tensor parallelism.
MPICC ?= mpicc
HAS_MPI := $(shell t=$$(mktemp) && printf '\043include <mpi.h>\nint main(void) { return MPI_Init(0, 0); }\n' | \
    $(MPICC) -x c - -o $$t >/dev/null 2>&1 && echo 1; rm -f $$t)
ifeq ($(HAS_MPI),1)
TRAINER_CC := OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) -DUSE_MPI
else
TRAINER_CC := $(CC)
endif

TRAINER := train_gpt2.c tp_blocks.h $(wildcard data/*.h)
DATA := data/shakespeare_char/train.bin

all: train_gpt2

train_gpt2: $(TRAINER) | $(DATA)
	$(if $(HAS_MPI),,@echo "no MPI here: one process runs all tensor ranks (Debian: apt-get install libopenmpi-dev openmpi-bin)")
	$(TRAINER_CC) $(CFLAGS) $(OPT) $< -o $@ $(LIBS)

# The default text: Shakespeare, or when it cannot be had, a text that says it is not.
$(DATA):
	$(PYTHON) data/shakespeare_char.py --fallback

test_gpt2: test_gpt2.c dev/test/check.h $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

test_gpt2_double: test_gpt2.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

dev/gradcheck: dev/gradcheck.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

dev/bench_cpu: dev/bench_cpu.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

# For the tests: replicas are compared after every update, and PLANTED_FAULT=4 makes rank 1's drift.
dev/test/train_faulty: $(TRAINER)
	$(TRAINER_CC) $(CFLAGS) $(OPT) -DDEBUG -DPLANTED_FAULTS $< -o $@ $(LIBS)

dev/net/plan: dev/net/plan.c tp_blocks.h $(wildcard data/*.h)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/net/bench_allreduce: dev/net/bench_allreduce.c tp_blocks.h data/files.h
	$(TRAINER_CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

# The same programs with sanitizers, under names of their own.
train_gpt2_asan: $(TRAINER) | $(DATA)
	$(CC) $(SANITIZE) $(OPT) $< -o $@ $(LIBS)

test_gpt2_asan: test_gpt2.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/gradcheck_asan: dev/gradcheck.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

# ---- experiments

# The program whose predictions dev/plot.sh draws.
export PLAN ?= dev/net/plan

SWEEP ?= out/sweep

dev/report: dev/report.c data/files.h
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

plots: dev/net/plan
	dev/plot.sh $(SWEEP)

report: dev/report
	dev/report $(SWEEP)/runs.tsv dev/runs/known.tsv >$(SWEEP)/report.md

# ---- CUDA

NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
PRECISION ?= BF16
$(if $(filter BF16 FP32 TF32,$(PRECISION)),,$(error PRECISION=$(PRECISION): expected BF16, FP32 or TF32))
# Compute capabilities, such as "90": those of the GPUs here.
GPU_ARCHS ?= $(or $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | grep -E '^[0-9.]+$$' | tr -d . | sort -u),80 90)
TRAINER_CU := train_gpt2.cu tp_blocks.h $(wildcard data/*.h)
EMU := $(wildcard dev/emu/*.h dev/emu/nvtx3/*.h) dev/emu/emu.cpp

NVCC_FLAGS = -std=c++20 -O3 -lineinfo $(foreach a,$(GPU_ARCHS),-gencode=arch=compute_$(a),code=sm_$(a)) -Xcompiler -Wall,-Wextra,-fopenmp
NVCC_LIBS = -lcublasLt -lm
ifneq ($(NVCC),)
HAS_NCCL := $(shell t=$$(mktemp -u).cu && printf '\043include <nccl.h>\nint main(void) { return ncclGetVersion(0); }\n' >$$t && \
    $(NVCC) -std=c++20 $$t -o $$t.out -lnccl >/dev/null 2>&1 && echo 1; rm -f $$t $$t.out)
endif
ifeq ($(HAS_MPI)$(HAS_NCCL),11)
NVCC_FLAGS += -DUSE_NCCL
NVCC_LIBS += -lnccl
endif
ifeq ($(HAS_MPI),1)
MPICXX ?= mpicxx
NVCC_FLAGS += -ccbin $(MPICXX) -DUSE_MPI
endif

# A change of PRECISION, of the GPU or of the libraries builds train_gpt2cu anew.
dev/.precision: always
	@echo "$(PRECISION) $(GPU_ARCHS) $(HAS_MPI)$(HAS_NCCL)" | cmp -s - $@ || echo "$(PRECISION) $(GPU_ARCHS) $(HAS_MPI)$(HAS_NCCL)" >$@

nvcc:
	@$(if $(NVCC),:,echo "error: no nvcc here; train_gpt2cu needs the CUDA toolkit 12 or 13 with cuBLAS (make train_gpt2cu_emu needs none)" >&2; exit 1)

train_gpt2cu: $(TRAINER_CU) dev/.precision | nvcc $(DATA)
	$(NVCC) $(NVCC_FLAGS) -DPRECISION_$(PRECISION) $< -o $@ $(NVCC_LIBS)

train_gpt2cu_fp32: $(TRAINER_CU) | nvcc $(DATA)
	$(NVCC) $(NVCC_FLAGS) -DPRECISION_FP32 $< -o $@ $(NVCC_LIBS)

# The tests compare with the CPU trainer, linked in.
dev/test/oracle.o: dev/test/oracle.c dev/test/oracle.h $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -c $< -o $@

test_gpt2cu: test_gpt2cu.cu dev/test/check.h dev/test/oracle.o $(TRAINER_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) -diag-suppress 177 -Xcompiler -Wno-unused-function -DPLANTED_FAULTS -DPRECISION_BF16 $< dev/test/oracle.o -o $@ $(NVCC_LIBS)

test_gpt2cu_fp32: test_gpt2cu.cu dev/test/check.h dev/test/oracle.o $(TRAINER_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) -diag-suppress 177 -Xcompiler -Wno-unused-function -DPLANTED_FAULTS -DPRECISION_FP32 $< dev/test/oracle.o -o $@ $(NVCC_LIBS)

# The stand-in. Static shared memory is fresh NaN without the address sanitizer, fenced with it: the tests run in both builds.
CXX ?= g++
EMU_CXX = $(if $(filter 1,$(HAS_MPI)),OMPI_CXX="$(CXX)" MPICH_CXX="$(CXX)" $(MPICXX) -DUSE_MPI -DUSE_NCCL,$(CXX))
EMU_FLAGS = -x c++ -std=c++20 -O2 -g -fopenmp -Wall -Wextra -Wno-unknown-pragmas -Idev/emu $(if $(findstring _asan,$@),-fsanitize=address -fno-omit-frame-pointer)
EMU_PRECISION = -DPRECISION_$(if $(findstring fp32,$@),FP32,BF16)

# The stand-in itself, once with and once without the address sanitizer.
EMU_STEM := dev/emu/emu$(if $(HAS_MPI),_mpi)
EMU_OBJECT = $(EMU_STEM)$(if $(findstring _asan,$@),_asan).o

$(EMU_STEM).o $(EMU_STEM)_asan.o: $(EMU)
	$(EMU_CXX) $(EMU_FLAGS) -c dev/emu/emu.cpp -o $@

train_gpt2cu_emu train_gpt2cu_emu_fp32 dev/test/train_faulty_emu test_gpt2cu_emu test_gpt2cu_emu_fp32 dev/emu/test_emu: $(EMU_STEM).o
train_gpt2cu_emu_asan test_gpt2cu_emu_asan test_gpt2cu_emu_fp32_asan dev/emu/test_emu_asan: $(EMU_STEM)_asan.o

train_gpt2cu_emu train_gpt2cu_emu_fp32 train_gpt2cu_emu_asan: $(TRAINER_CU) | $(DATA)
	$(EMU_CXX) $(EMU_FLAGS) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

test_gpt2cu_emu test_gpt2cu_emu_fp32 test_gpt2cu_emu_asan test_gpt2cu_emu_fp32_asan: test_gpt2cu.cu dev/test/check.h dev/test/oracle.o $(TRAINER_CU)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) -DPLANTED_FAULTS $(EMU_PRECISION) $< -x none $(EMU_OBJECT) dev/test/oracle.o -o $@ $(LIBS)

# The stand-in that counts the bytes of kernels (dev/emu/traffic.h): the program's own accesses are instrumented, nothing else.
TRAFFIC_FLAGS = -O1 -fno-tree-sra -fno-builtin-memcpy -fno-builtin-memmove -fno-builtin-memset -fsanitize=thread
TRAFFIC_LINK = -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset

dev/emu/traffic.o: dev/emu/traffic.cpp $(EMU)
	$(EMU_CXX) $(EMU_FLAGS) -c $< -o $@

dev/emu/test_traffic: dev/emu/test_traffic.cpp dev/emu/traffic.o $(EMU_STEM).o
	$(EMU_CXX) $(EMU_FLAGS) $(TRAFFIC_FLAGS) -c $< -o $@.o
	$(EMU_CXX) -fopenmp $@.o dev/emu/traffic.o $(EMU_STEM).o $(TRAFFIC_LINK) -o $@ $(LIBS)
	rm -f $@.o

dev/emu/test_emu dev/emu/test_emu_asan: dev/emu/test_emu.cpp
	$(EMU_CXX) $(EMU_FLAGS) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

# For the tests: replicas are compared after every update, and PLANTED_FAULT=2 tells NCCL bytes.
dev/test/train_faulty_emu: $(TRAINER_CU) | $(DATA)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) -DDEBUG -DPLANTED_FAULTS -DPRECISION_FP32 $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

# ---- benchmarks of CUDA kernels: dev/cuda/all runs them; NAME_emu on the stand-in, NAME_emu_traffic counts bytes there

CUDA_BENCHES := $(basename $(wildcard dev/cuda/*.cu dev/cuda/hopper/*.cu))
CUDA_SHARED := $(wildcard dev/cuda/*.h dev/cuda/hopper/*.cuh) $(TRAINER_CU)

$(CUDA_BENCHES): %: %.cu $(CUDA_SHARED) dev/.precision | nvcc
	$(NVCC) $(NVCC_FLAGS) -diag-suppress 177 -Xcompiler -Wno-unused-function -DPRECISION_$(PRECISION) $< -o $@ $(NVCC_LIBS)

dev/cuda/hopper/attention_hopper: override GPU_ARCHS = 90a
dev/cuda/hopper/attention_hopper_emu: EMU_FLAGS += -Wno-psabi # g++ notes how it passes tensor maps

$(CUDA_BENCHES:=_emu) $(CUDA_BENCHES:=_emu_fp32): $(CUDA_SHARED) $(EMU_STEM).o
$(CUDA_BENCHES:=_emu): %_emu: %.cu
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

$(CUDA_BENCHES:=_emu_fp32): %_emu_fp32: %.cu
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

$(CUDA_BENCHES:=_emu_traffic): %_emu_traffic: %.cu $(CUDA_SHARED) $(EMU_STEM).o dev/emu/traffic.o
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) -DEMU_TRAFFIC $(TRAFFIC_FLAGS) -c $< -o $@.o
	$(EMU_CXX) -fopenmp $@.o dev/emu/traffic.o $(EMU_STEM).o $(TRAFFIC_LINK) -o $@ $(LIBS)
	rm -f $@.o

demo: train_gpt2
	dev/demo.sh

bench: dev/bench_cpu
	dev/bench_cpu

# The CUDA trainer's tests, on the stand-in.
ifneq ($(shell command -v $(CXX)),)
EMU_TESTS := dev/test/emu.sh dev/emu/test_traffic ./test_gpt2cu_emu ./test_gpt2cu_emu_fp32 dev/test/cuda.sh "dev/cuda/all --check"
EMU_BUILT := dev/emu/test_emu dev/emu/test_emu_asan dev/emu/test_traffic test_gpt2cu_emu test_gpt2cu_emu_fp32 train_gpt2cu_emu train_gpt2cu_emu_fp32 dev/test/train_faulty_emu
EMU_ASAN := ./test_gpt2cu_emu_asan ./test_gpt2cu_emu_fp32_asan
EMU_ASAN_BUILT := test_gpt2cu_emu_asan test_gpt2cu_emu_fp32_asan
else
EMU_TESTS := "dev/test/skip.sh test_gpt2cu $(CXX) is not installed: the CUDA trainer was not tested (Debian: apt-get install g++)"
EMU_ASAN := $(EMU_TESTS)
endif

test: train_gpt2 test_gpt2 test_gpt2_double dev/gradcheck dev/net/plan dev/net/bench_allreduce dev/test/train_faulty dev/report $(EMU_BUILT)
	dev/test/run.sh ./test_gpt2 ./test_gpt2_double dev/gradcheck dev/test/cli.sh dev/test/mpi.sh "dev/net/netns.sh --test" dev/test/plan.sh \
	    dev/test/data.sh dev/test/fuzz.sh dev/test_sweep.sh $(EMU_TESTS) dev/test/nvcc.sh "dev/cuda/resources --test"

asan: train_gpt2_asan test_gpt2_asan dev/gradcheck_asan $(EMU_ASAN_BUILT)
	TRAIN=./train_gpt2_asan dev/test/run.sh ./test_gpt2_asan dev/gradcheck_asan dev/test/cli.sh $(EMU_ASAN)

clean:
	rm -f train_gpt2 train_gpt2_asan test_gpt2 test_gpt2_asan test_gpt2_double
	rm -f train_gpt2cu train_gpt2cu_* test_gpt2cu test_gpt2cu_emu* test_gpt2cu_fp32 dev/.precision dev/test/oracle.o dev/test/train_faulty_emu
	rm -f $(foreach x,_emu _emu_fp32 _emu_traffic,$(CUDA_BENCHES:=$(x))) $(CUDA_BENCHES) dev/emu/*.o
	rm -f dev/emu/test_emu dev/emu/test_emu_asan dev/emu/test_traffic dev/gradcheck dev/gradcheck_asan dev/bench_cpu dev/net/plan dev/report dev/net/bench_allreduce dev/test/train_faulty dev/test/fuzz/fuzz_files dev/test/fuzz/fuzz_options

.PHONY: all demo bench test asan clean plots report nvcc always
