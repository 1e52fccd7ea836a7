// cudaProfilerStart and cudaProfilerStop, which do nothing here.
#ifndef EMU_CUDA_PROFILER_API_H
#define EMU_CUDA_PROFILER_API_H

#include "cuda_runtime.h"

#endif
