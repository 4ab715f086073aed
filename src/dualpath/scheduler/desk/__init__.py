"""What there can be one of for all gateways of a cluster: who is placed where, what is stored, which engines live."""
