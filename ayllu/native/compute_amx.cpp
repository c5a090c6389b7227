// The kernels of compute.h for one machine level; CMakeLists.txt sets the level's compiler flags for this file.
#define NAME "AMX"
#include "compute.h"
