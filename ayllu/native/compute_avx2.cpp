// The kernels of compute.h for one machine level; CMakeLists.txt sets the level's compiler flags for this file.
#define NAME "AVX2"
#include "compute.h"
