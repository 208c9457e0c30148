"""K classes, K logits a stage: losses on arrays, channel and prior in blocks of d = K-1 coordinates, stages solved one by one."""
