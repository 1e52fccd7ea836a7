// In what train_gpt2.cu differs on the stand-in. On a GPU this is nothing. Included by it after the
// headers of CUDA and NCCL.
#ifndef EMU_TRAINER_H
#define EMU_TRAINER_H

#ifdef CUDA_EMULATED
#define DEFAULT_MODEL "4x4x32" // small enough to be waited for
#define DEFAULT_T "16"

// Bytes to leave free behind the room that begins at `at`. Nobody may touch them, nor what is left
// of the room behind its first `bytes`, which are free to use though a fence stood there before. at
// NULL: nothing is there yet.
static size_t fence_behind(const void *at, size_t bytes, size_t room) {
    const size_t fence = 256;
    if (at) {
        emu_unpoison(at, bytes);
        emu_poison((const char *)at + bytes, room + fence - bytes);
    }
    return fence;
}

#define NCCL_WORLD(comm) emu_set_world(comm) // the processes that have not stepped aside
#define HOST_YIELD() // the host is the GPU, and has something to do
#else
static inline size_t fence_behind(const void *, size_t, size_t) { return 0; }
#define NCCL_WORLD(comm)
#define HOST_YIELD() sched_yield()
#endif

#endif
