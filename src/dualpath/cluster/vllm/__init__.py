"""A cluster whose engines are vLLM servers: started here, or joined where they run already.

``plan`` says which servers there are, ``command`` how one is started, ``process`` runs it, ``cluster`` puts scheduler
and servers together, ``gateway`` is one of several in front of them.
"""
