from dualpath.serving.api import Cluster as Cluster

__version__: str
