// The kernels for waves of 64 lanes.
#include "machine.h"

#define SPARK_EMULATION 64
namespace wave64 {
#include "../spark.hip"
}
