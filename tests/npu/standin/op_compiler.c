// A stand-in for libacl_op_compiler.so, and for the other symbols of CANN that must resolve when torch_npu is loaded. What nothing in these tests may reach (operator
// compilation, graph dumps, virtual memory, custom kernels) ends the process and says its name; what torch_npu calls
// at its start (profiling hooks, compile options) has no effect.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#define UNUSED(name) \
    int name(void) { \
        fprintf(stderr, "stand-in CANN: %s was called, which no test may need\n", #name); \
        abort(); \
    }

// Descriptions of tensors and attributes for single operators of the graph engine.
UNUSED(aclCreateDataBuffer) UNUSED(aclDestroyDataBuffer) UNUSED(aclCreateTensorDesc) UNUSED(aclDestroyTensorDesc)
UNUSED(aclGetTensorDescDimV2) UNUSED(aclGetTensorDescFormat) UNUSED(aclGetTensorDescNumDims)
UNUSED(aclGetTensorDescType) UNUSED(aclSetTensorDescName) UNUSED(aclSetTensorFormat) UNUSED(aclSetTensorPlaceMent)
UNUSED(aclSetTensorShape) UNUSED(aclopCompileAndExecute) UNUSED(aclopCompileAndExecuteV2) UNUSED(aclopCreateAttr)
UNUSED(aclopDestroyAttr) UNUSED(aclopSetAttrBool) UNUSED(aclopSetAttrDataType) UNUSED(aclopSetAttrFloat)
UNUSED(aclopSetAttrInt) UNUSED(aclopSetAttrListBool) UNUSED(aclopSetAttrListFloat) UNUSED(aclopSetAttrListInt)
UNUSED(aclopSetAttrListListInt) UNUSED(aclopSetAttrString)
// Dumps of operators' inputs and outputs.
UNUSED(aclmdlInitDump) UNUSED(aclmdlSetDump) UNUSED(aclmdlFinalizeDump)
// Physical memory apart from its addresses (expandable segments), and between processes.
UNUSED(aclrtMallocPhysical) UNUSED(aclrtFreePhysical) UNUSED(aclrtReserveMemAddress) UNUSED(aclrtReleaseMemAddress)
UNUSED(aclrtMapMem) UNUSED(aclrtUnmapMem) UNUSED(aclrtMemExportToShareableHandle)
UNUSED(aclrtMemImportFromShareableHandle) UNUSED(aclrtMemSetPidToShareableHandle)
// Kernels compiled by the user.
UNUSED(aclrtBinaryLoadFromData) UNUSED(aclrtBinaryGetFunction) UNUSED(aclrtGetFunctionAddr)
UNUSED(rtDevBinaryRegister) UNUSED(rtFunctionRegister) UNUSED(rtGetC2cCtrlAddr) UNUSED(rtKernelLaunch)

// Options of the operator compiler: precision mode, just-in-time compilation.
int aclSetCompileopt(int option, const char *value) { return 0; }
// Bytes of an option's value.
size_t aclGetCompileoptSize(int option) { return 1; }
// An option's value.
int aclGetCompileopt(int option, char *value, size_t length) { *value = 0; return 0; }
// Switches of the process and of a context, such as determinism.
int aclrtSetSysParamOpt(int option, int64_t value) { return 0; }
int aclrtGetSysParamOpt(int option, int64_t *value) { *value = 0; return 0; }
int aclrtCtxSetSysParamOpt(int option, int64_t value) { return 0; }

// Reports of the profiler.
int MsprofRegisterCallback(uint32_t module, int (*handle)(uint32_t, void *, uint32_t)) { return 0; }
int MsprofReportApi(uint32_t flag, const void *api) { return 0; }
int MsprofReportCompactInfo(uint32_t flag, const void *data, uint32_t length) { return 0; }
int MsprofReportAdditionalInfo(uint32_t flag, const void *data, uint32_t length) { return 0; }
uint64_t MsprofGetHashId(const char *text, size_t length) { return 0; }
uint64_t MsprofSysCycleTime(void) { return 0; }
