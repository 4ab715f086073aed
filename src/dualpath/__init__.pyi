from dualpath.launch.api import Cluster as Cluster

__version__: str
