// NVTX ranges, which nobody records here; closing one that is not open ends the program.
#ifndef EMU_NVTX_H
#define EMU_NVTX_H

#include <stdio.h>
#include <stdlib.h>

inline int emu_ranges_open;

inline int nvtxRangePushA(const char *name) {
    if (!name) fprintf(stderr, "emu: nvtxRangePush of a range without a name\n"), abort();
    return emu_ranges_open++;
}

inline int nvtxRangePop(void) {
    if (!emu_ranges_open) fprintf(stderr, "emu: nvtxRangePop, but no range is open\n"), abort();
    return --emu_ranges_open;
}

#endif
