"""What RL frameworks call: token ids in and out, and the verbs that pause a server and change its weights."""
