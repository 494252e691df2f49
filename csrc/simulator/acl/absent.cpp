// What torch_npu links but nothing here needs: it loads only if each exists. A call fails and names
// the function. CANN's headers stay out, since one signature serves all: in C, a caller may pass
// more than is read.
namespace npu_rope::acl {
int absent(const char* function);
}

#define ABSENT(function) \
  extern "C" int function() { return npu_rope::acl::absent(#function); }

ABSENT(aclGetDeviceCapability)
ABSENT(aclrtBinaryGetFunction)
ABSENT(aclrtBinaryLoadFromData)
ABSENT(aclrtDeviceGetBareTgid)
ABSENT(aclrtFreePhysical)
ABSENT(aclrtGetFunctionAddr)
ABSENT(aclrtMallocPhysical)
ABSENT(aclrtMapMem)
ABSENT(aclrtMemExportToShareableHandle)
ABSENT(aclrtMemImportFromShareableHandle)
ABSENT(aclrtMemSetPidToShareableHandle)
ABSENT(aclrtProcessReport)
ABSENT(aclrtReleaseMemAddress)
ABSENT(aclrtReserveMemAddress)
ABSENT(aclrtUnmapMem)
ABSENT(rtDevBinaryRegister)
ABSENT(rtFunctionRegister)
ABSENT(rtGetC2cCtrlAddr)
ABSENT(rtKernelLaunch)
