// A stand-in for the two operators of libopapi.so that torch_npu calls from C++, past the dispatcher, where operators.py
// cannot replace them: its process group pads what it gathers to 512 bytes, and widens bytes before it sums them.
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int64_t numel; int type; char *data; } tensor;
typedef struct { const tensor *from; const tensor *to; } executor;

// Bytes of a value by aclDataType: float, float16, int8, int32, uint8, -, int16, uint16, uint32, int64, uint64, double,
// bool; bfloat16 is 27.
static const int WIDTH[28] = {4, 2, 1, 4, 1, 0, 2, 2, 4, 8, 8, 8, 1, [27] = 2};

// A tensor over memory that exists; strides are given in values.
tensor *aclCreateTensor(const int64_t *shape, uint64_t dims, int type, const int64_t *strides, int64_t offset, int format, const int64_t *storage_shape, uint64_t storage_dims, void *data) {
    tensor *t = malloc(sizeof *t);
    *t = (tensor){1, type, (char *)data + offset * WIDTH[type]};
    for (uint64_t i = 0; i < dims; i++) t->numel *= shape[i];
    return t;
}
int aclDestroyTensor(const tensor *t) { free((void *)t); return 0; }
// Numbers that an operator takes beside its tensors.
int64_t *aclCreateIntArray(const int64_t *values, uint64_t count) {
    assert(count == 2 && values[0] == 0);  // padding after the last axis
    return malloc(1);
}
int aclDestroyIntArray(const int64_t *values) { free((void *)values); return 0; }
void *aclCreateScalar(void *value, int type) { return malloc(1); }
int aclDestroyScalar(const void *value) { free((void *)value); return 0; }

// Pads a tensor: first says what memory it needs, then runs.
int aclnnConstantPadNdGetWorkspaceSize(const tensor *from, const int64_t *pad, const void *value, tensor *to, uint64_t *size, executor **run) {
    *size = 0;
    *run = malloc(sizeof **run);
    **run = (executor){from, to};
    return 0;
}
int aclnnConstantPadNd(void *workspace, uint64_t size, executor *run, void *stream) {
    size_t bytes = run->from->numel * WIDTH[run->from->type];
    memcpy(run->to->data, run->from->data, bytes);
    memset(run->to->data + bytes, 0, run->to->numel * WIDTH[run->to->type] - bytes);
    free(run);
    return 0;
}

static int64_t load(const tensor *t, int64_t i) {
    switch (WIDTH[t->type]) {
        case 1: return t->type == 2 ? ((int8_t *)t->data)[i] : ((uint8_t *)t->data)[i];
        case 4: return ((int32_t *)t->data)[i];
        default: return ((int64_t *)t->data)[i];
    }
}

// Converts between types: integers and bool only.
int aclnnCastGetWorkspaceSize(const tensor *from, int type, tensor *to, uint64_t *size, executor **run) {
    return aclnnConstantPadNdGetWorkspaceSize(from, NULL, NULL, to, size, run);
}
int aclnnCast(void *workspace, uint64_t size, executor *run, void *stream) {
    for (int64_t i = 0; i < run->from->numel; i++) {
        int64_t value = load(run->from, i);
        switch (WIDTH[run->to->type]) {
            case 1: ((int8_t *)run->to->data)[i] = run->to->type == 12 ? value != 0 : value; break;
            case 4: ((int32_t *)run->to->data)[i] = value; break;
            default: ((int64_t *)run->to->data)[i] = value;
        }
    }
    free(run);
    return 0;
}
