"""Which resource binds: two looks at a cluster some seconds apart, compared with thresholds that the answer names."""
