# GPT-2 with low-communication tensor parallelism. `make help` lists what can be made.
#
# Needs gcc (with OpenMP), make and python3 (for the data only). MPI is used when it is there, clang
# for fuzzing, g++ for the stand-in. train_gpt2cu needs the CUDA toolkit with cuBLAS, and uses NCCL
# when it is there.

define HELP
make             the CPU trainer, and the Shakespeare text it trains on when that is missing
make demo        trains t, s, sppp and p blocks for 500 updates each, under 3 minutes,
                 and prints what each costs
make check       the quickest tests that tell most, under a minute: run it before a commit
make test        builds and runs every test; ends with "N passed, N failed, N skipped"
make asan        the CPU trainer's tests under the address and undefined-behaviour sanitizers,
                 and the CUDA trainer's on the stand-in under the address sanitizer
make bench       the CPU kernels, as a share of what this machine can do
make clean       removes what was built; data/ and out/ stay

make plots       figures of a sweep of experiments (dev/runs/sweep), from its table and logs:
                 SWEEP=folder, by gnuplot
make report      a page on it, with what each pattern costs and how sure that is

make train_gpt2cu        the CUDA trainer for this machine's GPU (where there is none: for 8.0, 9.0
                         and newer); PRECISION=BF16 (default), FP32 or TF32
make train_gpt2cu_emu    the same file built by g++ with dev/emu, which stands in for a GPU: slow,
                         for tests; PRECISION as above
dev/cuda/all             benchmarks of its kernels, made by make dev/cuda/NAME
endef

CC ?= cc
PYTHON ?= python3
# -fno-math-errno and -fno-trapping-math let loops vectorize and change no result; NaN and Inf
# behave as IEEE says.
CFLAGS ?= -O3 -march=native
OPT := -std=gnu11 -fopenmp -fno-math-errno -fno-trapping-math -Wall -Wextra
SANITIZE := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
    -march=native
LIBS := -lm
# Tests and benchmarks include the trainer and do not call all of it.
PART := -Wno-unused-function

# MPI, when a program with it can be built: then mpirun -n 2 ./train_gpt2 is real tensor
# parallelism.
MPICC ?= mpicc
MPI_PROBE := \043include <mpi.h>\nint main(void) { return MPI_Init(0, 0); }\n
HAS_MPI := $(shell t=$$(mktemp) && printf '$(MPI_PROBE)' | \
    $(MPICC) -x c - -o $$t >/dev/null 2>&1 && echo 1; rm -f $$t)
ifeq ($(HAS_MPI),1)
TRAINER_CC := OMPI_CC="$(CC)" MPICH_CC="$(CC)" $(MPICC) -DUSE_MPI
else
TRAINER_CC := $(CC)
NO_MPI := no MPI here: one process runs all tensor ranks \
    (Debian: apt-get install libopenmpi-dev openmpi-bin)
endif

