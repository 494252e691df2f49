// The kernels of faults.cpp by name, for a launch.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

std::vector<std::string> fault_names();
void run_fault(const std::string& name, uint8_t* x, uint8_t* y);
