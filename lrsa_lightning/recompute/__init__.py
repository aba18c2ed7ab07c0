"""What a layer keeps from its forward for its backward: recomputation, and layer inputs in host memory."""
