/*
Counts the bytes of device memory that kernels ask for, on the stand-in. The program is
compiled by g++ so that it calls a function at each of its accesses, as it does for the thread
sanitizer, and linked without that sanitizer's library: traffic.cpp has the functions. What is
not the program is compiled without.

  F="-x c++ -std=c++20 -g -Wno-unknown-pragmas -Idev/emu"
  g++ $F -O1 -fno-tree-sra -fno-builtin-mem{cpy,move,set} -fsanitize=thread -c program.cu
  g++ program.o $F -O2 dev/emu/emu.cpp dev/emu/traffic.cpp \
      -Wl,--wrap=memcpy,--wrap=memmove,--wrap=memset -o program

With these options the accesses are those that the source asks for: a struct of 16 bytes is copied
at once. (clang++ breaks it into its members.) A value that the source reads twice may be read once.

Counted are kernels alone: not cudaMemcpy and cudaMemset, not cuBLASLt and NCCL, not the host, not
shared memory. An atomic operation reads and writes. What is more than 16 bytes, a large struct or a
memcpy, is several accesses. Caches are unknown here: what a GPU's memory moves is between
read_once, where a cache has all that is read again, and `reads`.
*/
#ifndef EMU_TRAFFIC_H
#define EMU_TRAFFIC_H

#include <stdint.h>

typedef struct {
    uint64_t reads, writes;            // bytes that threads of kernels asked for, in device memory
    uint64_t read_once, written_once;  // distinct bytes among them
    uint64_t accesses, accesses_16;    // how many, and how many of 16 bytes
} EmuTraffic;

// Both wait for the device, so that what was launched in between is what is counted.
void emu_traffic_begin(void);
EmuTraffic emu_traffic_end(void);

#endif
