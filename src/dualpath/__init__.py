"""DualPath: prefill/decode-disaggregated LLM inference in which every node's storage NIC works for every request."""

__version__ = "0.1.0"
