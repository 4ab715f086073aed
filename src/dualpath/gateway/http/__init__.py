"""What is done before anybody knows what a request asks: connections, keys, sizes, refusals."""