HEADERS := tp_blocks.h $(wildcard data/*.h)
TRAINER := train_gpt2.c $(HEADERS)
DATA := $(addprefix data/shakespeare_char/,train.bin val.bin tokenizer.bin)

# ---- the CPU trainer

all: train_gpt2

# MPI that comes or goes builds anew what is built with it.
dev/.mpi: always
	@echo '$(TRAINER_CC)' | cmp -s - $@ || echo '$(TRAINER_CC)' >$@

train_gpt2: $(TRAINER) dev/.mpi | $(DATA)
	$(if $(NO_MPI),@echo "$(NO_MPI)")
	$(TRAINER_CC) $(CFLAGS) $(OPT) $< -o $@ $(LIBS)

# The default text: Shakespeare, or when it cannot be had, a text that says it is not. What one run
# makes are targets of one pattern, in which % is a dot: older makes know no grouped targets.
$(subst .,%,$(DATA)):
	$(PYTHON) data/shakespeare_char.py --fallback

# ---- its tests

TEST_HEADERS := dev/test/check.h dev/test/scalar_plan.h

test_gpt2: test_gpt2.c $(TEST_HEADERS) $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

test_gpt2_double: test_gpt2.c $(TEST_HEADERS) $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

dev/gradcheck: dev/gradcheck.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

# Copies of the trainers with mistakes that the tests are seen to fail on: dev/test/faults.txt.
dev/test/train_gpt2_faulty.%: train_gpt2.% dev/test/faults dev/test/faults.txt
	dev/test/faults $< >$@

dev/test/faults_gpt2: test_gpt2.c $(TEST_HEADERS) dev/test/train_gpt2_faulty.c $(HEADERS)
	$(CC) $(CFLAGS) $(OPT) $(PART) -I. -DPLANTED_FAULTS $< -o $@ $(LIBS)

# Replicas are compared after every update, and PLANTED_FAULT=REPLICA_DRIFTS makes rank 1's drift.
dev/test/train_faulty: dev/test/train_gpt2_faulty.c $(HEADERS) dev/.mpi
	$(TRAINER_CC) $(CFLAGS) $(OPT) -I. -DDEBUG $< -o $@ $(LIBS)

# The same programs with sanitizers, under names of their own.
train_gpt2_asan: $(TRAINER) | $(DATA)
	$(CC) $(SANITIZE) $(OPT) $< -o $@ $(LIBS)

test_gpt2_asan: test_gpt2.c $(TEST_HEADERS) $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/gradcheck_asan: dev/gradcheck.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

# What dev/test/bpe.sh reads tokens from.
dev/test/encode: dev/test/encode.c $(HEADERS)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@

# ---- its benchmarks, and what a network would cost

dev/bench_cpu dev/bench_generate: %: %.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/net/plan: dev/net/plan.c $(HEADERS)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/net/bench_allreduce: dev/net/bench_allreduce.c $(HEADERS) dev/.mpi
	$(TRAINER_CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

# ---- experiments

SWEEP ?= out/sweep

dev/runs/sweep dev/runs/report: %: %.c dev/runs/table.h $(HEADERS)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/runs/syncs: %: %.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/runs/sweep_asan dev/runs/report_asan: %_asan: %.c dev/runs/table.h $(HEADERS)
	$(CC) $(SANITIZE) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/runs/syncs_asan: %_asan: %.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) $< -o $@ $(LIBS)

plots: dev/net/plan dev/runs/report
	dev/runs/plot.sh $(SWEEP)

report: dev/runs/report
	dev/runs/report -k dev/runs/known.tsv $(SWEEP)/runs.tsv >$(SWEEP)/report.md.part
	mv $(SWEEP)/report.md.part $(SWEEP)/report.md

# ---- the CUDA trainer

NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
PRECISION ?= BF16
ifeq ($(filter BF16 FP32 TF32,$(PRECISION)),)
$(error PRECISION=$(PRECISION): expected BF16, FP32 or TF32)
endif
# Compute capabilities, such as "90": those of the GPUs here that the trainer and this nvcc know.
GPUS_HERE = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
    tr -d . | awk '/^[0-9]+$$/ && $$1 >= 80' | sort -nu)
NVCC_KNOWS = $(shell $(NVCC) --list-gpu-arch 2>/dev/null | sed -n 's/^compute_//p')
GPU_ARCHS ?= $(or $(filter $(NVCC_KNOWS),$(GPUS_HERE)),80 90)
TRAINER_CU := train_gpt2.cu $(wildcard dev/cuda/*.cuh) dev/emu/trainer.h $(HEADERS)

# Machine code for each of them, and PTX of the last: newer GPUs compile it as the program starts.
GPU_NEWEST = $(lastword $(GPU_ARCHS))
NVCC_FLAGS = -std=c++20 -O3 -lineinfo \
    $(foreach a,$(GPU_ARCHS),-gencode=arch=compute_$(a),code=sm_$(a)) \
    -gencode=arch=compute_$(GPU_NEWEST),code=compute_$(GPU_NEWEST) \
    -Xcompiler -Wall,-Wextra,-Wno-missing-field-initializers,-fopenmp \
    -Xcompiler -fno-math-errno,-fno-trapping-math
# Where nvcc has its libraries, the loader need not know of them.
CUDA = $(dir $(shell command -v $(NVCC)))..
CUBLAS = $(firstword $(wildcard $(CUDA)/lib64/libcublasLt.so $(CUDA)/lib/libcublasLt.so))
NVCC_LIBS = -lcublasLt -lm $(addprefix -Xlinker -rpath=,$(abspath $(dir $(CUBLAS))))
ifneq ($(NVCC),)
NCCL_PROBE := \043include <nccl.h>\nint main(void) { ncclConfig_t c = NCCL_CONFIG_INITIALIZER; \
    c.maxCTAs = c.cgaClusterSize = 1; return ncclGetVersion(&c.maxCTAs); }\n
HAS_NCCL := $(shell t=$$(mktemp -u).cu && printf '$(NCCL_PROBE)' >$$t && \
    $(NVCC) -std=c++20 $$t -o $$t.out -lnccl >/dev/null 2>&1 && echo 1; rm -f $$t $$t.out)
endif
ifeq ($(HAS_MPI)$(HAS_NCCL),11)
NVCC_FLAGS += -DUSE_NCCL
NVCC_LIBS += -lnccl
endif
ifeq ($(HAS_MPI),1)
MPICXX ?= mpicxx
NVCC_FLAGS += -ccbin $(MPICXX) -DUSE_MPI
ifneq ($(NVCC_CCBIN),) # the compiler, or its folder, that nvcc would take without -ccbin
OMPI_CXX ?= $(or $(wildcard $(NVCC_CCBIN)/g++),$(NVCC_CCBIN))
MPICH_CXX ?= $(OMPI_CXX)
export OMPI_CXX MPICH_CXX
endif
endif

# A change of PRECISION, of the GPU or of the libraries builds train_gpt2cu and train_gpt2cu_emu
# anew.
BUILD = $(PRECISION) $(GPU_ARCHS) $(HAS_MPI)$(HAS_NCCL)
dev/.precision: always
	@echo "$(BUILD)" | cmp -s - $@ || echo "$(BUILD)" >$@

NO_NVCC := error: no nvcc here; train_gpt2cu needs the CUDA toolkit 12 or 13 with cuBLAS \
    (make train_gpt2cu_emu needs none)
NO_GXX = error: $(NVCC) finds no g++ that it can use (Debian: apt-get install g++; an older one by \
    NVCC_CCBIN=g++-12):
ifeq ($(shell command -v $(NVCC)),)
nvcc:
	@echo "$(NO_NVCC)" >&2; exit 1
else
NVCC_TRY = $(NVCC) $(filter -std=% -ccbin $(MPICXX),$(NVCC_FLAGS)) -x cu -E /dev/null
nvcc:
	@why=$$($(NVCC_TRY) 2>&1 >/dev/null) || { echo "$(NO_GXX)" $$why >&2; exit 1; }
endif

train_gpt2cu: $(TRAINER_CU) dev/.precision | nvcc $(DATA)
	$(NVCC) $(NVCC_FLAGS) -DPRECISION_$(PRECISION) $< -o $@ $(NVCC_LIBS)

train_gpt2cu_fp32: $(TRAINER_CU) | nvcc $(DATA)
	$(NVCC) $(NVCC_FLAGS) -DPRECISION_FP32 $< -o $@ $(NVCC_LIBS)

# ---- its tests: they compare with the CPU trainer, linked in

NVCC_PART := -diag-suppress 177 -Xcompiler -Wno-unused-function

dev/test/oracle.o: dev/test/oracle.c dev/test/oracle.h $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -c $< -o $@

TEST_CU := test_gpt2cu.cu dev/test/check.h dev/test/oracle.o $(TRAINER_CU)

test_gpt2cu: $(TEST_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) $(NVCC_PART) -DPRECISION_BF16 $< dev/test/oracle.o -o $@ $(NVCC_LIBS)

test_gpt2cu_fp32: $(TEST_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) $(NVCC_PART) -DPRECISION_FP32 $< dev/test/oracle.o -o $@ $(NVCC_LIBS)

FAULTS_CU := $(TEST_CU:train_gpt2.cu=dev/test/train_gpt2_faulty.cu)

dev/test/faults_gpt2cu: $(FAULTS_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) $(NVCC_PART) -I. -DPLANTED_FAULTS -DPRECISION_BF16 $< \
	    dev/test/oracle.o -o $@ $(NVCC_LIBS)

dev/test/faults_gpt2cu_fp32: $(FAULTS_CU) | nvcc
	$(NVCC) $(NVCC_FLAGS) $(NVCC_PART) -I. -DPLANTED_FAULTS -DPRECISION_FP32 $< \
	    dev/test/oracle.o -o $@ $(NVCC_LIBS)

# ---- the stand-in for a GPU, and both on it
#
# Static shared memory is fresh NaN without the address sanitizer, fenced with it: the tests run in
# both builds. The name of a program says which it is: _asan, and fp32 or else bf16. The trainer,
# where it has no fp32 in its name, is of PRECISION.

CXX ?= g++
EMU := $(wildcard dev/emu/*.h dev/emu/nvtx3/*.h) dev/emu/emu.cpp
ifeq ($(HAS_MPI),1)
EMU_CXX = OMPI_CXX="$(CXX)" MPICH_CXX="$(CXX)" $(MPICXX) -DUSE_MPI -DUSE_NCCL
EMU_STEM := dev/emu/emu_mpi
else
EMU_CXX = $(CXX)
EMU_STEM := dev/emu/emu
endif
EMU_ASAN_FLAGS = $(if $(findstring _asan,$@),-fsanitize=address -fno-omit-frame-pointer)
EMU_FLAGS = -x c++ -std=c++20 -O2 -g -fopenmp -Wall -Wextra -Wno-missing-field-initializers \
    -Wno-unknown-pragmas -Idev/emu \
    $(EMU_ASAN_FLAGS)
EMU_PRECISION = -DPRECISION_$(if $(findstring fp32,$@),FP32,BF16)
EMU_OBJECT = $(EMU_STEM)$(if $(findstring _asan,$@),_asan).o

EMU_TRAINERS := train_gpt2cu_emu train_gpt2cu_emu_fp32
EMU_TRAINERS_ASAN := train_gpt2cu_emu_asan
EMU_TESTERS := test_gpt2cu_emu test_gpt2cu_emu_fp32
EMU_FAULTS := dev/test/faults_gpt2cu_emu dev/test/faults_gpt2cu_emu_fp32
EMU_TESTERS_ASAN := test_gpt2cu_emu_asan test_gpt2cu_emu_fp32_asan

$(EMU_STEM).o $(EMU_STEM)_asan.o: $(EMU)
	$(EMU_CXX) $(EMU_FLAGS) -c dev/emu/emu.cpp -o $@

$(EMU_TRAINERS) $(EMU_TESTERS) dev/emu/test_emu: $(EMU_STEM).o
$(EMU_FAULTS) dev/test/train_faulty_emu: $(EMU_STEM).o
$(EMU_TRAINERS_ASAN) $(EMU_TESTERS_ASAN) dev/emu/test_emu_asan: $(EMU_STEM)_asan.o

train_gpt2cu_emu $(EMU_TRAINERS_ASAN): private EMU_PRECISION = -DPRECISION_$(PRECISION)
train_gpt2cu_emu $(EMU_TRAINERS_ASAN): dev/.precision
$(EMU_TRAINERS) $(EMU_TRAINERS_ASAN): $(TRAINER_CU) | $(DATA)
	$(EMU_CXX) $(EMU_FLAGS) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

$(EMU_TESTERS) $(EMU_TESTERS_ASAN): $(TEST_CU)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) $< \
	    -x none $(EMU_OBJECT) dev/test/oracle.o -o $@ $(LIBS)

$(EMU_FAULTS): $(FAULTS_CU)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) -I. -DPLANTED_FAULTS $(EMU_PRECISION) $< \
	    -x none $(EMU_OBJECT) dev/test/oracle.o -o $@ $(LIBS)

# Replicas are compared after every update, and PLANTED_FAULT=COUNT_IN_BYTES tells NCCL bytes.
dev/test/train_faulty_emu: dev/test/train_gpt2_faulty.cu $(TRAINER_CU) | $(DATA)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) -I. -DDEBUG -DPRECISION_FP32 $< \
	    -x none $(EMU_OBJECT) -o $@ $(LIBS)

dev/emu/test_emu dev/emu/test_emu_asan: dev/emu/test_emu.cpp
	$(EMU_CXX) $(EMU_FLAGS) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

# The stand-in that counts the bytes of kernels (dev/emu/traffic.h): the program's own accesses are
# instrumented, nothing else.
TRAFFIC_FLAGS = -O1 -fno-tree-sra -fno-builtin-memcpy -fno-builtin-memmove -fno-builtin-memset \
    -fsanitize=thread
TRAFFIC_LINK = -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset
TRAFFIC_OBJECTS := dev/emu/traffic.o $(EMU_STEM).o

dev/emu/traffic.o: dev/emu/traffic.cpp $(EMU)
	$(EMU_CXX) $(EMU_FLAGS) -c $< -o $@

dev/emu/test_traffic: dev/emu/test_traffic.cpp $(TRAFFIC_OBJECTS)
	$(EMU_CXX) $(EMU_FLAGS) $(TRAFFIC_FLAGS) -c $< -o $@.o
	$(EMU_CXX) -fopenmp $@.o $(TRAFFIC_OBJECTS) $(TRAFFIC_LINK) -o $@ $(LIBS)
	rm -f $@.o

# ---- benchmarks of CUDA kernels: dev/cuda/all runs them
#
# NAME for a GPU, NAME_emu and NAME_emu_fp32 on the stand-in; NAME_emu_traffic counts bytes there.

CUDA_BENCHES := $(basename $(wildcard dev/cuda/*.cu dev/cuda/hopper/*.cu))
CUDA_SHARED := $(wildcard dev/cuda/*.h dev/cuda/hopper/*.cuh) $(TRAINER_CU)

$(CUDA_BENCHES): %: %.cu $(CUDA_SHARED) dev/.precision | nvcc
	$(NVCC) $(NVCC_FLAGS) $(NVCC_PART) -DPRECISION_$(PRECISION) $< -o $@ $(NVCC_LIBS)

dev/cuda/hopper/attention_hopper: private override GPU_ARCHS = 90a
# g++ notes how it passes tensor maps.
dev/cuda/hopper/attention_hopper_emu: private EMU_FLAGS += -Wno-psabi

$(CUDA_BENCHES:=_emu) $(CUDA_BENCHES:=_emu_fp32): $(CUDA_SHARED) $(EMU_STEM).o
$(CUDA_BENCHES:=_emu): %_emu: %.cu
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

$(CUDA_BENCHES:=_emu_fp32): %_emu_fp32: %.cu
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) $< -x none $(EMU_OBJECT) -o $@ $(LIBS)

$(CUDA_BENCHES:=_emu_traffic): %_emu_traffic: %.cu $(CUDA_SHARED) $(TRAFFIC_OBJECTS)
	$(EMU_CXX) $(EMU_FLAGS) $(PART) $(EMU_PRECISION) -DEMU_TRAFFIC $(TRAFFIC_FLAGS) -c $< -o $@.o
	$(EMU_CXX) -fopenmp $@.o $(TRAFFIC_OBJECTS) $(TRAFFIC_LINK) -o $@ $(LIBS)
	rm -f $@.o

# ---- what is run

help:
	@: $(info $(HELP))

demo: train_gpt2
	dev/demo.sh

bench: dev/bench_cpu dev/bench_generate
	dev/bench_cpu
	dev/bench_generate

# The CUDA trainer's tests, on the stand-in.
ifeq ($(shell $(CXX) -std=c++20 -x c++ -fsyntax-only /dev/null >/dev/null 2>&1 && echo 1),1)
EMU_TESTS := dev/test/emu.sh dev/emu/test_traffic $(EMU_TESTERS:%=./%) $(EMU_FAULTS) \
    dev/test/cuda.sh "dev/cuda/all --check"
EMU_BUILT := dev/emu/test_emu dev/emu/test_emu_asan dev/emu/test_traffic \
    $(EMU_TRAINERS) $(EMU_TESTERS) $(EMU_FAULTS) dev/test/train_faulty_emu
EMU_ASAN := $(EMU_TESTERS_ASAN:%=./%)
EMU_ASAN_BUILT := $(EMU_TESTERS_ASAN)
else
EMU_TESTS := "dev/test/skip.sh test_gpt2cu $(CXX) with C++20 (g++ 10 or newer) is not here: the \
    CUDA trainer was not tested (Debian: apt-get install g++)"
EMU_ASAN := $(EMU_TESTS)
endif

CHECK_BUILT := train_gpt2 test_gpt2 dev/gradcheck
TEST_BUILT := $(CHECK_BUILT) test_gpt2_double dev/bench_cpu dev/bench_generate dev/net/plan \
    dev/net/bench_allreduce dev/test/faults_gpt2 dev/test/train_faulty dev/test/encode \
    dev/runs/sweep dev/runs/report dev/runs/syncs $(EMU_BUILT)

check: $(CHECK_BUILT)
	dev/test/run.sh ./test_gpt2 dev/gradcheck "dev/test/cli.sh --short"

test: $(TEST_BUILT)
	dev/test/run.sh ./test_gpt2 ./test_gpt2_double dev/gradcheck dev/test/faults_gpt2 \
	    "dev/test/faults --test" dev/test/cli.sh dev/test/checkpoints.sh dev/test/stops.sh \
	    dev/test/mpi.sh "dev/net/netns.sh --test" "dev/net/ssh.sh --test" dev/test/slurm.sh \
	    dev/test/plan.sh dev/test/data.sh dev/test/bpe.sh dev/test/hf.sh dev/test/fuzz.sh \
	    dev/test/sweep.sh dev/test/syncs.sh "dev/test/attack --short" $(EMU_TESTS) \
	    dev/test/nvcc.sh "dev/cuda/resources --test"

asan: train_gpt2_asan test_gpt2_asan dev/gradcheck_asan dev/runs/syncs_asan dev/runs/sweep_asan \
    dev/runs/report_asan dev/net/plan train_gpt2 $(EMU_ASAN_BUILT)
	TRAIN=./train_gpt2_asan SYNCS=dev/runs/syncs_asan SWEEP=dev/runs/sweep_asan \
	    REPORT=dev/runs/report_asan dev/test/run.sh ./test_gpt2_asan \
	    dev/gradcheck_asan dev/test/cli.sh dev/test/checkpoints.sh dev/test/stops.sh \
	    dev/test/syncs.sh dev/test/sweep.sh $(EMU_ASAN)

clean:
	rm -f $(TEST_BUILT) train_gpt2_asan test_gpt2_asan dev/gradcheck_asan \
	    dev/runs/sweep_asan dev/runs/report_asan dev/runs/syncs_asan
	rm -f train_gpt2cu train_gpt2cu_* test_gpt2cu test_gpt2cu_emu* test_gpt2cu_fp32
	rm -f dev/.precision dev/.mpi
	rm -f dev/test/*.o dev/test/fuzz/fuzz_files dev/test/fuzz/fuzz_options
	rm -f dev/test/train_gpt2_faulty.* dev/test/train_faulty_emu dev/test/faults_gpt2cu*
	rm -f dev/emu/*.o dev/emu/test_emu dev/emu/test_emu_asan dev/emu/test_traffic
	rm -f $(foreach x,_emu _emu_fp32 _emu_traffic,$(CUDA_BENCHES:=$(x))) $(CUDA_BENCHES) \
	    $(CUDA_BENCHES:=_emu_traffic.o)

# A copy that dev/test/faults refused to make is not there at the next try either.
.DELETE_ON_ERROR:
.PHONY: all help demo bench check test asan clean plots report nvcc always
