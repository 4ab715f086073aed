"""What people start over a cluster: a server, a file of requests, an object for Python programs."""
