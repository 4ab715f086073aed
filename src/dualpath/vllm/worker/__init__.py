"""What lives in a vLLM worker: the node with its engine, and the connector's half that moves what a step needs.

Two threads meet here: vLLM's, in ``half`` and what it calls, and the node's event loop, in ``staged_prefill`` and
``staged_decode``. ``tasks`` says what either may do to a request. Where a server has several ranks,
the first one's node asks the others' (``ranks``, ``ranked``, ``ranked_decode``). Knows no vLLM.
"""
