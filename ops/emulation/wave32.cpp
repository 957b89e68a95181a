// The kernels for waves of 32 lanes.
#include "machine.h"

#define SPARK_EMULATION 32
namespace wave32 {
#include "../spark.hip"
}
