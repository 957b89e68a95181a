"""The driver of the GPU that tests run on: what its functions and errors are called, on the stand-ins that write down
what they saw. HIP where SPARK_EMULATION names the kernels for its stand-in, else the CUDA driver.
"""

import os

HIP = "SPARK_EMULATION" in os.environ
PROVIDER = os.environ.get("SPARK_TEST_PROVIDER", "ROCMExecutionProvider")

ALLOCATE = "hipMalloc" if HIP else "cuMemAlloc_v2"
LAUNCH = "hipModuleLaunchKernel" if HIP else "cuLaunchKernel"
LOAD = "hipModuleLoadData" if HIP else "cuModuleLoadData"
COMPILE = "hiprtcCompileProgram" if HIP else "nvrtcCompileProgram"
PROPERTIES = "hipGetDevicePropertiesR0600" if HIP else "cuDeviceGetAttribute"
# How lines begin that speak of memory taken from the driver or given back.
MEMORY = ("hipMalloc", "hipFree", "hipHostMalloc", "hipHostFree") if HIP else ("cuMemAlloc", "cuMemFree", "cuMemHost")
# Name of the folder of compiled code.
FOLDER = "hip" if HIP else "cuda"
ERRORS = {2: "hipErrorOutOfMemory", 100: "hipErrorNoDevice", 719: "hipErrorLaunchFailure"} if HIP else {
    2: "CUDA_ERROR_OUT_OF_MEMORY", 100: "CUDA_ERROR_NO_DEVICE", 719: "CUDA_ERROR_LAUNCH_FAILED"}
ILLEGAL_ADDRESS = "hipErrorIllegalAddress" if HIP else "CUDA_ERROR_ILLEGAL_ADDRESS"
