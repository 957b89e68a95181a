// What the execution provider needs of the other ROCm libraries to make a session: handles that are not null.
#include "sim.h"

#ifdef SIM_HIPBLAS
EXPORT int hipblasCreate(void** handle) { return *handle = handle, 0; }
EXPORT int hipblasDestroy(void*) { return 0; }
EXPORT int hipblasSetStream(void*, void*) { return 0; }
#endif

#ifdef SIM_MIOPEN
EXPORT int miopenCreate(void** handle) { return *handle = handle, 0; }
EXPORT int miopenDestroy(void*) { return 0; }
EXPORT int miopenSetStream(void*, void*) { return 0; }
EXPORT const char* miopenGetErrorString(int) { return "the stand-in MIOpen computes nothing"; }
#endif
