"""The API in OpenAI's shape: bodies, checks, answers, routes."""
