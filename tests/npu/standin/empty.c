// A library that torch_npu links to without calling it.
