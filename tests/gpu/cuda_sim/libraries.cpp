// What the CUDA execution provider needs of the other libraries to make a session: handles that are not null.
#include "sim.h"

#ifdef SIM_CUBLAS
EXPORT int cublasCreate_v2(void** handle) { return *handle = handle, 0; }
EXPORT int cublasDestroy_v2(void*) { return 0; }
EXPORT int cublasSetStream_v2(void*, void*) { return 0; }
EXPORT int cublasSetMathMode(void*, int) { return 0; }
#endif

#ifdef SIM_CUBLASLT
EXPORT int cublasLtCreate(void** handle) { return *handle = handle, 0; }
EXPORT int cublasLtDestroy(void*) { return 0; }
#endif
