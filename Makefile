# GPT-2 with low-communication tensor parallelism.
#
#   make             the CPU trainer, and the Shakespeare text it trains on when that is missing
#   make demo        trains t, s, sppp and p blocks for 500 updates each and prints what each costs (under 3 minutes)
#   make test        builds and runs every test; ends with "N passed, N failed, N skipped"
#   make asan        the same tests under the address and undefined-behaviour sanitizers
#   make bench       the CPU kernels, as a share of what this machine can do
#
# Needs gcc (with OpenMP), make and python3 (for the data only). MPI is used when it is there, clang for fuzzing.

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

test_gpt2: test_gpt2.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

test_gpt2_double: test_gpt2.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

dev/gradcheck: dev/gradcheck.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

dev/bench_cpu: dev/bench_cpu.c $(TRAINER)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

# For the tests: replicas are compared after every update, and PLANTED_FAULT=4 makes rank 1's drift.
dev/train_faulty: $(TRAINER)
	$(TRAINER_CC) $(CFLAGS) $(OPT) -DDEBUG -DPLANTED_FAULTS $< -o $@ $(LIBS)

dev/plan: dev/plan.c tp_blocks.h $(wildcard data/*.h)
	$(CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/bench_allreduce: dev/bench_allreduce.c tp_blocks.h data/files.h
	$(TRAINER_CC) $(CFLAGS) $(OPT) $(PART) $< -o $@ $(LIBS)

# The same programs with sanitizers, under names of their own.
train_gpt2_asan: $(TRAINER) | $(DATA)
	$(CC) $(SANITIZE) $(OPT) $< -o $@ $(LIBS)

test_gpt2_asan: test_gpt2.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) $< -o $@ $(LIBS)

dev/gradcheck_asan: dev/gradcheck.c $(TRAINER)
	$(CC) $(SANITIZE) $(OPT) $(PART) -DREAL=double $< -o $@ $(LIBS)

demo: train_gpt2
	dev/demo.sh

bench: dev/bench_cpu
	dev/bench_cpu

test: train_gpt2 test_gpt2 test_gpt2_double dev/gradcheck dev/plan dev/bench_allreduce dev/train_faulty
	dev/run_tests.sh ./test_gpt2 ./test_gpt2_double dev/gradcheck dev/test_cli.sh dev/test_mpi.sh "dev/netns.sh --test" dev/test_plan.sh \
	    dev/test_data.sh dev/test_fuzz.sh

asan: train_gpt2_asan test_gpt2_asan dev/gradcheck_asan
	TRAIN=./train_gpt2_asan dev/run_tests.sh ./test_gpt2_asan dev/gradcheck_asan dev/test_cli.sh

clean:
	rm -f train_gpt2 train_gpt2_asan test_gpt2 test_gpt2_asan test_gpt2_double
	rm -f dev/gradcheck dev/gradcheck_asan dev/bench_cpu dev/plan dev/bench_allreduce dev/train_faulty dev/fuzz/fuzz_files dev/fuzz/fuzz_options

.PHONY: all demo bench test asan clean
