"""Does the compute network keep model execution apart from KV? One process per node measures it on the real links.

``plan`` says what is run and ``verdict`` what it means (both pure); ``collective`` is the model's traffic, ``kv_load``
is KV's, ``rank`` runs both in step on one node. Called by ``validation`` only.
"""
