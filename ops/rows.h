// How rows of the cache are read and written. What sets formats apart is said by the call, not by a number of the
// format: whether codes of keys are companded or keys are in planes, how many scales a value row has, whether it is
// rotated.
#ifndef SPARK_ROWS_H
#define SPARK_ROWS_H

#include "numbers.h"
#include "draws.h"
#include "format/v2.h"
#include "format/v3.h"
#include "format/v1.h"

#endif
